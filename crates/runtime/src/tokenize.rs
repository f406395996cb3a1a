//! Text to ids: the tokenizer files of a model directory, read as transformers 4.57 reads them.
//!
//! The segmentation itself is the `tokenizers` crate's. This module decides which file describes the
//! tokenizer, builds the pipeline where only a vocabulary is shipped (DeBERTa v3 ships `spm.model` and
//! nothing else), and does truncation and windows itself, so that one [`Tokenizer`] serves many threads
//! without carrying settings from call to call.
//!
//! Invariant: no file makes this module panic or allocate without bound, and offsets are characters of the
//! text they belong to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use qberta_model::error::{Error, Result};

use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Decoder, Encoding, Model, OffsetType, PostProcessor, PreTokenizer};

mod build;
mod facts;
mod limits;
mod source;
mod spm;
#[cfg(test)]
mod tests;

pub use spm::{PieceKind, SpmModel, parse_spm};

use build::{Built, Kind};
use facts::Facts;
use source::Source;

/// Every file that may describe a tokenizer; an artefact carries those its model has. `config.json` is read
/// too, for its `model_type`, where the tokenizer's own files do not name their class.
pub const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spm.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// A text, or a pair of texts, as a model takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// One id per token, special tokens included.
    pub ids: Vec<u32>,
    /// The segment type of each token, as the model was trained to see it (RoBERTa: all 0).
    pub type_ids: Vec<u32>,
    /// First and last-plus-one character of each token in the text of its segment; (0, 0) for special tokens.
    pub offsets: Vec<(usize, usize)>,
    /// Which text a token comes from: 0 the text, 1 the pair, `None` a special token.
    pub segment: Vec<Option<u8>>,
    /// Which word of its text a token belongs to, counted as the pre-tokenizer cuts; `None` for special tokens.
    pub words: Vec<Option<u32>>,
    /// Whether tokens were left out; in a window, whether the context needed more than one.
    pub truncated: bool,
}

/// A tokenizer with the facts around it that tasks need.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    mask: Option<(u32, String)>,
    pad: Option<u32>,
    max_length: Option<usize>,
    side: TruncationDirection,
    origin: String,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory; `None` if it holds no tokenizer file.
    pub fn open(dir: &Path) -> Result<Option<Tokenizer>> {
        Tokenizer::from_source(&Source::directory(dir)).map_err(|e| e.at(dir.display()))
    }

    /// Reads a tokenizer from named bytes: `lookup` answers the names in [`FILES`] and `config.json`.
    pub fn from_files(lookup: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Option<Tokenizer>> {
        Tokenizer::from_source(&Source::lookup(lookup))
    }

    fn from_source(source: &Source<'_>) -> Result<Option<Tokenizer>> {
        let facts = Facts::read(source)?;
        let Some((origin, built)) = assemble(source, &facts)? else {
            return Ok(None);
        };
        let Built { tokenizer: mut inner, special } = built;
        // A saved file may carry the padding and the truncation of the program that saved it; transformers
        // resets both for every call.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(library)?;
        inner.set_encode_special_tokens(facts.switch("split_special_tokens").unwrap_or(false));
        let find = |role: &str, usual: [&str; 2]| {
            let named = special.get(role).map(String::as_str);
            named.into_iter().chain(usual).find_map(|text| Some((inner.token_to_id(text)?, text.to_owned())))
        };
        let tokenizer = Tokenizer {
            mask: find("mask_token", ["[MASK]", "<mask>"]),
            pad: find("pad_token", ["[PAD]", "<pad>"]).map(|(id, _)| id),
            max_length: facts.max_length(),
            side: match facts.setting("truncation_side") {
                Some("left") => TruncationDirection::Left,
                _ => TruncationDirection::Right,
            },
            inner,
            origin,
        };
        // What a file got wrong and no check foresaw shows here rather than at the first request.
        tokenizer.encode("A probe: 1 text.", None, None)?;
        tokenizer.encode("A probe: 1 text.", Some("[MASK] and <mask> another"), Some(16))?;
        Ok(Some(tokenizer))
    }

    /// Encodes a text, or a pair, with the model's special tokens. With a `limit` the result has at most so
    /// many tokens, special ones included; of a pair, the longer text loses tokens first, and once both are
    /// equally long they share what is left, an odd token going to the longer (the second, if there is none).
    pub fn encode(&self, text: &str, pair: Option<&str>, limit: Option<usize>) -> Result<Encoded> {
        self.guarded(|| {
            let budget = limit.map(|limit| self.budget(limit, pair.is_some())).transpose()?;
            // Tokens past the budget need not be made, but only when one text is cut at its end: which text
            // of a pair is the longer, and where a text begins that is cut at its start, need them all.
            let enough = budget.filter(|_| pair.is_none() && self.side == TruncationDirection::Right);
            let mut first = self.part(text, 0, enough.map(|n| n + 1))?;
            let mut second = pair.map(|pair| self.part(pair, 1, None)).transpose()?;
            let (n, m) = (first.len(), second.as_ref().map_or(0, Encoding::len));
            let mut truncated = false;
            if let Some(budget) = budget.filter(|&budget| n + m > budget) {
                truncated = true;
                let (keep, keep_pair) = if second.is_some() { shares(n, m, budget) } else { (budget, 0) };
                self.cut(&mut first, keep);
                if let Some(second) = &mut second {
                    self.cut(second, keep_pair);
                }
            }
            self.finish(first, second, truncated)
        })
    }

    /// Encodes a question with a context of any length: as many windows of at most `limit` tokens as the
    /// context needs, each with the whole question, consecutive windows sharing `stride` context tokens.
    pub fn windows(
        &self,
        question: &str,
        context: &str,
        limit: usize,
        stride: usize,
    ) -> Result<Vec<Encoded>> {
        self.guarded(|| {
            let budget = self.budget(limit, true)?;
            let first = self.part(question, 0, None)?;
            let mut second = self.part(context, 1, None)?;
            if first.len() + second.len() <= budget {
                return Ok(vec![self.finish(first, Some(second), false)?]);
            }
            let width = budget.saturating_sub(first.len());
            if width == 0 {
                return Err(Error::input("the question leaves no room for the context")
                    .expected(format!("at most {} tokens", budget.saturating_sub(1)))
                    .found(first.len())
                    .hint("raise the length limit or shorten the question"));
            }
            if stride >= width {
                return Err(Error::input("windows would not move forward")
                    .expected(format!("a stride below {width}, the context tokens of one window"))
                    .found(stride)
                    .hint("lower the stride or raise the length limit"));
            }
            second.truncate(width, stride, self.side);
            let rest = second.take_overflowing();
            std::iter::once(second).chain(rest).map(|w| self.finish(first.clone(), Some(w), true)).collect()
        })
    }

    /// The mask token: id and text.
    pub fn mask(&self) -> Option<(u32, String)> {
        self.mask.clone()
    }

    /// The id of the padding token.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The length tokenizer_config.json gives as the model's maximum, in tokens; `None` if it gives none or
    /// one of the huge numbers that mean none.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// The token with this id, as it stands in the vocabulary ("▁the", "##ing", "Ġof").
    pub fn token(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        added.map(|token| token.content.clone()).or_else(|| self.inner.id_to_token(id))
    }

    /// The text these ids stand for, special tokens left out. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        // Not the library's own `decode`: it looks a special token up by the form the normalizer gives it
        // ("[unk]"), and so leaves it in.
        let special = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let kept = ids.iter().filter(|&id| !special.get(id).is_some_and(|token| token.special));
        let tokens: Vec<String> = kept.filter_map(|&id| self.token(id)).collect();
        self.guarded(|| match self.inner.get_decoder() {
            Some(decoder) => decoder.decode(tokens).map_err(library),
            None => Ok(tokens.join(" ")),
        })
    }

    /// Number of tokens, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The file or files this was built from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Tokens left for text under `limit`.
    fn budget(&self, limit: usize, pair: bool) -> Result<usize> {
        let special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(pair));
        limit.checked_sub(special).ok_or_else(|| {
            Error::input("the length limit has no room for the special tokens")
                .expected(format!("at least {special}"))
                .found(limit)
        })
    }

    /// One text without special tokens; no more than about `enough` tokens are made.
    fn part(&self, text: &str, type_id: u32, enough: Option<usize>) -> Result<Encoding> {
        let t = &self.inner;
        let mut cut = t.get_added_vocabulary().extract_and_normalize(t.get_normalizer(), text);
        if let Some(pre_tokenizer) = t.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut cut).map_err(library)?;
        }
        let stop = enough.map(|n| (n, TruncationDirection::Right));
        t.get_model().tokenize_in_pretokenized(&mut cut, stop).map_err(library)?;
        let mut encoding = cut.into_encoding(None, type_id, OffsetType::Byte).map_err(library)?;
        to_characters(text, encoding.get_offsets_mut());
        Ok(encoding)
    }

    fn cut(&self, encoding: &mut Encoding, keep: usize) {
        encoding.truncate(keep, 0, self.side);
        encoding.take_overflowing();
    }

    /// Puts the special tokens around.
    fn finish(&self, first: Encoding, second: Option<Encoding>, truncated: bool) -> Result<Encoded> {
        let whole = self.inner.post_process(first, second, true).map_err(library)?;
        let special = whole.get_special_tokens_mask();
        let segment = whole.get_sequence_ids().into_iter().zip(special);
        Ok(Encoded {
            segment: segment
                .map(|(s, &special)| s.filter(|_| special == 0).map(|s| u8::from(s > 0)))
                .collect(),
            ids: whole.get_ids().to_vec(),
            type_ids: whole.get_type_ids().to_vec(),
            offsets: whole.get_offsets().to_vec(),
            words: whole.get_word_ids().to_vec(),
            truncated,
        })
    }

    fn guarded<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        guard(call).map_err(|e| e.at(&self.origin))
    }
}

/// Builds the pipeline from the first description there is.
fn assemble(source: &Source<'_>, facts: &Facts) -> Result<Option<(String, Built)>> {
    let known = |names: &[(&str, Kind)]| kind_of(facts, names);
    if let Some(bytes) = source.bytes("tokenizer.json")? {
        let built = guard(|| from_json(&bytes, facts)).map_err(|e| e.at("tokenizer.json"))?;
        return Ok(Some(("tokenizer.json".to_owned(), built)));
    }
    for (name, fallback, names) in [
        ("spm.model", Kind::DebertaV2, &[("DebertaV2", Kind::DebertaV2), ("deberta-v2", Kind::DebertaV2)]),
        (
            "sentencepiece.bpe.model",
            Kind::XlmRoberta,
            &[("XLMRoberta", Kind::XlmRoberta), ("xlm-roberta", Kind::XlmRoberta)],
        ),
    ] {
        if let Some(bytes) = source.bytes(name)? {
            let built = known(names)
                .and_then(|kind| {
                    guard(|| build::from_spm(parse_spm(&bytes)?, kind.unwrap_or(fallback), facts))
                })
                .map_err(|e| e.at(name))?;
            return Ok(Some((name.to_owned(), built)));
        }
    }
    if let Some(vocab) = source.bytes("vocab.json")? {
        let merges = source.bytes("merges.txt")?.ok_or_else(|| {
            Error::corrupt("merges.txt is missing beside vocab.json")
                .hint("copy it from where the model came from")
        })?;
        let kind = known(&[
            ("Deberta", Kind::Deberta),
            ("Roberta", Kind::Roberta),
            ("deberta", Kind::Deberta),
            ("roberta", Kind::Roberta),
        ])
        .map_err(|e| e.at("vocab.json"))?;
        let built = guard(|| build::from_bpe(&vocab, &merges, kind, facts))?;
        return Ok(Some(("vocab.json and merges.txt".to_owned(), built)));
    }
    if let Some(vocab) = source.bytes("vocab.txt")? {
        known(&[
            ("Bert", Kind::Bert),
            ("DistilBert", Kind::Bert),
            ("Electra", Kind::Bert),
            ("MobileBert", Kind::Bert),
            ("ConvBert", Kind::Bert),
            ("SqueezeBert", Kind::Bert),
        ])
        .map_err(|e| e.at("vocab.txt"))?;
        let built = guard(|| build::from_wordpiece(&vocab, facts))?;
        return Ok(Some(("vocab.txt".to_owned(), built)));
    }
    Ok(None)
}

const SAVE_JSON: &str = "save a tokenizer.json with transformers (AutoTokenizer.from_pretrained, save_pretrained); it is read as it is";

/// Model types whose vocabulary files have the usual names but another layout or other special tokens.
const OTHER_TYPES: &[&str] = &["camembert", "mbart", "mpnet", "funnel", "splinter", "roformer"];

/// The kind the files name: `tokenizer_class` (which must be one of `names` if there is one), else
/// `model_type`, which may be anything: models of many types share BERT's and RoBERTa's tokenizers.
fn kind_of(facts: &Facts, names: &[(&str, Kind)]) -> Result<Option<Kind>> {
    let find = |name: &str| names.iter().find(|(known, _)| *known == name).map(|&(_, kind)| kind);
    match &facts.class {
        Some(class) => match find(class.strip_suffix("Tokenizer").unwrap_or(class)) {
            Some(kind) => Ok(Some(kind)),
            None => Err(Error::unsupported("this tokenizer class is not built from its vocabulary here")
                .found(class)
                .hint(SAVE_JSON)),
        },
        None => match facts.model_type.as_deref() {
            Some(other) if OTHER_TYPES.contains(&other) => {
                Err(Error::unsupported("this model type has a tokenizer of its own")
                    .found(other)
                    .hint(SAVE_JSON))
            }
            known => Ok(known.and_then(find)),
        },
    }
}

fn from_json(bytes: &[u8], facts: &Facts) -> Result<Built> {
    limits::check_json(bytes)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(library)?;
    let special = facts.special.iter().map(|(role, token)| (role.clone(), token.text().to_owned())).collect();
    Ok(Built { tokenizer, special })
}

/// An error of the `tokenizers` crate.
fn library(e: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::corrupt("the tokenizer does not work").found(e)
}

/// Runs a call into the `tokenizers` crate. The crate asserts and indexes on what it read from a file; the
/// known cases are checked before, and this is for the others: a file from a stranger must not end the
/// program. Nothing is left half done, since every call builds its own values.
fn guard<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let said =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::corrupt("the tokenizer files contradict themselves").found(said.unwrap_or("a panic")))
    })
}

/// How many tokens of two texts of `n` and `m` stay when `budget` < `n` + `m` do.
fn shares(n: usize, m: usize, budget: usize) -> (usize, usize) {
    let short = n.min(m);
    let (short, long) =
        if short <= budget / 2 { (short, budget - short) } else { (budget / 2, budget.div_ceil(2)) };
    if n > m { (long, short) } else { (short, long) }
}

/// Byte offsets to character offsets.
fn to_characters(text: &str, offsets: &mut [(usize, usize)]) {
    if text.is_ascii() {
        return;
    }
    let mut before = vec![0; text.len() + 1];
    let mut count = 0;
    for (i, byte) in text.bytes().enumerate() {
        // Bytes inside a character count as its first.
        let continues = byte & 0xc0 == 0x80;
        before[i] = if continues { count - 1 } else { count };
        count += usize::from(!continues);
    }
    before[text.len()] = count;
    let at = |byte: usize| before[byte.min(text.len())];
    for (start, end) in offsets {
        (*start, *end) = (at(*start), at(*end));
    }
}
