//! Vocabulary files turned into a `tokenizers` pipeline, as transformers 4.57 turns its slow tokenizers into
//! fast ones (the ids of a released model are defined by that conversion).

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use qberta_model::error::{Error, Result};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{
    BertNormalizer, Lowercase, NormalizerWrapper, Precompiled, Replace, Sequence as Normalizers, Strip,
    replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::{Template, TemplateProcessing};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::facts::{Facts, Named, ROLES};
use super::library;
use super::limits::{MAX_TOKENS, Vocabulary};
use super::spm::{PieceKind, SpmModel};

/// The conversions there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// DeBERTa v2, v3, mDeBERTa: SentencePiece with ids as stored.
    DebertaV2,
    /// XLM-RoBERTa: SentencePiece with ids shifted by one.
    XlmRoberta,
    /// DeBERTa v1: byte-level BPE with BERT's markers.
    Deberta,
    /// RoBERTa: byte-level BPE.
    Roberta,
    /// BERT, ELECTRA, DistilBERT: WordPiece.
    Bert,
}

impl Kind {
    /// The text of a special token that no file names.
    fn default_text(self, role: &str) -> Option<&'static str> {
        let (open, close, unknown, pad, mask) = match self {
            Kind::XlmRoberta | Kind::Roberta => ("<s>", "</s>", "<unk>", "<pad>", "<mask>"),
            _ => ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"),
        };
        match role {
            "bos_token" | "eos_token" if self == Kind::Bert => None,
            "bos_token" | "cls_token" => Some(open),
            "eos_token" | "sep_token" => Some(close),
            "unk_token" => Some(unknown),
            "pad_token" => Some(pad),
            "mask_token" => Some(mask),
            _ => None,
        }
    }

    /// The flags of a special token that is named by its text alone. `None`: whatever it has already, or
    /// plain special flags if it is new.
    fn default_flags(self, role: &str, text: &str) -> Option<AddedToken> {
        let special = AddedToken::from(text, true);
        match (self, role) {
            (Kind::DebertaV2, "unk_token") => Some(special.normalized(true)),
            (Kind::Deberta, "mask_token") => Some(special.lstrip(true).normalized(true)),
            (Kind::XlmRoberta | Kind::Roberta, "mask_token") => Some(special.lstrip(true)),
            (Kind::Deberta, _) => Some(special),
            (Kind::Roberta, _) => Some(special.normalized(true)),
            _ => None,
        }
    }
}

/// A pipeline with its special tokens by role.
pub(super) struct Built {
    pub(super) tokenizer: Tokenizer,
    pub(super) special: BTreeMap<String, String>,
}

/// DeBERTa v2 or XLM-RoBERTa from a SentencePiece model.
pub(super) fn from_spm(spm: SpmModel, kind: Kind, facts: &Facts) -> Result<Built> {
    let text = |p: &super::spm::Piece| (p.text.clone(), f64::from(p.score));
    let mut vocab: Vec<(String, f64)> = Vec::with_capacity(spm.pieces.len() + 2);
    let mut unknown = spm.unknown;
    if kind == Kind::XlmRoberta {
        // fairseq put <s> <pad> </s> <unk> before the pieces, of which it dropped the first three
        // (<unk> <s> </s>), and <mask> after them.
        let own = spm.pieces.get(3..).ok_or_else(|| {
            Error::corrupt("the SentencePiece model lacks XLM-RoBERTa's markers")
                .expected("at least 3 pieces")
        })?;
        vocab.extend(["<s>", "<pad>", "</s>", "<unk>"].map(|marker| (marker.to_owned(), 0.0)));
        vocab.extend(own.iter().map(text));
        vocab.push(("<mask>".to_owned(), 0.0));
        unknown = 3;
    } else {
        vocab.extend(spm.pieces.iter().map(text));
    }
    let model = Unigram::from(vocab, Some(unknown), false).map_err(library)?;
    let mut tokenizer = Tokenizer::new(model);

    let spaces = |to: &str| Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), to).map_err(library);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if kind == Kind::DebertaV2 {
        if facts.switch("do_lower_case").unwrap_or(false) {
            steps.push(Lowercase.into());
        }
        steps.push(Strip::new(true, true).into());
    }
    if !spm.charsmap.is_empty() {
        steps.push(Precompiled::from(&spm.charsmap).map_err(|e| library(e.into()))?.into());
    }
    if kind == Kind::XlmRoberta {
        steps.push(Strip::new(false, true).into());
    }
    steps.push(spaces(if kind == Kind::XlmRoberta { "▁" } else { " " })?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(steps))).map_err(library)?;

    let metaspace = || Metaspace::new('▁', PrependScheme::Always, true);
    let mut cuts: Vec<PreTokenizerWrapper> = Vec::new();
    if kind == Kind::DebertaV2 && facts.switch("split_by_punct").unwrap_or(false) {
        cuts.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
    }
    cuts.push(metaspace().into());
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(cuts)));
    tokenizer.with_decoder(Some(metaspace()));

    let markers = spm.pieces.iter().filter(|p| matches!(p.kind, PieceKind::Control | PieceKind::UserDefined));
    let markers =
        markers.map(|p| AddedToken::from(p.text.clone(), p.kind == PieceKind::Control).normalized(false));
    tokenizer.add_tokens(markers).map_err(library)?;
    let special = add_tokens(&mut tokenizer, kind, facts)?;
    let template = match kind {
        Kind::XlmRoberta => template(&tokenizer, "<s>", "</s>", Pair::Doubled)?,
        _ => template(&tokenizer, "[CLS]", "[SEP]", Pair::Typed)?,
    };
    tokenizer.with_post_processor(Some(template));
    Ok(Built { tokenizer, special })
}

/// DeBERTa v1 or RoBERTa from vocab.json and merges.txt.
pub(super) fn from_bpe(vocab: &[u8], merges: &[u8], kind: Option<Kind>, facts: &Facts) -> Result<Built> {
    let vocab: Vocabulary = serde_json::from_slice(vocab).map_err(|e| {
        Error::corrupt("not a vocabulary").at("vocab.json").expected("{\"token\": id, …}").found(e)
    })?;
    let merges = read_merges(merges, &vocab).map_err(|e| e.at("merges.txt"))?;
    let kind = match kind {
        Some(kind) => kind,
        None if vocab.id("[CLS]").is_some() => Kind::Deberta,
        None if vocab.id("<s>").is_some() => Kind::Roberta,
        None => {
            return Err(Error::unsupported("neither DeBERTa's [CLS] nor RoBERTa's <s> is in the vocabulary")
                .at("vocab.json")
                .hint("name the tokenizer_class in tokenizer_config.json, or save a tokenizer.json"));
        }
    };
    let vocab: Vocab = vocab.entries.into_iter().collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(String::new())
        .build()
        .map_err(library)?;
    let mut tokenizer = Tokenizer::new(model);
    let prefix = facts.switch("add_prefix_space").unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special = add_tokens(&mut tokenizer, kind, facts)?;
    if kind == Kind::Roberta {
        let marker = |role: &str| {
            let text = special.get(role).cloned().unwrap_or_default();
            marker_id(&tokenizer, &text).map(|id| (text, id))
        };
        let around = RobertaProcessing::new(marker("sep_token")?, marker("cls_token")?)
            .trim_offsets(facts.switch("trim_offsets").unwrap_or(true))
            .add_prefix_space(prefix);
        tokenizer.with_post_processor(Some(around));
    } else {
        let around = template(&tokenizer, "[CLS]", "[SEP]", Pair::Typed)?;
        tokenizer.with_post_processor(Some(around));
    }
    Ok(Built { tokenizer, special })
}

/// BERT from vocab.txt.
pub(super) fn from_wordpiece(vocab: &[u8], facts: &Facts) -> Result<Built> {
    let text = universal_newlines(vocab).map_err(|e| e.at("vocab.txt"))?;
    let mut tokens: Vec<&str> = text.split('\n').collect();
    // Only the end of the last line: an empty line in between is a token with an empty text.
    tokens.pop_if(|last| last.is_empty());
    if tokens.is_empty() || tokens.len() > MAX_TOKENS {
        return Err(Error::corrupt("not a vocabulary")
            .at("vocab.txt")
            .expected(format!("1 to {MAX_TOKENS} lines"))
            .found(tokens.len()));
    }
    // A token listed twice has the id of its last line.
    let vocab: Vocab = tokens.iter().zip(0u32..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let named = |role| facts.special.get(role).map(Named::text).or(Kind::Bert.default_text(role));
    let unknown = named("unk_token").unwrap_or("[UNK]").to_owned();
    if !vocab.contains_key(&unknown) {
        return Err(Error::corrupt("the unknown token is not in the vocabulary")
            .at("vocab.txt")
            .expected(unknown));
    }
    let model = WordPiece::builder().vocab(vocab).unk_token(unknown).build().map_err(library)?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizer = BertNormalizer::new(
        true,
        facts.switch("tokenize_chinese_chars").unwrap_or(true),
        facts.switch("strip_accents"),
        facts.switch("do_lower_case").unwrap_or(true),
    );
    tokenizer.with_normalizer(Some(normalizer)).map_err(library)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    let special = add_tokens(&mut tokenizer, Kind::Bert, facts)?;
    let marker = |role: &str| special.get(role).map(String::as_str).unwrap_or_default();
    let around = template(&tokenizer, marker("cls_token"), marker("sep_token"), Pair::Typed)?;
    tokenizer.with_post_processor(Some(around));
    Ok(Built { tokenizer, special })
}

/// How two texts stand beside each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pair {
    /// One separator between them, type 1 for the second.
    Typed,
    /// Two separators between them, type 0 throughout.
    Doubled,
}

fn template(tokenizer: &Tokenizer, open: &str, close: &str, pair: Pair) -> Result<TemplateProcessing> {
    let one = format!("{open}:0 $A:0 {close}:0");
    let two = match pair {
        Pair::Typed => format!("{one} $B:1 {close}:1"),
        Pair::Doubled => format!("{one} {close}:0 $B:0 {close}:0"),
    };
    // The library reads `name:type` separated by spaces, so a marker with either in it cannot be written.
    let parse = |text: &str| {
        Template::try_from(text).map_err(|e| Error::unsupported("a marker cannot be used").found(e))
    };
    let markers = [open, close].map(|m| marker_id(tokenizer, m).map(|id| (m.to_owned(), id)));
    let [open, close] = markers;
    TemplateProcessing::builder()
        .single(parse(&one)?)
        .pair(parse(&two)?)
        .special_tokens(vec![open?, close?])
        .build()
        .map_err(|e| Error::unsupported("a marker cannot be used").found(e))
}

fn marker_id(tokenizer: &Tokenizer, marker: &str) -> Result<u32> {
    tokenizer
        .token_to_id(marker)
        .ok_or_else(|| Error::corrupt("a marker is not in the vocabulary").expected(format!("{marker:?}")))
}

/// Adds the tokens the files list, then the special tokens, and checks that the listed ones got their ids.
fn add_tokens(tokenizer: &mut Tokenizer, kind: Kind, facts: &Facts) -> Result<BTreeMap<String, String>> {
    let mut special = BTreeMap::new();
    let mut wanted: Vec<(Named, Option<AddedToken>)> = Vec::new();
    for role in ROLES {
        let named = match facts.special.get(role) {
            Some(named) => named.clone(),
            None => match kind.default_text(role) {
                Some(text) => facts
                    .added
                    .values()
                    .find(|token| token.content == text)
                    .map_or_else(|| Named::Plain(text.to_owned()), |token| Named::Full(token.clone())),
                None => continue,
            },
        };
        special.insert(role.to_owned(), named.text().to_owned());
        let flags = kind.default_flags(role, named.text());
        wanted.push((named, flags));
    }
    wanted.extend(facts.additional.iter().map(|named| (named.clone(), None)));
    let is_special: HashSet<String> = wanted.iter().map(|(named, _)| named.text().to_owned()).collect();

    let mut list: Vec<AddedToken> = facts.added.values().cloned().collect();
    let mut known: HashSet<String> = list.iter().map(|t| t.content.clone()).collect();
    known.extend(tokenizer.get_added_vocabulary().get_vocab().keys().cloned());
    for (named, flags) in wanted {
        match (named, flags) {
            (Named::Full(token), _) | (Named::Plain(_), Some(token)) => {
                if !list.contains(&token) {
                    list.push(token);
                }
            }
            (Named::Plain(text), None) if !known.contains(&text) => list.push(AddedToken::from(text, true)),
            (Named::Plain(_), None) => {}
        }
    }
    // A token added twice takes the flags of the later entry, except that it goes on being looked for where
    // the first entry said: in the text as it is, or in the normalized text.
    let already = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let mut normalized: BTreeMap<String, bool> =
        already.values().map(|token| (token.content.clone(), token.normalized)).collect();
    for token in &mut list {
        token.special |= is_special.contains(&token.content);
        token.normalized = *normalized.entry(token.content.clone()).or_insert(token.normalized);
    }
    tokenizer.add_tokens(list).map_err(library)?;

    for (&id, token) in &facts.added {
        let got = tokenizer.token_to_id(&token.content);
        if got != Some(id) {
            return Err(Error::corrupt("an added token does not get the id it is listed with")
                .at(format!("{:?}", token.content))
                .expected(id)
                .found(got.map_or_else(|| "none".to_owned(), |id| id.to_string()))
                .hint("does tokenizer_config.json belong to this vocabulary?"));
        }
    }
    Ok(special)
}

/// The merges in order of rank. The first line is a version and the file ends with a newline: the first and
/// the last piece between newlines are dropped unread, as transformers does. A pair listed twice keeps the
/// rank of its first line.
fn read_merges(bytes: &[u8], vocab: &Vocabulary) -> Result<Vec<(String, String)>> {
    let text = universal_newlines(bytes)?;
    let lines: Vec<&str> = text.split('\n').collect();
    let mut merges = Vec::new();
    let mut seen = HashSet::new();
    for (number, line) in lines.iter().enumerate().take(lines.len() - 1).skip(1) {
        let here = || format!("line {}", number + 1);
        let mut parts = line.split_whitespace();
        let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
            if line.trim().is_empty() {
                continue;
            }
            return Err(Error::corrupt("not a merge")
                .at(here())
                .expected("two tokens")
                .found(format!("{line:?}")));
        };
        vocab.check_merge(left, right, "").map_err(|e| e.at(here()))?;
        if seen.insert((left, right)) {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(merges)
}

/// UTF-8 text with every line end as "\n".
fn universal_newlines(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|e| Error::corrupt("not UTF-8").found(e))?;
    if text.contains('\r') {
        return Ok(text.replace("\r\n", "\n").replace('\r', "\n"));
    }
    String::from_str(text).map_err(|e| match e {})
}
