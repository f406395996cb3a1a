//! Findings of ONNX graphs: what is int8, what was left in float, what is missing.

use super::{Finding, View, claims_quantized, note, problem};
use crate::doctor::graph::Quantized;
use crate::doctor::subject::Form;
use qberta_store::safetensors::show;
use qberta_store::torch::globals::QDtype;

/// A node by its name, or by what it reads where it has none.
fn label(node: &str, weight: &str) -> String {
    if node.is_empty() { format!("a node without a name, on {}", show(weight)) } else { show(node) }
}

/// Always: what the graph is.
pub(super) fn onnx(view: &View<'_>) -> Option<Finding> {
    let q = view.subject.graph.as_ref()?;
    let opset = q.graph.opsets.get("").map_or("no opset".to_owned(), |v| format!("opset {v}"));
    let by = if q.graph.producer.is_empty() { "a program without a name" } else { &q.graph.producer };
    let mut lines = vec![format!("{} nodes, {opset}, written by {}", q.graph.nodes.len(), show(by))];
    let (float, all) = (q.float().len(), q.found.products.len());
    for (runs, n) in q.runs() {
        lines.push(format!("{}: {n} of {all} products and tables", runs.describe()));
    }
    if float > 0 {
        lines.push(format!("float: {float} of {all} products and tables"));
    }
    if !q.found.activations.is_empty() {
        lines.push(format!("{} stored grids of activations", q.found.activations.len()));
    }
    note("onnx-graph", lines)
}

pub(super) fn incomplete(view: &View<'_>) -> Option<Finding> {
    let q = view.subject.graph.as_ref()?;
    let absent = q.graph.absent.iter().map(|(name, why)| format!("{}: {why}", show(name)));
    let dangling = q.dangling();
    let dangling =
        dangling.iter().map(|n| format!("{}: read by a node, made by none and not stored", show(n)));
    let misfits = q.found.misfits.iter().cloned();
    problem("onnx-incomplete", absent.chain(dangling).chain(misfits).collect())
}

pub(super) fn nothing_quantized(view: &View<'_>) -> Option<Finding> {
    let q = view.subject.graph.as_ref()?;
    let quantized = !q.runs().is_empty() || !q.found.activations.is_empty();
    if quantized || q.found.products.is_empty() || !claims_quantized(view) {
        return None;
    }
    let said = "the name of the file says that it is quantized".to_owned();
    problem(
        "nothing-quantized",
        vec![format!("all {} products and tables are float", q.found.products.len()), said],
    )
}

/// Every stored grid of activations is the one that nobody chose.
pub(super) fn never_calibrated(view: &View<'_>) -> Option<Finding> {
    let grids = &view.subject.graph.as_ref()?.found.activations;
    let all = grids.iter().all(|a| a.scale == 1.0 && a.zero_point == 0.0);
    let lines = grids.iter().map(|a| format!("{}: scale 1, zero point 0", label(&a.node, "")));
    all.then(|| problem("never-calibrated", lines.collect())).flatten()
}

/// Products that are still float where others are int8.
pub(super) fn partly_float(view: &View<'_>) -> Option<Finding> {
    let q = view.subject.graph.as_ref().filter(|q| !q.runs().is_empty())?;
    let float = q.float();
    let line = |(p, bytes): &(&qberta_store::onnx::Product, usize)| {
        let share = 100.0 * *bytes as f64 / view.subject.bytes.max(1) as f64;
        format!("{} ({}): {bytes} bytes, {share:.1} % of the file", label(&p.node, &p.weight), show(&p.op))
    };
    note("partly-float", float.iter().map(line).collect())
}

pub(super) fn stored_twice(view: &View<'_>) -> Option<Finding> {
    let twins = view.subject.graph.as_ref()?.twins();
    let line =
        |(name, bytes): &(&str, usize)| format!("{}: {bytes} bytes of float beside its codes", show(name));
    note("stored-twice", twins.iter().map(line).collect())
}

/// Full eight bits times unsigned bytes: older instructions add two such products in 16 bits.
pub(super) fn engine_dependent(view: &View<'_>) -> Option<Finding> {
    let q = view.subject.graph.as_ref()?;
    let wide = |q: &Quantized, weight: &str| {
        q.found
            .weights
            .get(weight)
            .is_some_and(|w| w.dtype == QDtype::QInt8 && w.codes().iter().any(|c| !(-64..=64).contains(c)))
    };
    let products = q.found.products.iter().filter(|p| p.unsigned && !p.table && wide(q, &p.weight));
    note("engine-dependent", products.map(|p| label(&p.node, &p.weight)).collect())
}

/// Whether the subject is a graph, for checks that know PyTorch's names only.
pub(super) fn is_graph(view: &View<'_>) -> bool {
    view.subject.form == Form::Onnx
}
