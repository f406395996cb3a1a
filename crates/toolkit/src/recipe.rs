//! What the user asks: a preset by name or a TOML file, and modules to leave in float.
//!
//! ```toml
//! name = "careful"
//! base = "dynamic"            # a preset; what is not said here is as there, without a base it is float
//!
//! rounding = "gptq"           # or "quantease", "nearest": weights are fitted to calibration data
//! bias_correction = true      # so are biases
//! smooth = 0.5                # outlier channels move into the weights that meet them; needs calibration data
//!
//! [linears]                   # linears of the encoder
//! weight = "int4"             # or "int8", "bf16", "float"
//! group = 64                  # or 32, 128: inputs that share a scale
//! input = "dynamic-symmetric"
//!
//! [words]                     # the word table, and the vocabulary projection of masked-LM models
//! weight = "int8"
//!
//! [attention]
//! scores = "int8"             # or "static", "float": products of queries with keys and projected positions
//! context = "int8"            # or "float": products of attention weights with values
//!
//! [[rules]]                   # in order; of the rules that match a module, the last to set a key decides it
//! modules = ["layer.11", "re:attention\\.output"]
//! weight = "float"
//! ```
//!
//! Presets are such files themselves (`recipes/`). Unknown keys, patterns that match nothing and decisions
//! that cannot be carried out are errors that name the line.

mod file;
mod write;

pub(crate) use file::impossible;
pub(crate) use write::uniform;

use qberta_model::{Error, Result};
use qberta_store::manifest::{Decision, FitRecord, Input, RecipeRecord, Rounding, Weight};
use qberta_store::whole;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Every preset: its name and its file.
pub const PRESETS: [(&str, &str); 8] = [
    ("dynamic", include_str!("recipes/dynamic.toml")),
    ("dynamic-attention", include_str!("recipes/dynamic-attention.toml")),
    ("static", include_str!("recipes/static.toml")),
    ("static-attention", include_str!("recipes/static-attention.toml")),
    ("w4a8", include_str!("recipes/w4a8.toml")),
    ("w4a8-gptq", include_str!("recipes/w4a8-gptq.toml")),
    ("weight-only", include_str!("recipes/weight-only.toml")),
    ("weight-only-4bit", include_str!("recipes/weight-only-4bit.toml")),
];

/// A recipe as asked.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub about: String,
    /// Weights of the encoder's linears.
    pub linear_weight: Weight,
    /// Inputs of the encoder's linears.
    pub linear_input: Input,
    /// Weights of the word table and the vocabulary projection.
    pub word_weight: Weight,
    /// What attention scores multiply.
    pub scores: Scores,
    /// What attention weights multiply.
    pub context: Values,
    /// How weights become codes.
    pub rounding: Rounding,
    /// How far outlier channels of inputs move into the weights (the alpha of SmoothQuant); `None`: not at all.
    pub smooth: Option<f64>,
    /// Whether biases make up for the mean error of the outputs on calibration data.
    pub bias_correction: bool,
    /// Exceptions, in order.
    pub rules: Vec<Rule>,
    /// Modules to keep in float, whatever the rules say.
    pub skip: Vec<Pattern>,
    /// The file's canonical text, for recipes that are not presets.
    canonical: Option<String>,
}

/// What the products of attention scores multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scores {
    /// f32 values.
    #[default]
    Float,
    /// int8 codes, each row of each head on its own grid.
    Int8,
    /// int8 codes, queries and keys of each head on a stored grid.
    Static,
}

impl Scores {
    /// The decision for an attention; `None` where it stays in float.
    pub(crate) fn decision(self) -> Option<Decision> {
        match self {
            Scores::Float => None,
            Scores::Int8 => Some(Decision::INT8_SCORES),
            Scores::Static => Some(Decision::STATIC_SCORES),
        }
    }
}

/// What the products of attention weights with values multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Values {
    /// f32 values.
    #[default]
    Float,
    /// Codes: values in 8 bits, each channel of a sequence on its own grid, attention weights in 14.
    Int8,
}

impl Values {
    /// The decision for an attention's context; `None` where it stays in float.
    pub(crate) fn decision(self) -> Option<Decision> {
        (self == Values::Int8).then_some(Decision::INT8_CONTEXT)
    }
}

/// What a recipe file says about some modules.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which modules.
    pub modules: Vec<Pattern>,
    /// How their weights are stored.
    pub weight: Option<Weight>,
    /// What happens to their inputs.
    pub input: Option<Input>,
    /// What the scores of attentions multiply.
    pub scores: Option<Scores>,
    /// What the attention weights of attentions multiply.
    pub context: Option<Values>,
    /// Where the rule stands, for messages: a file and a line.
    pub place: String,
}

impl Rule {
    /// Whether the rule is about module `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.modules.iter().any(|p| p.matches(name))
    }
}

impl Recipe {
    /// The preset called `name` with `skip` patterns.
    ///
    /// Errors: an unknown preset, a malformed pattern.
    pub fn new(name: &str, skip: &[String]) -> Result<Recipe> {
        let (_, text) = PRESETS.iter().find(|(n, _)| *n == name).ok_or_else(|| {
            let known: Vec<_> = PRESETS.iter().map(|(n, _)| *n).collect();
            Error::input("recipe is not known")
                .at("--recipe")
                .expected(format!("{}, or a file ending in .toml", known.join(", ")))
                .found(name)
        })?;
        let mut recipe = file::parse(text, name)?;
        recipe.canonical = None;
        recipe.skipping(skip)
    }

    /// A preset by name, or the file `asked` if that ends in `.toml`.
    ///
    /// Errors: those of [`Recipe::new`] and [`Recipe::parse`], a file that cannot be read.
    pub fn open(asked: &str, skip: &[String]) -> Result<Recipe> {
        let path = Path::new(asked);
        if path.extension().is_none_or(|e| e != "toml") {
            return Recipe::new(asked, skip);
        }
        let text = whole::text(path, whole::SMALL).map_err(|e| {
            let error = Error::io("cannot read the recipe", path.display(), &e);
            match PRESETS.iter().find(|(n, _)| asked.strip_suffix(".toml") == Some(n)) {
                Some((name, _)) => error.hint(format!("the preset is called {name}, without .toml")),
                None => error,
            }
        })?;
        Recipe::parse(&text, asked)?.skipping(skip)
    }

    /// A recipe from the text of a file called `name`.
    ///
    /// Errors: text that is not such a recipe, with the line.
    pub fn parse(text: &str, name: &str) -> Result<Recipe> {
        file::parse(text, name)
    }

    fn skipping(mut self, skip: &[String]) -> Result<Recipe> {
        let parse = |p: &String| Pattern::parse(p).map_err(|e| e.at("--skip"));
        self.skip = skip.iter().map(parse).collect::<Result<_>>()?;
        Ok(self)
    }

    /// What of the recipe takes calibration data to fit weights, if anything.
    pub fn fit(&self) -> Option<FitRecord> {
        let (bias_correction, rounding) = (self.bias_correction, self.rounding);
        (bias_correction || rounding != Rounding::Nearest).then_some(FitRecord { bias_correction, rounding })
    }

    /// The form kept in an artefact.
    pub fn record(&self) -> RecipeRecord {
        RecipeRecord {
            name: self.name.clone(),
            skip: self.skip.iter().map(|p| p.text.clone()).collect(),
            toml: self.canonical.clone(),
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
            return Err(Error::input("pattern is empty").found(format!("{text:?}")));
        }
        let expression = Regex::new(&source).map_err(|e| {
            // The last line says what is wrong; those before it draw an arrow.
            let why = e.to_string().lines().last().unwrap_or_default().replace("error: ", "");
            Error::input("pattern is not a regular expression").found(format!("{text:?}: {why}"))
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
mod tests;
