//! Recipes from decisions: what a plan chose, as a file that anyone can read and run.

use super::file::{canonical, readable};
use super::{Pattern, Recipe, Rule, Scores, Values};
use crate::plan::{Plan, plan};
use qberta_model::{Architecture, Error, Result};
use qberta_store::layout;
use qberta_store::manifest::{Decision, Rounding};

/// The recipe that decides all linears and all attentions alike; of words only the weight counts.
pub(crate) fn uniform(name: &str, decision: Decision, scores: Scores, context: Values) -> Result<Recipe> {
    let mut recipe = Recipe {
        name: name.to_owned(),
        about: String::new(),
        linear_weight: decision.weight,
        linear_input: decision.input,
        word_weight: decision.weight,
        scores,
        context,
        rounding: Rounding::Nearest,
        bias_correction: false,
        smooth: None,
        rules: Vec::new(),
        skip: Vec::new(),
        canonical: None,
    };
    recipe.canonical = Some(canonical(&recipe)?);
    Ok(recipe)
}

impl Recipe {
    /// The text of a recipe file that decides as `wanted` does for models like `arch`: what most modules have
    /// first, then a rule for each other decision, with the modules by name.
    ///
    /// Errors: decisions that no recipe can say.
    pub fn text_of(name: &str, about: &str, arch: &Architecture, wanted: &Plan) -> Result<String> {
        let words: Vec<String> =
            layout::modules(arch).into_iter().filter(|m| m.is_word_matrix()).map(|m| m.name).collect();
        let is_word = |module: &String| words.contains(module);
        let linears: Vec<_> = wanted.iter().filter(|(m, d)| !is_word(m) && !d.of_attention()).collect();
        let usual = most(linears.iter().map(|(_, d)| **d)).unwrap_or(Decision::FLOAT);
        let word = most(wanted.iter().filter(|(m, _)| is_word(m)).map(|(_, d)| *d));
        let mut recipe = uniform(name, usual, Scores::Float, Values::Float)?;
        recipe.about = about.to_owned();
        recipe.word_weight = word.map_or(usual.weight, |d| d.weight);
        for (decision, modules) in others(linears.iter().map(|(m, d)| (*m, **d)), usual) {
            recipe.rules.push(rule(&modules, decision, true)?);
        }
        let word_decisions = wanted.iter().filter(|(m, _)| is_word(m)).map(|(m, d)| (m, *d));
        for (decision, modules) in others(word_decisions, word.unwrap_or(usual)) {
            recipe.rules.push(rule(&modules, decision, false)?);
        }
        for (scores, context) in
            [(Some(Scores::Int8), None), (Some(Scores::Static), None), (None, Some(Values::Int8))]
        {
            let decision = scores.and_then(Scores::decision).or(context.and_then(Values::decision));
            let coded: Vec<_> =
                wanted.iter().filter(|(_, d)| Some(**d) == decision).map(|(m, _)| m).collect();
            if coded.len() == arch.layers {
                recipe.scores = scores.unwrap_or(recipe.scores);
                recipe.context = context.unwrap_or(recipe.context);
            } else if !coded.is_empty() {
                recipe.rules.push(Rule { scores, context, weight: None, ..rule(&coded, usual, false)? });
            }
        }
        let text = readable(&recipe)?;
        match plan(arch, &Recipe::parse(&text, name)?)? == *wanted {
            true => Ok(text),
            false => Err(Error::input("no recipe says these decisions").at(name)),
        }
    }
}

/// The most frequent decision, the first of equals.
fn most(decisions: impl Iterator<Item = Decision>) -> Option<Decision> {
    let mut counts: Vec<(Decision, usize)> = Vec::new();
    for d in decisions {
        match counts.iter_mut().find(|(known, _)| *known == d) {
            Some((_, n)) => *n += 1,
            None => counts.push((d, 1)),
        }
    }
    let largest = counts.iter().map(|(_, n)| *n).max()?;
    counts.iter().find(|(_, n)| *n == largest).map(|(d, _)| *d)
}

/// Modules that are not `usual`, by decision.
fn others<'a>(
    decisions: impl Iterator<Item = (&'a String, Decision)>,
    usual: Decision,
) -> Vec<(Decision, Vec<&'a String>)> {
    let mut groups: Vec<(Decision, Vec<&String>)> = Vec::new();
    for (module, d) in decisions.filter(|(_, d)| *d != usual) {
        match groups.iter_mut().find(|(known, _)| *known == d) {
            Some((_, modules)) => modules.push(module),
            None => groups.push((d, vec![module])),
        }
    }
    groups
}

fn rule(modules: &[&String], decision: Decision, linear: bool) -> Result<Rule> {
    let modules = modules.iter().map(|m| Pattern::parse(m)).collect::<Result<_>>()?;
    let input = linear.then_some(decision.input);
    Ok(Rule {
        modules,
        weight: Some(decision.weight),
        input,
        scores: None,
        context: None,
        place: "plan".to_owned(),
    })
}
