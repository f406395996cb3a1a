//! The TOML form of recipes.

use super::{PRESETS, Pattern, Recipe, Rule, Scores, Values};
use qberta_model::{Error, Result};
use qberta_store::manifest::{Group, Input, Rounding, Weight};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Spanned<String>,
    about: Option<String>,
    base: Option<Spanned<String>>,
    rounding: Option<Rounding>,
    bias_correction: Option<bool>,
    smooth: Option<Spanned<f64>>,
    linears: Option<Spanned<Linears>>,
    words: Option<Spanned<Words>>,
    attention: Option<Attention>,
    #[serde(default)]
    rules: Vec<Spanned<RuleText>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Linears {
    weight: Option<WeightName>,
    group: Option<u32>,
    input: Option<InputName>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    weight: WeightName,
    group: Option<u32>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attention {
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Values>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    modules: Spanned<OneOrMore>,
    weight: Option<WeightName>,
    group: Option<u32>,
    input: Option<InputName>,
    scores: Option<Scores>,
    context: Option<Values>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a pattern or a list of patterns")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WeightName {
    Float,
    Bf16,
    Int8,
    Int4,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum InputName {
    Float,
    DynamicSymmetric,
    DynamicAsymmetric,
    Static,
}

/// The group of 4-bit weights that name none.
const GROUP: Group = Group::G64;

impl WeightName {
    /// The weight with what `group` says.
    fn weight(self, group: Option<u32>, place: &str) -> Result<Weight> {
        let group = match group {
            None => None,
            Some(n) => Some(Group::of(n as usize).ok_or_else(|| {
                Error::input("group is not one that kernels run").at(place).expected("32, 64 or 128").found(n)
            })?),
        };
        match (self, group) {
            (WeightName::Int4, group) => Ok(Weight::Int4(group.unwrap_or(GROUP))),
            (_, Some(_)) => Err(stray_group(place)),
            (WeightName::Float, None) => Ok(Weight::Float),
            (WeightName::Bf16, None) => Ok(Weight::Bf16),
            (WeightName::Int8, None) => Ok(Weight::Int8Channel),
        }
    }

    fn is_float(self) -> bool {
        matches!(self, WeightName::Float | WeightName::Bf16)
    }

    fn of(weight: Weight) -> (WeightName, Option<u32>) {
        match weight {
            Weight::Float => (WeightName::Float, None),
            Weight::Bf16 => (WeightName::Bf16, None),
            Weight::Int8Channel => (WeightName::Int8, None),
            Weight::Int4(group) => (WeightName::Int4, Some(group.inputs() as u32)),
        }
    }
}

fn stray_group(place: &str) -> Error {
    Error::input("only 4-bit weights have groups").at(place).expected("weight = \"int4\" beside group")
}

impl InputName {
    const ALL: [(InputName, Input); 4] = [
        (InputName::Float, Input::Float),
        (InputName::DynamicSymmetric, Input::TokenSymmetric),
        (InputName::DynamicAsymmetric, Input::TokenAsymmetric),
        (InputName::Static, Input::TensorStatic),
    ];

    fn input(self) -> Input {
        InputName::ALL.iter().find(|(n, _)| *n == self).map_or(Input::Float, |(_, i)| *i)
    }

    fn of(input: Input) -> InputName {
        InputName::ALL.iter().find(|(_, i)| *i == input).map_or(InputName::Float, |(n, _)| *n)
    }
}

/// The canonical form: everything said, in one order, the base worked in.
#[derive(Serialize)]
struct Canonical<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    about: &'a str,
    #[serde(skip_serializing_if = "is_default")]
    rounding: Rounding,
    #[serde(skip_serializing_if = "is_default")]
    bias_correction: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    smooth: Option<f64>,
    linears: CanonicalLinears,
    words: CanonicalWords,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<Attention>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<CanonicalRule<'a>>,
}

#[derive(Serialize)]
struct CanonicalLinears {
    weight: WeightName,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    input: InputName,
}

#[derive(Serialize)]
struct CanonicalWords {
    weight: WeightName,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
}

#[derive(Serialize)]
struct CanonicalRule<'a> {
    modules: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<WeightName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<InputName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Values>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Longer files are not recipes.
const LONGEST: usize = 1 << 20;

/// Parses the text of the file called `at`.
pub(super) fn parse(text: &str, at: &str) -> Result<Recipe> {
    let line = |span: &Range<usize>| {
        let before = text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count();
        format!("{at} line {}", before + 1)
    };
    if text.len() > LONGEST {
        return Err(Error::input("recipe is too long").at(at).expected(format!("at most {LONGEST} bytes")));
    }
    let file: File = toml::from_str(text).map_err(|e| {
        let place = e.span().map_or_else(|| at.to_owned(), |span| line(&span));
        Error::input("recipe cannot be read").at(place).found(e.message().trim())
    })?;
    let preset = |name: &str| PRESETS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
    let mut recipe = match &file.base {
        Some(base) => match preset(base.get_ref()) {
            Some(text) if base.get_ref() != at => parse(text, base.get_ref())?,
            _ => {
                let known: Vec<_> = PRESETS.iter().map(|(n, _)| *n).collect();
                return Err(Error::input("base is not a preset")
                    .at(line(&base.span()))
                    .expected(known.join(", "))
                    .found(base.get_ref()));
            }
        },
        None => Recipe {
            name: String::new(),
            about: String::new(),
            linear_weight: Weight::Float,
            linear_input: Input::Float,
            word_weight: Weight::Float,
            scores: Scores::Float,
            context: Values::Float,
            rounding: Rounding::Nearest,
            bias_correction: false,
            smooth: None,
            rules: Vec::new(),
            skip: Vec::new(),
            canonical: None,
        },
    };
    let name = file.name.get_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(Error::input("recipe has no usable name")
            .at(line(&file.name.span()))
            .expected("at most 64 letters, digits, dots, dashes and underscores")
            .found(format!("{name:?}")));
    }
    if preset(name).is_some_and(|known| known != text) {
        return Err(Error::input("recipe has the name of a preset")
            .at(line(&file.name.span()))
            .found(name)
            .hint("artefacts record the name: choose another, and base = \"..\" to start from the preset"));
    }
    recipe.name = name.clone();
    recipe.about = file.about.unwrap_or_default();
    recipe.rounding = file.rounding.unwrap_or(recipe.rounding);
    recipe.bias_correction = file.bias_correction.unwrap_or(recipe.bias_correction);
    if let Some(alpha) = &file.smooth {
        if !(0.0..=1.0).contains(alpha.get_ref()) {
            return Err(Error::input("smoothing is no part of the way from activations to weights")
                .at(line(&alpha.span()))
                .expected("a number from 0 to 1; 0.5 is usual")
                .found(alpha.get_ref()));
        }
        recipe.smooth = Some(*alpha.get_ref());
    }
    if let Some(section) = &file.linears {
        let Linears { weight, group, input } = *section.get_ref();
        if weight.is_some_and(WeightName::is_float) && input.is_some_and(|i| i != InputName::Float) {
            return Err(impossible(line(&section.span())));
        }
        match (weight, group) {
            (Some(weight), group) => recipe.linear_weight = weight.weight(group, &line(&section.span()))?,
            (None, Some(_)) => return Err(stray_group(&line(&section.span()))),
            (None, None) => {}
        }
        if let Some(input) = input {
            recipe.linear_input = input.input();
        }
    }
    if let Some(section) = &file.words {
        let Words { weight, group } = *section.get_ref();
        recipe.word_weight = weight.weight(group, &line(&section.span()))?;
    }
    if let Some(Attention { scores, context }) = file.attention {
        recipe.scores = scores.unwrap_or(recipe.scores);
        recipe.context = context.unwrap_or(recipe.context);
    }
    for rule in &file.rules {
        let place = line(&rule.get_ref().modules.span());
        let RuleText { modules, weight, group, input, scores, context } = rule.get_ref();
        let texts: &[String] = match modules.get_ref() {
            OneOrMore::One(text) => std::slice::from_ref(text),
            OneOrMore::More(texts) => texts,
        };
        if texts.is_empty() {
            return Err(Error::input("rule has no pattern").at(place));
        }
        if weight.is_none() && group.is_some() {
            return Err(stray_group(&place));
        }
        if weight.is_none() && input.is_none() && scores.is_none() && context.is_none() {
            return Err(Error::input("rule decides nothing")
                .at(place)
                .expected("weight = \"..\", input = \"..\", scores = \"..\" or context = \"..\""));
        }
        if weight.is_some_and(WeightName::is_float) && input.is_some_and(|i| i != InputName::Float) {
            return Err(impossible(place));
        }
        let parsed = |text: &String| Pattern::parse(text).map_err(|e| e.at(&place));
        recipe.rules.push(Rule {
            modules: texts.iter().map(parsed).collect::<Result<_>>()?,
            weight: weight.map(|w| w.weight(*group, &place)).transpose()?,
            input: input.map(InputName::input),
            scores: *scores,
            context: *context,
            place: place.clone(),
        });
    }
    recipe.canonical = Some(canonical(&recipe)?);
    Ok(recipe)
}

/// The error for a quantized input of a float weight.
pub(crate) fn impossible(place: impl std::fmt::Display) -> Error {
    Error::input("a float weight takes a float input")
        .at(place)
        .expected("input = \"float\", or weight = \"int8\" or \"int4\"")
        .hint("an integer product needs codes on both sides")
}

/// Everything that `recipe` says, in one order.
fn form(recipe: &Recipe) -> Canonical<'_> {
    let rules = recipe.rules.iter().map(|r| CanonicalRule {
        modules: r.modules.iter().map(Pattern::text).collect(),
        weight: r.weight.map(|w| WeightName::of(w).0),
        group: r.weight.and_then(|w| WeightName::of(w).1),
        input: r.input.map(InputName::of),
        scores: r.scores,
        context: r.context,
    });
    let attention = Attention {
        scores: (recipe.scores != Scores::Float).then_some(recipe.scores),
        context: (recipe.context != Values::Float).then_some(recipe.context),
    };
    let ((weight, group), (words, words_group)) =
        (WeightName::of(recipe.linear_weight), WeightName::of(recipe.word_weight));
    Canonical {
        name: &recipe.name,
        about: &recipe.about,
        rounding: recipe.rounding,
        bias_correction: recipe.bias_correction,
        smooth: recipe.smooth,
        linears: CanonicalLinears { weight, group, input: InputName::of(recipe.linear_input) },
        words: CanonicalWords { weight: words, group: words_group },
        attention: (attention.scores.is_some() || attention.context.is_some()).then_some(attention),
        rules: rules.collect(),
    }
}

pub(super) fn canonical(recipe: &Recipe) -> Result<String> {
    toml::to_string(&form(recipe)).map_err(|e| unwritable(recipe, e))
}

/// The canonical form, a module a line.
pub(super) fn readable(recipe: &Recipe) -> Result<String> {
    toml::to_string_pretty(&form(recipe)).map_err(|e| unwritable(recipe, e))
}

fn unwritable(recipe: &Recipe, e: toml::ser::Error) -> Error {
    Error::input("recipe cannot be written").at(&recipe.name).found(e)
}
