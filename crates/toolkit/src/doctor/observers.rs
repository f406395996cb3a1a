//! Observers and activation scales as they lie in a file: which ranges they saw.

use super::subject::Subject;
use qberta_store::Tensor;
use qberta_store::torch::Entry;
use std::collections::BTreeMap;

/// One observer.
#[derive(Debug)]
pub(super) struct Observer {
    /// Its name in the file.
    pub name: String,
    /// Never saw a value: an infinite range, or none.
    pub blank: bool,
    /// An infinite end.
    pub infinite: bool,
    /// An end that is no number.
    pub nan: bool,
    /// It watches a weight.
    pub weight: bool,
    /// Ends of the range, where there is one range.
    pub range: Option<(f64, f64)>,
    /// The scale of the fake quantization around it.
    pub scale: Option<f64>,
    /// Codes it uses, where it says so.
    pub codes: Option<(f64, f64)>,
}

/// Scale and zero point of the output of one quantized module.
#[derive(Debug)]
pub(super) struct Activation {
    pub module: String,
    pub scale: f64,
    pub zero_point: f64,
}

/// The numbers of an entry.
fn numbers(entry: Option<&Entry>) -> Option<Vec<f64>> {
    match entry? {
        Entry::Scalar(v) => Some(vec![*v]),
        Entry::Tensor { tensor, .. } => Some(values(tensor)),
        _ => None,
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let b = &tensor.bytes()[..];
    match tensor.to_f32() {
        Ok(floats) => floats.into_iter().map(f64::from).collect(),
        Err(_) if tensor.dtype().bytes() == 8 => {
            b.as_chunks().0.iter().map(|c| i64::from_le_bytes(*c) as f64).collect()
        }
        Err(_) if tensor.dtype().bytes() == 4 => {
            b.as_chunks().0.iter().map(|c| f64::from(i32::from_le_bytes(*c))).collect()
        }
        Err(_) => b.iter().map(|&v| f64::from(v)).collect(),
    }
}

/// Every observer of the file.
pub(super) fn observers(subject: &Subject) -> Vec<Observer> {
    let entries = &subject.entries;
    let one = |key: String| match numbers(entries.get(&key)).as_deref() {
        Some([v]) => Some(*v),
        _ => None,
    };
    entries
        .keys()
        .filter_map(|key| key.strip_suffix(".min_val"))
        .filter_map(|name| {
            let low = numbers(entries.get(&format!("{name}.min_val")))?;
            let high = numbers(entries.get(&format!("{name}.max_val")))?;
            let infinite = low.iter().chain(&high).any(|v| v.is_infinite());
            // A fake quantization keeps its scale beside the observer it contains.
            let around = name.strip_suffix(".activation_post_process").unwrap_or(name);
            Some(Observer {
                name: name.to_owned(),
                blank: infinite || low.is_empty() || high.is_empty(),
                infinite,
                nan: low.iter().chain(&high).any(|v| v.is_nan()),
                weight: name.contains("weight_fake_quant"),
                range: match (&low[..], &high[..]) {
                    ([a], [b]) if a.is_finite() && b.is_finite() => Some((*a, *b)),
                    _ => None,
                },
                scale: one(format!("{around}.scale")).or_else(|| one(format!("{name}.scale"))),
                codes: one(format!("{name}.quant_min")).zip(one(format!("{name}.quant_max"))),
            })
        })
        .collect()
}

/// Names of fake quantizations with the switch `which` and its value.
pub(super) fn switches(subject: &Subject, which: &str) -> Vec<(String, f64)> {
    let end = format!(".{which}");
    subject
        .entries
        .iter()
        .filter_map(|(key, entry)| {
            let name = key.strip_suffix(&end)?;
            Some((name.to_owned(), *numbers(Some(entry))?.first()?))
        })
        .collect()
}

/// Scales of the outputs of modules that are certainly not dynamic: a dynamic linear always says scale 1
/// and zero point 0, under the same keys.
pub(super) fn activations(subject: &Subject) -> Vec<Activation> {
    let entries = &subject.entries;
    let mut found = BTreeMap::new();
    for key in entries.keys() {
        let Some(module) = key.strip_suffix(".scale") else { continue };
        if module.ends_with("activation_post_process") || module.ends_with("weight_fake_quant") {
            continue;
        }
        let (Some(scale), Some(zero)) =
            (numbers(entries.get(key)), numbers(entries.get(&format!("{module}.zero_point"))))
        else {
            continue;
        };
        if let (Some(&scale), Some(&zero_point), true) =
            (scale.first(), zero.first(), is_static(subject, module))
        {
            found.insert(module.to_owned(), Activation { module: module.to_owned(), scale, zero_point });
        }
    }
    found.into_values().collect()
}

impl Activation {
    /// Whether a value went through it while it was calibrated.
    pub fn called(&self) -> bool {
        self.scale != 1.0 || self.zero_point != 0.0
    }
}

/// `Quantize` modules: what a QuantStub becomes. They alone keep scale and zero point in one axis of length 1.
pub(super) fn quantizers(subject: &Subject) -> Vec<Activation> {
    let listed = |key: String| match subject.entries.get(&key) {
        Some(Entry::Tensor { tensor, .. }) => tensor.shape() == [1],
        _ => false,
    };
    let mut found = activations(subject);
    found.retain(|a| listed(format!("{}.scale", a.module)) && listed(format!("{}.zero_point", a.module)));
    found
}

/// Versions of torch's quantized linears: 4 when dynamic, 3 when static. Others have no dynamic form.
pub(super) fn is_static(subject: &Subject, module: &str) -> bool {
    if let Some(class) = subject.modules.get(module) {
        return class.contains(".quantized.") && !class.contains(".dynamic.");
    }
    let packed = format!("{module}._packed_params.");
    let linear = subject.entries.range(packed.clone()..).next().is_some_and(|(k, _)| k.starts_with(&packed))
        || subject.entries.contains_key(&format!("{module}.weight")) && !is_norm(module);
    match subject.versions.get(module) {
        Some(version) if linear => *version == 3,
        None if linear => false,
        _ => true,
    }
}

/// Whether a module is a dynamic linear that says so: by its class, or by the version of its state.
pub(super) fn is_dynamic(subject: &Subject, module: &str) -> bool {
    match (subject.modules.get(module), subject.versions.get(module)) {
        (Some(class), _) => class.contains(".quantized.dynamic."),
        (None, Some(version)) => *version == 4,
        (None, None) => false,
    }
}

/// Whether a module is a LayerNorm by its name.
pub(super) fn is_norm(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module).to_ascii_lowercase();
    last.contains("layernorm") || last.contains("layer_norm")
}
