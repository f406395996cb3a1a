//! Recipe and model to plan: one decision for every module that could be quantized, nothing left open.

use crate::recipe::{Preset, Recipe};
use qberta_model::{Architecture, Error, Result, Site, Slot};
use qberta_store::layout::{self, LinearRole, Module, Role};
use qberta_store::manifest::{Decision, Input, Weight};
use std::collections::BTreeMap;

/// What was decided, by module name.
pub type Plan = BTreeMap<String, Decision>;

/// Decides every quantizable module of `arch`: the encoder's linears, the word table, the vocabulary
/// projection.
///
/// Errors: a skip pattern that matches none of them, or patterns that leave nothing to quantize.
pub fn plan(arch: &Architecture, recipe: &Recipe) -> Result<Plan> {
    let modules = layout::modules(arch);
    let candidates: Vec<(&Module, Decision)> =
        modules.iter().filter_map(|m| default(m, recipe.preset).map(|d| (m, d))).collect();
    for pattern in &recipe.skip {
        if !candidates.iter().any(|(m, _)| pattern.matches(&m.name)) {
            let float = modules.iter().any(|m| pattern.matches(&m.name));
            let example = candidates.first().map_or("", |(m, _)| m.name.as_str());
            return Err(Error::input("pattern matches nothing that would be quantized")
                .at("--skip")
                .found(format!("{:?}", pattern.text()))
                .hint(if float {
                    "it names modules that stay in float anyway; drop the option".to_owned()
                } else {
                    format!("module names look like {example}; `qberta inspect` lists them all")
                }));
        }
    }
    let plan: Plan = candidates
        .into_iter()
        .map(|(m, d)| {
            let skipped = recipe.skip.iter().any(|p| p.matches(&m.name));
            (m.name.clone(), if skipped { Decision::FLOAT } else { d })
        })
        .collect();
    if plan.values().all(|d| d.weight == Weight::Float) {
        return Err(Error::input("every module is skipped: there is nothing left to quantize").at("--skip"));
    }
    Ok(plan)
}

/// The preset's decision for a module, `None` if the module is never quantized.
fn default(module: &Module, preset: Preset) -> Option<Decision> {
    let positions = |role: &LinearRole| {
        role.sites.iter().all(|(s, _)| matches!(s, Site::Layer(_, Slot::PositionKey | Slot::PositionQuery)))
    };
    match &module.role {
        // These run once, at load, on float input: no calibration data ever reaches them.
        Role::Linear(role) if role.encoder && preset == Preset::Static && positions(role) => {
            Some(Decision { input: Input::Float, weight: Weight::Int8Channel })
        }
        Role::Linear(role) if role.encoder && preset == Preset::Static => {
            Some(Decision { input: Input::TensorStatic, weight: Weight::Int8Channel })
        }
        // Asymmetric everywhere: the zero point costs one multiply-add per output in an epilogue that
        // runs anyway, and the step is never larger than the symmetric one (ARCHITECTURE.md, numerics).
        Role::Linear(role) if role.encoder => {
            Some(Decision { input: Input::TokenAsymmetric, weight: Weight::Int8Channel })
        }
        // The vocabulary projection is the word table again, or of its kind.
        Role::Table { site: Site::WordTable, .. } | Role::Vocabulary { .. } => {
            Some(Decision { input: Input::Float, weight: Weight::Int8Channel })
        }
        _ => None,
    }
}
