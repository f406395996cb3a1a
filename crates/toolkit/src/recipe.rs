//! What the user asks: a preset by name and the modules to leave in float.

use qberta_model::{Error, Result};
use qberta_store::manifest::RecipeRecord;
use regex::Regex;

/// A preset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preset {
    /// W8A8: int8 weights per output channel, activations per token while running, int8 word table.
    Dynamic,
    /// W8A8: the same, with one grid per input from calibration data.
    Static,
}

impl Preset {
    /// Every preset with its name and one line for people.
    pub const ALL: [(Preset, &'static str, &'static str); 2] = [
        (
            Preset::Dynamic,
            "dynamic",
            "int8 weights per output channel, int8 activations per token at run time, int8 word table; no data needed",
        ),
        (
            Preset::Static,
            "static",
            "the same with one stored grid per input instead of one per token; needs calibration data",
        ),
    ];

    /// The name used by `--recipe`.
    pub fn name(self) -> &'static str {
        Preset::ALL.iter().find(|(p, ..)| *p == self).map_or("", |(_, n, _)| n)
    }
}

/// A recipe as asked.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The preset.
    pub preset: Preset,
    /// Modules to keep in float.
    pub skip: Vec<Pattern>,
}

impl Recipe {
    /// The preset called `name` with `skip` patterns.
    ///
    /// Errors: an unknown preset, a malformed pattern.
    pub fn new(name: &str, skip: &[String]) -> Result<Recipe> {
        let preset = Preset::ALL.iter().find(|(_, n, _)| *n == name).map(|(p, ..)| *p).ok_or_else(|| {
            let known: Vec<_> = Preset::ALL.iter().map(|(_, n, _)| *n).collect();
            Error::input("recipe is not known").at("--recipe").expected(known.join(", ")).found(name)
        })?;
        let skip = skip.iter().map(|p| Pattern::parse(p)).collect::<Result<_>>()?;
        Ok(Recipe { preset, skip })
    }

    /// The form kept in an artefact.
    pub fn record(&self) -> RecipeRecord {
        RecipeRecord {
            name: self.preset.name().to_owned(),
            skip: self.skip.iter().map(|p| p.text.clone()).collect(),
        }
    }
}

/// A pattern over module names.
///
/// `re:EXPRESSION` matches where the regular expression is found in the name. Anything else matches
/// whole dotted parts anywhere in the name, `*` standing for any characters inside a part: `layer.3`
/// matches every module of layer 3 but not of layer 31, `output.dense` both output linears of a layer.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    expression: Regex,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// Errors: an empty pattern, a malformed regular expression.
    pub fn parse(text: &str) -> Result<Pattern> {
        let source = match text.strip_prefix("re:") {
            Some(expression) => expression.to_owned(),
            None => {
                let plain = regex::escape(text.trim_matches('.')).replace(r"\*", "[^.]*");
                format!(r"(^|\.){plain}(\.|$)")
            }
        };
        if text.strip_prefix("re:").unwrap_or(text).trim_matches('.').is_empty() {
            return Err(Error::input("pattern is empty").at("--skip").found(format!("{text:?}")));
        }
        let expression = Regex::new(&source).map_err(|e| {
            Error::input("pattern is not a regular expression").at("--skip").found(format!("{text:?}: {e}"))
        })?;
        Ok(Pattern { text: text.to_owned(), expression })
    }

    /// Whether the pattern selects module `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.expression.is_match(name)
    }

    /// The pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_patterns_match_whole_parts() {
        let cases = [
            ("layer.3", "deberta.encoder.layer.3.output.dense", true),
            ("layer.3", "deberta.encoder.layer.31.output.dense", false),
            ("output.dense", "deberta.encoder.layer.3.attention.output.dense", true),
            ("query_proj", "deberta.encoder.layer.3.attention.self.query_proj", true),
            ("query", "deberta.encoder.layer.3.attention.self.query_proj", false),
            ("query*", "deberta.encoder.layer.3.attention.self.query_proj", true),
            ("word_embeddings", "embeddings.word_embeddings", true),
            ("layer.*.intermediate", "encoder.layer.12.intermediate.dense", true),
            ("re:layer\\.[01]\\.", "encoder.layer.1.intermediate.dense", true),
            ("re:layer\\.[01]\\.", "encoder.layer.2.intermediate.dense", false),
            ("re:.*output\\.dense$", "encoder.layer.2.output.dense", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for text in ["", "re:", "re:(", "."] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
    }
}
