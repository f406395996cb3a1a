//! What the JSON files beside a vocabulary say: class, switches, special and added tokens.
//!
//! The rules of precedence are those of transformers 4.57: `tokenizer_config.json` first; if it lists
//! `added_tokens_decoder`, its entries define the tokens and `special_tokens_map.json` and
//! `added_tokens.json` are ignored; otherwise those two files fill in.

use std::collections::BTreeMap;

use qberta_model::error::{Error, Result};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::source::Source;

/// The special tokens in the order in which ids are given to those the vocabulary lacks.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Added tokens a file may list; more is not a tokenizer.
const MAX_ADDED: usize = 1 << 17;

/// A special token as a file names it: by text alone, or with its flags.
#[derive(Clone, Debug)]
pub(super) enum Named {
    Plain(String),
    Full(AddedToken),
}

impl Named {
    pub(super) fn text(&self) -> &str {
        match self {
            Named::Plain(text) => text,
            Named::Full(token) => &token.content,
        }
    }
}

/// Everything that is not the vocabulary itself.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// `tokenizer_class` without its "Fast".
    pub(super) class: Option<String>,
    /// `model_type` of config.json.
    pub(super) model_type: Option<String>,
    settings: Map<String, Value>,
    /// Special tokens by role, where a file names them.
    pub(super) special: BTreeMap<String, Named>,
    /// Special tokens without a role.
    pub(super) additional: Vec<Named>,
    /// Added tokens with the id the file gives them.
    pub(super) added: BTreeMap<u32, AddedToken>,
}

impl Facts {
    pub(super) fn read(source: &Source<'_>) -> Result<Facts> {
        let settings = source.object("tokenizer_config.json")?.unwrap_or_default();
        let config = source.object("config.json")?.unwrap_or_default();
        let text =
            |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let class = text(&settings, "tokenizer_class").or_else(|| text(&config, "tokenizer_class"));
        let mut facts = Facts {
            // The base class of transformers says nothing about the kind of tokenizer.
            class: class
                .map(|c| c.strip_suffix("Fast").unwrap_or(&c).to_owned())
                .filter(|c| c != "PreTrainedTokenizer"),
            model_type: text(&config, "model_type"),
            ..Facts::default()
        };
        facts.take_special(&settings, false).map_err(|e| e.at("tokenizer_config.json"))?;
        match settings.get("added_tokens_decoder") {
            Some(list) => {
                facts.take_decoder(list).map_err(|e| e.at("tokenizer_config.json: added_tokens_decoder"))?
            }
            None => {
                if let Some(map) = source.object("special_tokens_map.json")? {
                    facts.take_special(&map, true).map_err(|e| e.at("special_tokens_map.json"))?;
                }
                if let Some(map) = source.object("added_tokens.json")? {
                    facts.take_added(&map).map_err(|e| e.at("added_tokens.json"))?;
                }
            }
        }
        facts.settings = settings;
        Ok(facts)
    }

    /// A switch of tokenizer_config.json, if it is there and is a boolean.
    pub(super) fn switch(&self, key: &str) -> Option<bool> {
        self.settings.get(key).and_then(Value::as_bool)
    }

    /// A text of tokenizer_config.json.
    pub(super) fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).and_then(Value::as_str)
    }

    /// `model_max_length` (older files: `max_len`) unless it is one of the huge numbers that mean "none".
    pub(super) fn max_length(&self) -> Option<usize> {
        let value = self.settings.get("model_max_length").or_else(|| self.settings.get("max_len"))?;
        value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1_000_000).contains(n))
    }

    fn take_special(&mut self, map: &Map<String, Value>, from_map_file: bool) -> Result<()> {
        for role in ROLES {
            if let Some(value) = map.get(role).filter(|v| !v.is_null()) {
                self.special.insert(role.to_owned(), named(value, from_map_file).map_err(|e| e.at(role))?);
            }
        }
        let listed = map.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten();
        let extra =
            map.get("extra_special_tokens").and_then(Value::as_object).into_iter().flat_map(Map::values);
        for value in listed.chain(extra) {
            let token = named(value, from_map_file).map_err(|e| e.at("additional_special_tokens"))?;
            if self.additional.len() >= MAX_ADDED {
                return Err(too_many());
            }
            if !self.additional.iter().any(|known| known.text() == token.text()) {
                self.additional.push(token);
            }
        }
        Ok(())
    }

    fn take_decoder(&mut self, list: &Value) -> Result<()> {
        let list = list.as_object().ok_or_else(|| Error::corrupt("not an object"))?;
        if list.len() > MAX_ADDED {
            return Err(too_many());
        }
        for (id, value) in list {
            let token = match named(value, false).map_err(|e| e.at(id))? {
                Named::Full(token) => token,
                Named::Plain(_) => return Err(Error::corrupt("an added token needs its flags").at(id)),
            };
            let id = id.parse().map_err(|_| Error::corrupt("an added token has no numeric id").found(id))?;
            self.added.insert(id, token);
        }
        // A role that names one of these tokens means that token, flags included.
        let by_text: BTreeMap<&str, &AddedToken> =
            self.added.values().map(|t| (t.content.as_str(), t)).collect();
        for token in self.special.values_mut() {
            if let Some(&known) = by_text.get(token.text()) {
                *token = Named::Full(known.clone());
            }
        }
        Ok(())
    }

    fn take_added(&mut self, map: &Map<String, Value>) -> Result<()> {
        if map.len() > MAX_ADDED {
            return Err(too_many());
        }
        for (text, id) in map {
            let id = id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| Error::corrupt("an added token has no numeric id").found(text))?;
            let special = self.special.values().chain(&self.additional).any(|token| token.text() == text);
            self.added.insert(id, AddedToken::from(text.clone(), special));
        }
        Ok(())
    }
}

fn too_many() -> Error {
    Error::unsupported("too many added tokens").expected(format!("at most {MAX_ADDED}"))
}

/// A token from JSON: a text, or an object with `content` and flags. Entries of special_tokens_map.json are
/// special whether they say so or not.
fn named(value: &Value, special: bool) -> Result<Named> {
    if let Some(text) = value.as_str() {
        return Ok(Named::Plain(text.to_owned()));
    }
    let malformed = || Error::corrupt("not a token").expected("a text, or an object with \"content\"");
    let map = value.as_object().ok_or_else(malformed)?;
    let content = map.get("content").and_then(Value::as_str).ok_or_else(malformed)?;
    let flag = |key: &str| map.get(key).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    Ok(Named::Full(
        AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    ))
}
