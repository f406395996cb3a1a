//! What is wrong with a file, each with its evidence.

mod graph;
mod inputs;
mod numbers;
mod tied;

use super::advice;
use super::base::Base;
use super::observers::{self, Observer};
use super::subject::{Form, Subject};
use super::weights::Weights;
use qberta_store::checkpoint::WEIGHT_FILES;
use qberta_store::safetensors::show;
use qberta_store::torch::Entry;
use qberta_store::torch::inspect::{Damage, Format, Root};
use qberta_store::{Dtype, Tensor};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most lines of evidence kept.
const LISTED: usize = 8;
/// Most characters of a line.
const LONGEST: usize = 400;

/// Whether a finding makes a file unsound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is wrong.
    Problem,
    /// As its maker meant it, and worth knowing.
    Note,
}

/// One thing there is to say about a file.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// A stable name.
    pub name: &'static str,
    /// Whether it makes the file unsound.
    pub severity: Severity,
    /// Tensors and numbers, at most eight lines.
    pub evidence: Vec<String>,
    /// How many there are altogether.
    pub count: usize,
    /// The line of PyTorch that does it.
    pub cause: &'static str,
    /// The right way.
    pub cure: &'static str,
}

impl Finding {
    /// A finding with its advice; `count` may exceed the lines of evidence.
    /// Names come from the file, so control characters in them are escaped: a terminal would obey them.
    pub fn new(name: &'static str, severity: Severity, mut evidence: Vec<String>, count: usize) -> Finding {
        evidence.truncate(LISTED);
        for line in &mut evidence {
            if line.contains(char::is_control) {
                *line = line.escape_debug().to_string();
            }
            if let Some((end, _)) = line.char_indices().nth(LONGEST) {
                line.truncate(end);
                line.push_str("...");
            }
        }
        let (cause, cure) = advice::of(name);
        Finding { name, severity, evidence, count, cause, cure }
    }
}

/// A file from every side that the findings look at.
pub struct View<'s> {
    /// The file.
    pub subject: &'s Subject,
    /// Its weights.
    pub weights: Weights,
    /// The checkpoint it should fit.
    pub base: Option<&'s Base>,
    pub(super) observers: Vec<Observer>,
    /// Its parameters under the names of the base; empty without one, or where it holds no encoder.
    canonical: BTreeMap<String, Tensor>,
}

impl<'s> View<'s> {
    /// Looks at `subject`.
    pub fn new(subject: &'s Subject, base: Option<&'s Base>) -> View<'s> {
        let weights = Weights::of(subject);
        // The names of a graph's weights are the exporter's.
        let named = base.filter(|_| subject.form != Form::Onnx);
        let canonical = named.and_then(|b| b.canonical(weights.by_name()).ok()).unwrap_or_default();
        View { subject, base, observers: observers::observers(subject), canonical, weights }
    }

    /// Parameters of the float model that `load_state_dict(..., strict=False)` would not find in the file:
    /// those of the base, or without one those that are packed. Nothing where a file is not loaded that way.
    pub fn left_random(&self) -> Vec<String> {
        let Form::Torch(Format::Zip | Format::Legacy) = &self.subject.form else { return Vec::new() };
        let missing =
            |n: &&String| !self.weights.plain.contains_key(*n) || self.subject.unwrapped.contains(*n);
        match self.base {
            Some(base) => base.used.iter().filter(missing).cloned().collect(),
            None => {
                let packed = self.weights.parts.iter().filter(|p| p.packed);
                let names = packed.flat_map(|p| {
                    let bias = p.bias.as_ref().map(|_| format!("{}.bias", p.module));
                    [Some(format!("{}.weight", p.module)), bias]
                });
                names.flatten().filter(|n| missing(&n)).collect()
            }
        }
    }

    /// Whether the file is every float of the base again, under a name of its own: what is left of a recipe
    /// that did nothing. Files of a checkpoint and of a training run are copies on purpose.
    fn repeats_base(&self) -> bool {
        let name = self.subject.path.file_name().map(|n| n.to_string_lossy().into_owned());
        let (Some(base), Form::Torch(Format::Zip | Format::Legacy)) = (self.base, &self.subject.form) else {
            return false;
        };
        !matches!(self.subject.root, Root::Wrapped(_))
            && !name.is_some_and(|n| WEIGHT_FILES.contains(&n.as_str()))
            && !base.used.is_empty()
            && base.used.iter().all(|n| {
                let same = self.canonical.get(n).zip(base.source.tensors.get(n));
                same.is_some_and(|(a, b)| a == b)
            })
    }
}

type Check = fn(&View<'_>) -> Option<Finding>;

/// Every finding, in the order in which they matter.
pub fn all(view: &View<'_>) -> Vec<Finding> {
    const CHECKS: [Check; 34] = [
        unfinished_save,
        damaged_bytes,
        no_weights,
        graph::incomplete,
        nothing_quantized,
        graph::nothing_quantized,
        observers_left,
        fake_quant_left,
        never_calibrated,
        graph::never_calibrated,
        infinite_range,
        observer_disabled,
        pickled_module,
        torchscript,
        nameless_weights,
        missing_head,
        wrong_head,
        numbers::non_finite_scale,
        numbers::zero_scale,
        numbers::non_finite_value,
        numbers::saturated_channels,
        quantized_layernorm,
        inputs::unquantized_input,
        tied::tied_twice,
        tied::tied_missing,
        oversized_storage,
        graph::onnx,
        graph::partly_float,
        graph::stored_twice,
        graph::engine_dependent,
        packed_params,
        embeddings_float,
        numbers::reduce_range,
        numbers::engine_dependent,
    ];
    let found = CHECKS.iter().filter_map(|check| check(view));
    let advised = |mut f: Finding| {
        if let Some((cause, cure)) = advice::of_graph(f.name).filter(|_| graph::is_graph(view)) {
            (f.cause, f.cure) = (cause, cure);
        }
        f
    };
    found.map(advised).collect()
}

/// A problem, if there is evidence.
fn problem(name: &'static str, evidence: Vec<String>) -> Option<Finding> {
    let count = evidence.len();
    (count > 0).then(|| Finding::new(name, Severity::Problem, evidence, count))
}

fn note(name: &'static str, evidence: Vec<String>) -> Option<Finding> {
    let count = evidence.len();
    (count > 0).then(|| Finding::new(name, Severity::Note, evidence, count))
}

fn unfinished_save(view: &View<'_>) -> Option<Finding> {
    let unfinished = view.subject.form == Form::Unfinished;
    let line = format!("{} bytes and no data.pkl: there is nothing to load", view.subject.bytes);
    unfinished.then(|| problem("unfinished-save", vec![line])).flatten()
}

fn no_weights(view: &View<'_>) -> Option<Finding> {
    let (subject, weights) = (view.subject, &view.weights);
    let holds_some = !weights.plain.is_empty() || !weights.parts.is_empty() || !weights.buffers.is_empty();
    if holds_some || matches!(subject.form, Form::Unfinished | Form::Onnx | Form::Torch(Format::Script)) {
        return None;
    }
    let mut lines: Vec<String> = match &subject.root {
        Root::Other(kind) => vec![format!("the file holds {kind}")],
        _ => vec![format!("none of its {} entries is a tensor", subject.entries.len())],
    };
    lines.extend(subject.entries.iter().map(|(key, entry)| match entry {
        Entry::Other(kind) => format!("{}: {kind}", show(key)),
        _ => format!("{}: a number", show(key)),
    }));
    problem("no-weights", lines)
}

fn damaged_bytes(view: &View<'_>) -> Option<Finding> {
    let line = |d: &Damage| {
        let reads: Vec<&str> = d.entries.iter().take(3).map(String::as_str).collect();
        format!(
            "{}{}{}: checksum {:08x} when it was written, {:08x} now",
            show(&d.member.name),
            if reads.is_empty() { "" } else { ", holding " },
            reads.join(", "),
            d.member.recorded,
            d.member.found
        )
    };
    problem("damaged-bytes", view.subject.damage.iter().map(line).collect())
}

/// Whether the name of the file promises what its bytes do not hold.
fn claims_quantized(view: &View<'_>) -> bool {
    let name = view.subject.path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase());
    let name = name.unwrap_or_default();
    let parts: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    name.contains("quant")
        || parts
            .iter()
            .any(|p| ["int8", "q8", "i8", "w8a8", "ptq", "qat", "8bit", "dynamic", "selective"].contains(p))
}

fn nothing_quantized(view: &View<'_>) -> Option<Finding> {
    let weights = &view.weights;
    let quantized = weights.quantized().next().is_some()
        || !view.observers.is_empty()
        || view.subject.quantized_by.is_some()
        || weights.plain.values().chain(weights.buffers.values()).any(|t| t.dtype() == Dtype::I8);
    let floats: Vec<_> = weights.plain.iter().filter(|(_, t)| t.dtype().is_float()).collect();
    let packed = weights.parts.len();
    if graph::is_graph(view) || quantized || floats.len() + packed == 0 {
        return None;
    }
    let bytes: usize = floats.iter().map(|(_, t)| t.bytes().len()).sum();
    let mut evidence = vec![format!("all {} tensors are float ({bytes} bytes)", floats.len() + packed)];
    if packed > 0 {
        evidence.push(format!("{packed} modules are packed and hold float32 numbers"));
    }
    let mut severity = Severity::Note;
    if packed > 0 {
        // Packed float16 modules are a recipe of their own; that they are not smaller is a problem of the file.
        severity = Severity::Problem;
    } else {
        if claims_quantized(view) {
            evidence.push("the name of the file says that it is quantized".to_owned());
            severity = Severity::Problem;
        }
        if view.repeats_base() {
            evidence.push("every tensor of the base is there again, with the same bits".to_owned());
            severity = Severity::Problem;
        }
    }
    // Of a float checkpoint in Hugging Face's own form, or under its own name, there is nothing to say.
    let own = view.subject.path.file_name().is_some_and(|n| WEIGHT_FILES.iter().any(|w| n == *w));
    let said = severity == Severity::Problem || (matches!(view.subject.form, Form::Torch(_)) && !own);
    let count = evidence.len();
    said.then(|| Finding::new("nothing-quantized", severity, evidence, count))
}

fn observers_left(view: &View<'_>) -> Option<Finding> {
    if has_fake_quant(view) {
        return None;
    }
    problem("observers-left", view.observers.iter().map(|o| format!("{}{}", o.name, range(o))).collect())
}

fn range(o: &Observer) -> String {
    match o.range {
        Some((low, high)) => format!(": saw {low} to {high}"),
        None if o.blank => ": saw nothing".to_owned(),
        None => String::new(),
    }
}

fn has_fake_quant(view: &View<'_>) -> bool {
    view.subject.entries.keys().any(|k| k.ends_with("fake_quant_enabled"))
}

fn fake_quant_left(view: &View<'_>) -> Option<Finding> {
    let enabled = observers::switches(view.subject, "fake_quant_enabled");
    let state = |v: f64| if v == 0.0 { "off" } else { "on" };
    problem("fake-quant-left", enabled.iter().map(|(n, v)| format!("{n}: {}", state(*v))).collect())
}

fn observer_disabled(view: &View<'_>) -> Option<Finding> {
    let off = observers::switches(view.subject, "observer_enabled").into_iter().filter(|(_, v)| *v == 0.0);
    problem("observer-disabled", off.map(|(n, _)| format!("{n}.observer_enabled is 0")).collect())
}

fn infinite_range(view: &View<'_>) -> Option<Finding> {
    let infinite = view.observers.iter().filter(|o| o.infinite);
    problem("infinite-range", infinite.map(|o| format!("{}: min_val inf, max_val -inf", o.name)).collect())
}

fn never_calibrated(view: &View<'_>) -> Option<Finding> {
    if !view.observers.is_empty() {
        let all = view.observers.iter().all(|o| o.blank);
        let lines = view.observers.iter().map(|o| format!("{}{}", o.name, range(o))).collect();
        return all.then(|| problem("never-calibrated", lines)).flatten();
    }
    let activations = observers::activations(view.subject);
    let all = activations.iter().all(|a| a.scale == 1.0 && a.zero_point == 0.0);
    let lines = activations.iter().map(|a| format!("{}: scale 1, zero point 0", a.module)).collect();
    all.then(|| problem("never-calibrated", lines)).flatten()
}

fn pickled_module(view: &View<'_>) -> Option<Finding> {
    if view.subject.form == Form::Torch(Format::Script) {
        return None;
    }
    let mut classes: Vec<&String> = view.subject.modules.values().collect();
    classes.sort();
    classes.dedup();
    let mut lines: Vec<String> = classes.into_iter().map(|c| format!("needs class {c}")).collect();
    if let Root::Module(class) = &view.subject.root {
        lines.insert(0, format!("the file is one object of class {class}"));
    }
    problem("pickled-module", lines)
}

fn torchscript(view: &View<'_>) -> Option<Finding> {
    let script = view.subject.form == Form::Torch(Format::Script);
    let class = view.subject.modules.get("").cloned().unwrap_or_default();
    let line = format!("a program of class {class}, {} modules", view.subject.modules.len());
    script.then(|| problem("torchscript", vec![line])).flatten()
}

fn nameless_weights(view: &View<'_>) -> Option<Finding> {
    let frozen = view.weights.buffers.iter().filter(|(k, _)| super::weights::numbered(k, "_frozen_param"));
    problem("nameless-weights", frozen.map(|(k, t)| format!("{k}: {} {:?}", t.dtype(), t.shape())).collect())
}

fn head_misfits(view: &View<'_>) -> Option<(Vec<String>, bool)> {
    let base = view.base?;
    if view.canonical.is_empty() {
        return None;
    }
    let head = base.head(&view.canonical);
    let wrong = !head.misshapen.is_empty() || (!head.missing.is_empty() && !head.strange.is_empty());
    let shapes = head.misshapen.iter().map(|(n, want, got)| format!("{n} is {got:?}, the base has {want:?}"));
    let missing = head.missing.iter().map(|n| format!("{n} is missing"));
    let strange = head.strange.iter().map(|n| format!("{n} is not part of the base"));
    Some((shapes.chain(missing).chain(strange.filter(|_| wrong)).collect(), wrong))
}

fn missing_head(view: &View<'_>) -> Option<Finding> {
    let (lines, wrong) = head_misfits(view)?;
    (!wrong).then(|| problem("missing-head", lines)).flatten()
}

fn wrong_head(view: &View<'_>) -> Option<Finding> {
    let (lines, wrong) = head_misfits(view)?;
    wrong.then(|| problem("wrong-head", lines)).flatten()
}

fn quantized_layernorm(view: &View<'_>) -> Option<Finding> {
    let entries = &view.subject.entries;
    let norms = entries
        .keys()
        .filter_map(|k| k.strip_suffix(".scale"))
        .filter(|m| observers::is_norm(m) && entries.contains_key(&format!("{m}.zero_point")));
    problem("quantized-layernorm", norms.map(|m| format!("{m}.scale, {m}.zero_point")).collect())
}

fn oversized_storage(view: &View<'_>) -> Option<Finding> {
    const LEAST: u64 = 1024; // bytes wasted that are worth a word
    let large = view.subject.storages.iter().filter(|s| 2 * s.used <= s.bytes && s.bytes - s.used >= LEAST);
    let line = |s: &qberta_store::torch::inspect::StorageUse| {
        format!("{}: uses {} of {} bytes of its storage", s.example, s.used, s.bytes)
    };
    problem("oversized-storage", large.map(line).collect())
}

fn packed_params(view: &View<'_>) -> Option<Finding> {
    let packed = view.weights.parts.iter().filter(|p| p.packed);
    let mut finding = note("packed-params", packed.map(|p| p.key.clone()).collect())?;
    let random = view.left_random().len();
    if random > 0 {
        finding.evidence.truncate(LISTED - 1);
        finding.evidence.push(format!(
            "load_state_dict(strict=False) into the float model leaves {random} tensors random"
        ));
    }
    Some(finding)
}

fn embeddings_float(view: &View<'_>) -> Option<Finding> {
    if view.weights.parts.is_empty() {
        return None;
    }
    let (name, table) =
        view.weights.plain.iter().find(|(n, _)| n.ends_with("embeddings.word_embeddings.weight"))?;
    let bytes = table.bytes().len();
    let share = 100.0 * bytes as f64 / view.subject.bytes.max(1) as f64;
    let line =
        format!("{name}: {} {:?}, {bytes} bytes, {share:.0} % of the file", table.dtype(), table.shape());
    note("embeddings-float", vec![line])
}
