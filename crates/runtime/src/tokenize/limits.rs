//! Checks of tokenizer.json before the `tokenizers` crate sees it.
//!
//! The crate trusts that file: a broken character map or an overlong merge makes it panic, a map may name an
//! allocation of gigabytes, and an overlong piece overflows the stack when its prefix tree is dropped. The
//! file is therefore read twice, first here, into as little as the checks need.

use std::collections::HashMap;
use std::fmt;

use qberta_model::error::{Error, Result};
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::spm::{MAX_CHARSMAP_BYTES, MAX_PIECE_BYTES, MAX_TOTAL_BYTES, check_charsmap};

/// Most tokens a vocabulary may have.
pub(super) const MAX_TOKENS: usize = 1 << 20;
/// Ids index the rows of an embedding table; no table has as many rows.
const MAX_ID: u32 = 1 << 24;
/// Longest text in the pipeline settings (patterns, replacements), the character map aside.
const MAX_SETTING_BYTES: usize = 1 << 16;
/// Most values in the pipeline settings.
const MAX_SETTINGS: usize = 1 << 16;
/// How much longer the normalizers may make a text. `Replace` steps multiply, so a short file can ask for
/// any length.
const MAX_GROWTH: usize = 1 << 12;

/// A vocabulary from JSON: `{"token": id}`, or the `["piece", score]` list of a unigram model, of which only
/// the sizes are checked.
#[derive(Default)]
pub(super) struct Vocabulary {
    pub(super) entries: HashMap<String, u32>,
}

impl Vocabulary {
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.entries.get(token).copied()
    }

    /// Whether `left` and `right`, and the token they merge into, are all there. The crate copies both into
    /// a buffer as long as the longest token before it looks.
    pub(super) fn check_merge(&self, left: &str, right: &str, prefix: &str) -> Result<()> {
        let unknown = |token: &str| {
            Error::corrupt("a merge names a token that is not in the vocabulary").found(format!("{token:?}"))
        };
        for token in [left, right] {
            self.id(token).ok_or_else(|| unknown(token))?;
        }
        let tail = right.strip_prefix(prefix).ok_or_else(|| {
            Error::corrupt("the right side of a merge lacks the prefix of continued words")
                .expected(format!("{prefix:?}"))
                .found(format!("{right:?}"))
        })?;
        let merged = format!("{left}{tail}");
        self.id(&merged).map(drop).ok_or_else(|| unknown(&merged))
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocabulary, A::Error> {
                let mut entries = HashMap::new();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if entries.len() >= MAX_TOKENS || id >= MAX_ID {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_TOKENS} tokens or ids past {MAX_ID}"
                        )));
                    }
                    entries.insert(token, id);
                }
                Ok(Vocabulary { entries })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vocabulary, A::Error> {
                let (mut count, mut total) = (0, 0);
                while let Some((piece, _)) = list.next_element::<(String, f64)>()? {
                    count += 1;
                    total += piece.len();
                    if count > MAX_TOKENS || piece.len() > MAX_PIECE_BYTES || total > MAX_TOTAL_BYTES {
                        return Err(A::Error::custom("too many pieces, or pieces that are too long"));
                    }
                }
                Ok(Vocabulary::default())
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Option<Vec<Added>>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Vocabulary,
    #[serde(default)]
    merges: Option<Vec<Merge>>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(flatten)]
    _rest: HashMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// Refuses a tokenizer.json that the crate would panic on, or that would make it allocate without bound.
pub(super) fn check_json(bytes: &[u8]) -> Result<()> {
    let head: Head =
        serde_json::from_slice(bytes).map_err(|e| Error::corrupt("not a tokenizer.json").found(e))?;
    let mut settings = 0;
    let mut growth = 1;
    for (name, part) in [
        ("normalizer", &head.normalizer),
        ("pre_tokenizer", &head.pre_tokenizer),
        ("post_processor", &head.post_processor),
        ("decoder", &head.decoder),
    ] {
        check_settings(part, &mut settings, &mut growth).map_err(|e| e.at(name))?;
    }
    check_template(&head.post_processor).map_err(|e| e.at("post_processor"))?;

    let added: Vec<Added> = head.added_tokens.unwrap_or_default();
    let length: usize = added.iter().map(|token| token.content.len()).sum();
    if added.len() > MAX_TOKENS || length > MAX_TOTAL_BYTES {
        return Err(Error::unsupported("too many added tokens").at("added_tokens").found(added.len()));
    }
    if head.model.dropout.is_some_and(|p| p != 0.0) {
        return Err(Error::unsupported(
            "the model drops merges at random, so ids would differ from run to run",
        )
        .at("model.dropout")
        .expected("null or 0"));
    }
    let prefix = head.model.continuing_subword_prefix.as_deref().unwrap_or("");
    for merge in head.model.merges.iter().flatten() {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Line(line) if line.starts_with("#version") => continue,
            Merge::Line(line) => line
                .split_once(' ')
                .ok_or_else(|| Error::corrupt("not a merge").at("model.merges").found(format!("{line:?}")))?,
        };
        head.model.vocab.check_merge(left, right, prefix).map_err(|e| e.at("model.merges"))?;
    }
    Ok(())
}

/// Bounds the settings of a pipeline part and walks the character maps in it.
fn check_settings(value: &Value, count: &mut usize, growth: &mut usize) -> Result<()> {
    *count += 1;
    if *count > MAX_SETTINGS {
        return Err(Error::unsupported("too many settings").expected(format!("at most {MAX_SETTINGS}")));
    }
    match value {
        Value::String(text) if text.len() > MAX_SETTING_BYTES => {
            Err(Error::unsupported("a setting is too long")
                .expected(format!("at most {MAX_SETTING_BYTES} bytes"))
                .found(text.len()))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_settings(item, count, growth)),
        Value::Object(map) => {
            for (key, item) in map {
                match (key.as_str(), item) {
                    ("precompiled_charsmap", Value::String(text)) => check_charsmap(&base64(text)?)?,
                    _ => check_settings(item, count, growth)?,
                }
            }
            let text = |key: &str| map.get(key).and_then(Value::as_str).map_or(0, str::len);
            let factor = match map.get("type").and_then(Value::as_str) {
                Some("Replace") => text("content"),
                Some("Prepend") => 1 + text("prepend"),
                // A pattern that matches nothing but is cut into pieces of no length never ends.
                Some("FixedLength") if map.get("length").and_then(Value::as_u64) == Some(0) => {
                    return Err(Error::corrupt("pieces of length 0").at("FixedLength"));
                }
                _ => 1,
            };
            *growth = growth.saturating_mul(factor.max(1));
            if *growth > MAX_GROWTH {
                return Err(Error::unsupported("the replacements make texts too long")
                    .expected(format!("at most {MAX_GROWTH} times as long")));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A template may name only special tokens it defines, and the second text only where there is one; the
/// crate looks both up unchecked.
fn check_template(value: &Value) -> Result<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(check_template),
        Value::Object(map) => {
            let known = map.get("special_tokens").and_then(Value::as_object);
            for name in ["single", "pair"] {
                for piece in map.get(name).and_then(Value::as_array).into_iter().flatten() {
                    let id = |kind: &str| piece.get(kind).and_then(|p| p.get("id")).and_then(Value::as_str);
                    if id("SpecialToken").is_some_and(|id| known.is_none_or(|known| !known.contains_key(id)))
                    {
                        return Err(
                            Error::corrupt("the template names a special token it does not define").at(name)
                        );
                    }
                    if name == "single" && id("Sequence") == Some("B") {
                        return Err(Error::corrupt("the template for one text asks for two").at(name));
                    }
                }
            }
            map.values().try_for_each(check_template)
        }
        _ => Ok(()),
    }
}

/// Standard base64 with padding.
fn base64(text: &str) -> Result<Vec<u8>> {
    let broken = || Error::corrupt("the character map is not base64");
    let data = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - data.len() > 2 {
        return Err(broken());
    }
    if data.len() / 4 * 3 > MAX_CHARSMAP_BYTES {
        return Err(Error::unsupported("the character map is too large"));
    }
    let mut bytes = Vec::with_capacity(data.len() / 4 * 3 + 2);
    for group in data.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for &symbol in group {
            let value = match symbol {
                b'A'..=b'Z' => symbol - b'A',
                b'a'..=b'z' => symbol - b'a' + 26,
                b'0'..=b'9' => symbol - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return Err(broken()),
            };
            bits = bits << 6 | u32::from(value);
        }
        // n symbols carry n − 1 whole bytes; what is left over is padding.
        let [_, high, middle, low] = (bits << (6 * (4 - group.len()))).to_be_bytes();
        bytes.extend_from_slice(&[high, middle, low][..group.len() - 1]);
    }
    Ok(bytes)
}
