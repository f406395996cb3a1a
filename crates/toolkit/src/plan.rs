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
    let attention = candidates.iter().find(|(_, k)| *k == Kind::Scores).map(|(m, _)| m.name.clone());
    for rule in &recipe.rules {
        rule.modules.iter().try_for_each(|p| somewhere(p, &rule.place))?;
        let of = |kind: Kind| candidates.iter().any(|(m, k)| *k == kind && rule.matches(&m.name));
        if rule.scores.is_some() && !of(Kind::Scores) {
            return Err(Error::input("rule sets the scores of modules that compute none")
                .at(&rule.place)
                .hint(format!("attentions are called like {}", attention.unwrap_or_default())));
        }
        if rule.context.is_some() && !of(Kind::Context) {
            return Err(no_context(arch, &rule.place, &attention.unwrap_or_default()));
        }
        if rule.input.is_some() && !of(Kind::Linear) {
            return Err(Error::input("rule sets the input of modules that have none: a table is looked up")
                .at(&rule.place)
                .hint("drop input, or match a linear"));
        }
    }
    recipe.skip.iter().try_for_each(|p| somewhere(p, "--skip"))?;
    if recipe.context != Values::Float && arch.talking_heads {
        return Err(no_context(arch, &recipe.name, ""));
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

/// What the last rule for `module` says, or the section; `None` if the module is skipped.
fn said<T>(module: &Module, recipe: &Recipe, of: impl Fn(&Rule) -> Option<T>, section: T) -> Option<T> {
    if recipe.skip.iter().any(|p| p.matches(&module.name)) {
        return None;
    }
    let rules = recipe.rules.iter().rev().filter(|r| r.matches(&module.name));
    Some(rules.filter_map(of).next().unwrap_or(section))
}

fn no_context(arch: &Architecture, place: &str, attention: &str) -> Error {
    if arch.talking_heads {
        return Error::input("talking heads mix attention weights in float")
            .at(place)
            .expected("context = \"float\"")
            .hint("leave context out for this model");
    }
    Error::input("rule sets the context of modules that compute none")
        .at(place)
        .hint(format!("attentions are called like {attention}"))
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
