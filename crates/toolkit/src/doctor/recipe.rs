//! Which recipe left a file, as far as its bytes tell.

use super::findings::View;
use super::graph::Quantized;
use super::observers;
use super::subject::Form;
use super::weights::{Stored, numbered};
use qberta_store::Dtype;
use qberta_store::torch::inspect::Root;
use std::collections::BTreeSet;

/// The recipe in words.
pub(super) fn name(view: &View<'_>) -> String {
    let what = made_by(view);
    match &view.subject.root {
        Root::Wrapped(key) => format!("{what}; the state dict lies under {key:?} of a training checkpoint"),
        Root::Module(class) => format!("{what}; saved as a whole module of class {class}"),
        Root::Other(kind) => format!("{what}; the file holds {kind}"),
        Root::StateDict => what,
    }
}

fn made_by(view: &View<'_>) -> String {
    let subject = view.subject;
    let keys = || subject.entries.keys();
    match subject.form {
        Form::Unfinished => return "torch.save that stopped before it wrote anything".into(),
        Form::Onnx => return subject.graph.as_ref().map(Quantized::recipe).unwrap_or_default(),
        _ => {}
    }
    if let Some(method) = &subject.quantized_by {
        return format!("checkpoint quantized by {method}");
    }
    if keys().any(|k| k.ends_with("fake_quant_enabled")) {
        return "quantization-aware training, prepared and not converted".into();
    }
    if !view.observers.is_empty() {
        let histogram = keys().any(|k| k.ends_with(".histogram"));
        let kind = if histogram { "histogram observers" } else { "min-max observers" };
        return format!("static quantization, prepared and not converted ({kind})");
    }
    if keys().any(|k| numbered(k, "_frozen_param")) {
        return "PT2E, converted: weights are constants of an exported graph".into();
    }
    let graph = if keys().any(|k| numbered(k, "_scale_")) { "FX graph mode, " } else { "" };
    let types: BTreeSet<&str> = view.weights.quantized().map(|(_, q)| q.dtype.name()).collect();
    let types = types.into_iter().collect::<Vec<_>>().join(" and ");
    let linears = view.weights.parts.iter().any(|p| p.packed && !p.key.ends_with("_packed_weight"));
    let tables = view.weights.parts.iter().any(|p| p.key.ends_with("_packed_weight"));
    if view.weights.quantized().next().is_none() {
        if view.weights.parts.iter().any(|p| matches!(p.weight, Stored::Float(_))) {
            return "dynamic quantization to float16: weights are still float32".into();
        }
        if view.weights.plain.values().any(|t| t.dtype() == Dtype::I8) {
            return "int8 tensors beside float ones".into();
        }
        return "float: nothing is quantized".into();
    }
    let steps: BTreeSet<&str> = view
        .weights
        .quantized()
        .map(|(_, q)| if q.scales.len() > 1 { "per channel" } else { "per tensor" })
        .collect();
    let steps = steps.into_iter().collect::<Vec<_>>().join(" and ");
    if !observers::activations(subject).is_empty() {
        // QAT leaves the same keys once it is converted.
        return format!("{graph}static quantization or converted QAT, {types} weights {steps}");
    }
    match (linears, tables) {
        (true, true) => format!("{graph}dynamic quantization and embeddings, {types} weights {steps}"),
        (true, false) => format!("{graph}dynamic quantization, {types} weights {steps}"),
        (false, true) => format!("quantized embeddings, {types} weights {steps}"),
        (false, false) => format!("quantized tensors under their float names, {types} {steps}"),
    }
}
