//! Findings in the numbers themselves: scales, codes, values, and what makes engines differ.

use super::{Finding, View, note, problem};
use crate::doctor::observers;
use crate::doctor::weights::{Part, saturated};
use qberta_store::Tensor;
use qberta_store::torch::Quantized;
use qberta_store::torch::globals::QDtype;

/// One line for each weight with scales that `bad` selects, and for each grid of activations.
fn scales(view: &View<'_>, bad: fn(f64) -> bool) -> Vec<String> {
    let line = |(part, q): (&Part, &Quantized)| {
        let at: Vec<usize> = (0..q.scales.len()).filter(|&i| bad(q.scales[i])).collect();
        let first = *at.first()?;
        Some(match q.scales.len() {
            1 => format!("{}: scale {}", part.module, q.scales[0]),
            n => {
                format!("{}: scale {} in channel {first} ({} of {n})", part.module, q.scales[first], at.len())
            }
        })
    };
    let mut lines: Vec<String> = view.weights.quantized().filter_map(line).collect();
    let stored = observers::activations(view.subject).into_iter().map(|a| (a.module, a.scale));
    let graph =
        view.subject.graph.iter().flat_map(|g| &g.found.activations).map(|a| (a.node.clone(), a.scale));
    let activations = stored.chain(graph).filter(|(_, s)| bad(*s));
    lines.extend(activations.map(|(module, s)| format!("{module}: scale {s} of its output")));
    lines
}

pub(super) fn non_finite_scale(view: &View<'_>) -> Option<Finding> {
    let mut lines = scales(view, |s| !(s as f32).is_finite());
    let nan = view.observers.iter().filter(|o| o.nan);
    lines.extend(nan.map(|o| format!("{}: saw NaN, so its range is NaN", o.name)));
    problem("non-finite-scale", lines)
}

pub(super) fn zero_scale(view: &View<'_>) -> Option<Finding> {
    problem("zero-scale", scales(view, |s| s as f32 == 0.0))
}

pub(super) fn non_finite_value(view: &View<'_>) -> Option<Finding> {
    let bad = |(name, t): (&String, &Tensor)| t.first_non_finite().map(|i| format!("{name}: element {i}"));
    problem("non-finite-value", view.weights.plain.iter().filter_map(bad).collect())
}

pub(super) fn saturated_channels(view: &View<'_>) -> Option<Finding> {
    let line = |(part, q): (&Part, &Quantized)| {
        let full = saturated(q);
        let first = *full.first()?;
        Some(format!("{}: {} channels, the first is {first}", part.module, full.len()))
    };
    problem("saturated-channels", view.weights.quantized().filter_map(line).collect())
}

pub(super) fn reduce_range(view: &View<'_>) -> Option<Finding> {
    let mut lines = Vec::new();
    // The symmetric seven bits of onnxruntime end at 64.
    let most = if view.subject.graph.is_some() { 64 } else { 63 };
    let mut weights = view.weights.quantized().filter(|(_, q)| q.dtype == QDtype::QInt8).peekable();
    if weights.peek().is_some() && weights.all(|(_, q)| q.codes().iter().all(|c| (-64..=most).contains(c))) {
        lines.push(format!("every weight code lies in -64..{most}"));
    }
    for o in &view.observers {
        if let Some((low, high)) = o.codes.filter(|(low, high)| high - low == 127.0) {
            lines.push(format!("{}: codes {low} to {high}", o.name));
        } else if let (Some((low, high)), Some(scale), false) = (o.range, o.scale, o.weight) {
            let width = high.max(0.0) - low.min(0.0);
            // 127 and 127.5 (a symmetric full range) are 0.4 % apart.
            if width > 0.0 && (scale * 127.0 / width - 1.0).abs() < 1e-3 {
                lines.push(format!("{}: scale {scale} is the range / 127", o.name));
            }
        }
    }
    note("reduce-range", lines)
}

/// Dynamic linears choose the grid of their inputs while running, and engines choose differently.
pub(super) fn engine_dependent(view: &View<'_>) -> Option<Finding> {
    let dynamic = view.weights.quantized().filter(|(p, q)| {
        p.packed && q.dtype == QDtype::QInt8 && observers::is_dynamic(view.subject, &p.module)
    });
    note("engine-dependent", dynamic.map(|(p, _)| p.module.clone()).collect())
}
