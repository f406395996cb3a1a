//! Findings about what feeds int8 modules.

use super::{Finding, View, problem};
use crate::doctor::observers;
use crate::doctor::weights::numbered;

/// Static int8 linears want int8 input, which a `Quantize` module makes, or a graph that was rewritten.
pub(super) fn unquantized_input(view: &View<'_>) -> Option<Finding> {
    let subject = view.subject;
    if super::graph::is_graph(view) || subject.entries.keys().any(|k| numbered(k, "_scale_")) {
        return None;
    }
    let linears: Vec<&str> = view
        .weights
        .parts
        .iter()
        .filter(|p| p.packed && observers::is_static(subject, &p.module))
        .map(|p| p.module.as_str())
        .collect();
    let (live, idle): (Vec<_>, Vec<_>) = observers::quantizers(subject).into_iter().partition(|q| q.called());
    // Without calibration every grid is 1, and nothing tells which of the modules are called.
    let blank = observers::activations(subject).iter().all(|a| a.scale == 1.0 && a.zero_point == 0.0);
    if linears.is_empty() || !live.is_empty() || (blank && !idle.is_empty()) {
        return None;
    }
    let mut lines: Vec<String> =
        idle.iter().map(|q| format!("{}: scale 1, zero point 0: it was never called", q.module)).collect();
    let none = "no module of the file quantizes an input".to_owned();
    lines.extend(idle.is_empty().then_some(none));
    lines.extend(linears.iter().map(|m| format!("{m} wants int8 input")));
    problem("unquantized-input", lines)
}
