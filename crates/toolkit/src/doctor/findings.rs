//! What is wrong with a file, each with its evidence.

use super::advice;
use super::base::Base;
use super::observers::{self, Observer};
use super::subject::{Form, Subject};
use super::weights::{Weights, saturated};
use qberta_store::torch::Entry;
use qberta_store::torch::globals::QDtype;
use qberta_store::checkpoint::WEIGHT_FILES;
use qberta_store::safetensors::show;
use qberta_store::torch::inspect::{Damage, Format, Root};
use qberta_store::{Dtype, Tensor};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most lines of evidence kept.
const LISTED: usize = 8;

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
        for line in evidence.iter_mut().filter(|l| l.contains(char::is_control)) {
            *line = line.escape_debug().to_string();
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
        let canonical = base.and_then(|b| b.canonical(weights.by_name()).ok()).unwrap_or_default();
        View { subject, base, observers: observers::observers(subject), canonical, weights }
    }

    /// Parameters of the float model that `load_state_dict(..., strict=False)` would not find in the file:
    /// those of the base, or without one those that are packed. Nothing where a file is not loaded that way.
    pub fn left_random(&self) -> Vec<String> {
        let Form::Torch(Format::Zip | Format::Legacy) = &self.subject.form else { return Vec::new() };
        let missing = |n: &&String| !self.weights.plain.contains_key(*n);
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
    const CHECKS: [Check; 25] = [
        unfinished_save,
        damaged_bytes,
        nothing_quantized,
        observers_left,
        fake_quant_left,
        never_calibrated,
        infinite_range,
        observer_disabled,
        pickled_module,
        torchscript,
        nameless_weights,
        missing_head,
        wrong_head,
        non_finite_scale,
        zero_scale,
        non_finite_value,
        saturated_channels,
        quantized_layernorm,
        tied_twice,
        tied_missing,
        oversized_storage,
        onnx,
        packed_params,
        embeddings_float,
        reduce_range,
    ];
    CHECKS.iter().filter_map(|check| check(view)).collect()
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
        || parts.iter().any(|p| ["int8", "q8", "i8", "w8a8", "ptq", "qat", "8bit", "dynamic", "selective"].contains(p))
}

fn nothing_quantized(view: &View<'_>) -> Option<Finding> {
    let weights = &view.weights;
    let quantized = weights.quantized().next().is_some()
        || !view.observers.is_empty()
        || view.subject.quantized_by.is_some()
        || weights.plain.values().chain(weights.buffers.values()).any(|t| t.dtype() == Dtype::I8);
    let floats: Vec<_> = weights.plain.iter().filter(|(_, t)| t.dtype().is_float()).collect();
    let packed = weights.parts.len();
    if quantized || floats.len() + packed == 0 {
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
    let count = evidence.len();
    Some(Finding::new("nothing-quantized", severity, evidence, count))
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

/// One line for each weight with scales that `bad` selects.
fn scales(view: &View<'_>, bad: fn(f64) -> bool) -> Vec<String> {
    let line = |(part, q): (&super::weights::Part, &qberta_store::torch::Quantized)| {
        let at: Vec<usize> = (0..q.scales.len()).filter(|&i| bad(q.scales[i])).collect();
        let first = *at.first()?;
        Some(match q.scales.len() {
            1 => format!("{}: scale {}", part.module, q.scales[0]),
            n => {
                format!("{}: scale {} in channel {first} ({} of {n})", part.module, q.scales[first], at.len())
            }
        })
    };
    view.weights.quantized().filter_map(line).collect()
}

fn non_finite_scale(view: &View<'_>) -> Option<Finding> {
    problem("non-finite-scale", scales(view, |s| !(s as f32).is_finite()))
}

fn zero_scale(view: &View<'_>) -> Option<Finding> {
    problem("zero-scale", scales(view, |s| s as f32 == 0.0))
}

fn non_finite_value(view: &View<'_>) -> Option<Finding> {
    let bad = |(name, t): (&String, &Tensor)| t.first_non_finite().map(|i| format!("{name}: element {i}"));
    problem("non-finite-value", view.weights.plain.iter().filter_map(bad).collect())
}

fn saturated_channels(view: &View<'_>) -> Option<Finding> {
    let line = |(part, q): (&super::weights::Part, &qberta_store::torch::Quantized)| {
        let full = saturated(q);
        let first = *full.first()?;
        Some(format!("{}: {} channels, the first is {first}", part.module, full.len()))
    };
    problem("saturated-channels", view.weights.quantized().filter_map(line).collect())
}

fn quantized_layernorm(view: &View<'_>) -> Option<Finding> {
    let entries = &view.subject.entries;
    let norms = entries
        .keys()
        .filter_map(|k| k.strip_suffix(".scale"))
        .filter(|m| observers::is_norm(m) && entries.contains_key(&format!("{m}.zero_point")));
    problem("quantized-layernorm", norms.map(|m| format!("{m}.scale, {m}.zero_point")).collect())
}

/// The decoder's entry, the word table's, and whether the configuration is known to tie them.
fn tie<'v>(view: &'v View<'_>) -> Option<(&'v str, Option<&'v Entry>, &'v Entry, bool)> {
    const DECODERS: [&str; 4] =
        ["cls.predictions.decoder", "lm_head.decoder", "vocab_projector", "generator_lm_head"];
    let entries = &view.subject.entries;
    let under = |module: &str| {
        entries.iter().find(|(k, _)| {
            let rest = k.find(module).map(|at| &k[at + module.len()..]);
            rest.is_some_and(|r| r == ".weight" || r.starts_with("._packed_params._packed"))
        })
    };
    let (_, word) = under("embeddings.word_embeddings")?;
    match view.base {
        Some(base) => {
            let decoder = base.decoder().filter(|_| base.tied)?;
            let name = *DECODERS.iter().find(|d| **d == decoder)?;
            Some((name, under(name).map(|e| e.1), word, true))
        }
        None => {
            let (name, entry) = DECODERS.iter().find_map(|d| Some((*d, under(d)?.1)))?;
            Some((name, Some(entry), word, false))
        }
    }
}

fn tied_twice(view: &View<'_>) -> Option<Finding> {
    let (name, decoder, word, known) = tie(view)?;
    let line = match (decoder?, word) {
        (Entry::Tensor { tensor: d, storage: a }, Entry::Tensor { tensor: w, storage: b }) => {
            // Without a configuration only equal values betray a tie.
            if a == b || (!known && d != w) {
                return None;
            }
            if d == w {
                format!(
                    "{name}.weight and the word table are equal and stored twice: {} bytes",
                    d.bytes().len()
                )
            } else {
                let far = match (d.to_f32(), w.to_f32()) {
                    (Ok(d), Ok(w)) => d.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max),
                    _ => f32::NAN,
                };
                format!("{name}.weight differs from the word table by up to {far}, and the config ties them")
            }
        }
        (Entry::Tensor { .. }, _) => format!("{name} is float, the word table is quantized"),
        (_, Entry::Tensor { .. }) => format!("{name} is quantized, the word table is float"),
        _ => format!("{name} and the word table are quantized separately"),
    };
    problem("tied-twice", vec![line])
}

fn tied_missing(view: &View<'_>) -> Option<Finding> {
    // A safetensors file cannot share a storage, so there the twin is left out on purpose.
    let torch = matches!(view.subject.form, Form::Torch(_));
    let (name, decoder, _, known) = tie(view).filter(|_| torch)?;
    let gone = known && decoder.is_none();
    gone.then(|| problem("tied-missing", vec![format!("{name}.weight is missing")])).flatten()
}

fn oversized_storage(view: &View<'_>) -> Option<Finding> {
    const LEAST: u64 = 1024; // bytes wasted that are worth a word
    let large = view.subject.storages.iter().filter(|s| 2 * s.used <= s.bytes && s.bytes - s.used >= LEAST);
    let line = |s: &qberta_store::torch::inspect::StorageUse| {
        format!("{}: uses {} of {} bytes of its storage", s.example, s.used, s.bytes)
    };
    problem("oversized-storage", large.map(line).collect())
}

fn onnx(view: &View<'_>) -> Option<Finding> {
    let line = match &view.subject.quantized_by {
        Some(op) => format!("the graph uses {op}"),
        None => "no quantizing operator was seen near its beginning or end".to_owned(),
    };
    (view.subject.form == Form::Onnx).then(|| note("onnx-graph", vec![line])).flatten()
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

fn reduce_range(view: &View<'_>) -> Option<Finding> {
    let mut lines = Vec::new();
    let mut weights = view.weights.quantized().filter(|(_, q)| q.dtype == QDtype::QInt8).peekable();
    if weights.peek().is_some() && weights.all(|(_, q)| q.codes().iter().all(|c| (-64..64).contains(c))) {
        lines.push("every weight code lies in -64..63".to_owned());
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
