//! What happens to the channels of quantized inputs, module by module: extra columns and smoothing.

use crate::outliers;
use crate::plan::Plan;
use crate::smooth::Shifts;
use qberta_model::Model;
use qberta_store::layout::{self, Role};
use qberta_store::manifest::{Input, Weight};
use std::collections::BTreeMap;

/// Extra columns and smoothing shifts by module.
pub(crate) type Channels = (BTreeMap<String, Vec<u32>>, Shifts);

/// What concerns modules of `plan`.
pub(crate) fn of_plan<T: Clone>(all: &BTreeMap<String, T>, plan: &Plan) -> BTreeMap<String, T> {
    let some = all.iter().filter(|(module, _)| plan.contains_key(*module));
    some.map(|(module, value)| (module.clone(), value.clone())).collect()
}

/// Whether the input of `module` can have extra columns: those of a 4-bit weight would need groups of their own, and
/// its rounding outweighs theirs (bench/record/2026-11-25_w4.md).
pub(crate) fn may_split(plan: &Plan, module: &str) -> bool {
    !plan.get(module).is_some_and(|d| matches!(d.weight, Weight::Int4(_)))
}

/// Extra columns for the outlier channels of every module whose input is quantized.
pub(crate) fn splits(model: &Model, plan: &Plan, smooth: &Shifts) -> BTreeMap<String, Vec<u32>> {
    layout::modules(model.architecture())
        .into_iter()
        .filter_map(|module| match (plan.get(&module.name), &module.role) {
            // The sites of one module share its input.
            (Some(d), Role::Linear(role)) if d.input != Input::Float && may_split(plan, &module.name) => {
                let shifts = smooth.get(&module.name);
                let columns = outliers::split(model, role.sites.first()?.0, shifts);
                Some((module.name, columns))
            }
            _ => None,
        })
        .filter(|(_, columns)| !columns.is_empty())
        .collect()
}
