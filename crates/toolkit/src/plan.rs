//! Recipe and model to plan: one decision for every module that could be quantized, nothing left open.

use crate::recipe::{Pattern, Recipe, Rule, Scores, Values, impossible};
use qberta_model::{Architecture, Error, Result, Site, Slot};
use qberta_store::layout::{self, Module, Role};
use qberta_store::manifest::{Decision, Group, Input, Weight};
use std::collections::BTreeMap;

/// What was decided, by module name.
pub type Plan = BTreeMap<String, Decision>;

/// What of a module a recipe can decide.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A linear of the encoder: weight and input.
    Linear,
    /// The word table, or the vocabulary projection, which is the word table again or of its kind: the weight.
    Words,
    /// An attention: what its scores multiply.
    Scores,
    /// An attention's context: what its weights multiply.
    Context,
}

/// Decides every quantizable module of `arch`: the encoder's linears, the word table, the vocabulary
/// projection, and the attentions whose scores or context are to be int8. Rules count in order, the last to set a key decides
/// it; skipped modules are float.
///
/// Errors: a pattern that matches none of them, a rule that cannot be carried out, or a recipe that leaves
/// nothing to quantize.
pub fn plan(arch: &Architecture, recipe: &Recipe) -> Result<Plan> {
    let modules = layout::modules(arch);
    let candidates: Vec<(&Module, Kind)> = modules.iter().filter_map(|m| kind(m).map(|k| (m, k))).collect();
    let somewhere = |pattern: &Pattern, place: &str| -> Result<()> {
        if candidates.iter().any(|(m, _)| pattern.matches(&m.name)) {
            return Ok(());
        }
        let float = modules.iter().any(|m| pattern.matches(&m.name));
        let example = candidates.first().map_or("", |(m, _)| m.name.as_str());
        Err(Error::input("pattern matches nothing that would be quantized")
            .at(place)
            .found(format!("{:?}", pattern.text()))
            .hint(if float {
                "it names modules that stay in float anyway; drop it".to_owned()
            } else {
                format!("module names look like {example}; `qberta inspect` lists them all")
            }))
    };
    for rule in &recipe.rules {
        rule.modules.iter().try_for_each(|p| somewhere(p, &rule.place))?;
        is_possible(rule, &candidates, arch)?;
    }
    recipe.skip.iter().try_for_each(|p| somewhere(p, "--skip"))?;
    if recipe.context != Values::Float && arch.talking_heads {
        return Err(no_context(&recipe.name));
    }
    let mut plan = Plan::new();
    for (module, kind) in candidates {
        let decision = match kind {
            Kind::Scores => said(module, recipe, |r| r.scores, recipe.scores).and_then(Scores::decision),
            Kind::Context => said(module, recipe, |r| r.context, recipe.context).and_then(Values::decision),
            Kind::Linear | Kind::Words => Some(decide(module, kind, recipe)?),
        };
        if let Some(decision) = decision {
            divides(module, decision)?;
            plan.insert(module.name.clone(), decision);
        }
    }
    if plan.values().all(|d| *d == Decision::FLOAT) {
        return Err(Error::input("every module stays in float: there is nothing left to quantize")
            .at(if recipe.skip.is_empty() { "--recipe" } else { "--skip" }));
    }
    Ok(plan)
}

/// Whether some input of the plan has a stored grid, which data set.
pub(crate) fn is_static(plan: &Plan) -> bool {
    plan.values().any(|d| d.input.is_static())
}

/// Whether data are needed to carry the plan out.
pub(crate) fn takes_data(plan: &Plan, recipe: &Recipe) -> bool {
    is_static(plan) || recipe.fit().is_some() || recipe.smooth.is_some()
}

/// Whether models like `arch` are quantized by `recipe` with calibration data.
///
/// Errors: those of [`plan`].
pub fn needs_calibration(arch: &Architecture, recipe: &Recipe) -> Result<bool> {
    Ok(takes_data(&plan(arch, recipe)?, recipe))
}

/// Checks that each key of `rule` is about something that it matches.
fn is_possible(rule: &Rule, candidates: &[(&Module, Kind)], arch: &Architecture) -> Result<()> {
    let of =
        |kinds: &[Kind]| candidates.iter().any(|(m, k)| kinds.contains(k) && meant(|n| rule.matches(n), m));
    let called = |kind: Kind| {
        let example = candidates.iter().find(|(_, k)| *k == kind).map_or("", |(m, _)| m.name.as_str());
        format!("such modules are called like {example}")
    };
    let refused = |what: &str, hint: &str| Err(Error::input(what).at(&rule.place).hint(hint));
    if rule.scores.is_some() && !of(&[Kind::Scores]) {
        return refused("rule sets the scores of modules that compute none", &called(Kind::Scores));
    }
    if rule.context == Some(Values::Int8) && arch.talking_heads {
        return Err(no_context(&rule.place));
    }
    if rule.context.is_some() && !of(&[Kind::Context]) && !arch.talking_heads {
        return refused("rule sets the context of modules that compute none", &called(Kind::Context));
    }
    if rule.input.is_some() && !of(&[Kind::Linear]) {
        let what = "rule sets the input of modules that have none: only linears have";
        return refused(what, "drop input, or match a linear");
    }
    if rule.weight.is_some() && !of(&[Kind::Linear, Kind::Words]) {
        let what = "rule sets the weight of modules that have none: an attention computes scores and context";
        return refused(what, "set scores or context, or match a linear or a word table");
    }
    Ok(())
}

/// Whether `matches` is about `module`: a context is meant by the name of its attention too.
fn meant(matches: impl Fn(&str) -> bool, module: &Module) -> bool {
    let attention =
        module.name.strip_suffix(".context").filter(|_| matches!(module.role, Role::Context { .. }));
    matches(&module.name) || attention.is_some_and(matches)
}

/// What the last rule for `module` says, or the section; `None` if the module is skipped.
fn said<T>(module: &Module, recipe: &Recipe, of: impl Fn(&Rule) -> Option<T>, section: T) -> Option<T> {
    if recipe.skip.iter().any(|p| meant(|n| p.matches(n), module)) {
        return None;
    }
    let rules = recipe.rules.iter().rev().filter(|r| meant(|n| r.matches(n), module));
    Some(rules.filter_map(of).next().unwrap_or(section))
}

fn no_context(place: &str) -> Error {
    Error::input("this model has talking heads, which mix attention weights in float")
        .at(place)
        .expected("an attention context in float")
        .hint("choose another preset, or say context = \"float\" under [attention] in a recipe file")
}

fn decide(module: &Module, kind: Kind, recipe: &Recipe) -> Result<Decision> {
    let name = module.name.as_str();
    let mut weight = if kind == Kind::Linear { recipe.linear_weight } else { recipe.word_weight };
    let mut input = if kind == Kind::Linear { recipe.linear_input } else { Input::Float };
    // The rule that set each, counted from 1; the sections count as 0.
    let (mut weight_by, mut input_by) = (0, 0);
    for (number, rule) in (1..).zip(&recipe.rules).filter(|(_, r)| r.matches(name)) {
        if let Some(asked) = rule.weight {
            (weight, weight_by) = (asked, number);
        }
        if let (Some(asked), Kind::Linear) = (rule.input, kind) {
            (input, input_by) = (asked, number);
        }
    }
    if recipe.skip.iter().any(|p| p.matches(name)) {
        return Ok(Decision::FLOAT);
    }
    if !weight.is_coded() && input != Input::Float {
        // A later rule that makes the weight float takes the input with it; the reverse is a contradiction.
        if input_by > weight_by {
            let place = recipe.rules.get(input_by - 1).map_or(recipe.name.as_str(), |r| r.place.as_str());
            return Err(impossible(format!("{place}: {name}")));
        }
        input = Input::Float;
    }
    if input == Input::TensorStatic && only_positions(module) {
        input = Input::Float;
    }
    Ok(Decision { input, weight })
}

/// Whether a vocabulary projection that is tied to the word table gets weights of its own: Hugging Face cannot tie
/// quantized weights, and weights stored differently are not the same.
pub(crate) fn unties(arch: &Architecture, plan: &Plan) -> bool {
    let words = layout::modules(arch).into_iter().filter(Module::is_word_matrix);
    let weights: Vec<Weight> = words.map(|m| plan.get(&m.name).map_or(Weight::Float, |d| d.weight)).collect();
    weights.iter().any(|w| w.is_coded() || *w != weights[0])
}

/// Checks that 4-bit groups divide the inputs of `module`, or the width of a table.
fn divides(module: &Module, decision: Decision) -> Result<()> {
    let (Weight::Int4(group), Some(inputs)) = (decision.weight, inputs(module)) else { return Ok(()) };
    if inputs.is_multiple_of(group.inputs()) {
        return Ok(());
    }
    let fitting: Vec<_> =
        Group::ALL.into_iter().map(Group::inputs).filter(|g| inputs.is_multiple_of(*g)).collect();
    Err(Error::input(format!("groups of {} do not divide the {inputs} inputs of a module", group.inputs()))
        .at(&module.name)
        .expected(match &fitting[..] {
            [] => "weight = \"int8\" for it, in a rule of a recipe file".to_owned(),
            some => format!("group = {}", some.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ")),
        }))
}

/// Values in a row of a module's weight.
fn inputs(module: &Module) -> Option<usize> {
    match &module.role {
        Role::Linear(role) => Some(role.inp),
        Role::Table { width, .. } => Some(*width),
        Role::Vocabulary { inp, .. } => Some(*inp),
        _ => None,
    }
}

/// Whether a module serves the relative table alone. It runs once, at load, on float input: no calibration
/// data ever reach it.
fn only_positions(module: &Module) -> bool {
    let position = |s: Site| matches!(s, Site::Layer(_, Slot::PositionKey | Slot::PositionQuery));
    matches!(&module.role, Role::Linear(role) if role.sites.iter().all(|(s, _)| position(*s)))
}

/// What a recipe can decide about a module, `None` if it is never quantized.
fn kind(module: &Module) -> Option<Kind> {
    match &module.role {
        Role::Linear(role) if role.encoder => Some(Kind::Linear),
        Role::Table { site: Site::WordTable, .. } | Role::Vocabulary { .. } => Some(Kind::Words),
        Role::Scores { .. } => Some(Kind::Scores),
        Role::Context { .. } => Some(Kind::Context),
        _ => None,
    }
}
