//! Entries of a file to modules with their codes and scales, and what of them an artefact can keep.

use super::Row;
use super::subject::Subject;
use qberta_model::Result;
use qberta_store::assemble::SCALE;
use qberta_store::int4::{self, PACKED, PARTS};
use qberta_store::torch::globals::QDtype;
use qberta_store::torch::{Entry, Quantized};
use qberta_store::{Dtype, Tensor};
use std::collections::BTreeMap;

/// The weights of a file.
#[derive(Debug, Default)]
pub struct Weights {
    /// Weights that are quantized or packed.
    pub parts: Vec<Part>,
    /// Parameters that are plain tensors.
    pub plain: BTreeMap<String, Tensor>,
    /// Plain tensors that belong to observers and activations.
    pub buffers: BTreeMap<String, Tensor>,
}

/// The weight of one module.
#[derive(Debug)]
pub struct Part {
    /// The module.
    pub module: String,
    /// The key it lies under.
    pub key: String,
    /// Packed parameters, which only the module that wrote them reads.
    pub packed: bool,
    /// The weight.
    pub weight: Stored,
    /// The bias packed with it.
    pub bias: Option<Tensor>,
}

/// A weight as it lies in the file.
#[derive(Debug)]
pub enum Stored {
    /// Codes with scales.
    Quantized(Quantized),
    /// Plain numbers (packed float16 modules hold them).
    Float(Tensor),
}

/// What can become of a quantized weight in an artefact.
pub enum Kept {
    /// The same codes, with one scale for each row.
    Exact {
        /// Codes `[rows, columns]`.
        codes: Tensor,
        /// Scales `[rows, 1]`.
        scale: Tensor,
    },
    /// The numbers it stands for, with the reason why not the codes.
    Dequantized(Tensor, String),
    /// Nothing, with the reason.
    Lost(String),
}

/// Ends of keys that are attributes of quantized modules or observers, not parameters of a model.
fn is_buffer(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    key.contains("activation_post_process.")
        || key.contains("weight_fake_quant.")
        || ["scale", "zero_point", "min_val", "max_val", "eps", "histogram"].contains(&last)
        || ["fake_quant_enabled", "observer_enabled"].contains(&last)
        // FX and PT2E name the constants of a graph by number.
        || numbered(last, "scale_")
        || numbered(last, "zero_point_")
        || numbered(last, "_frozen_param")
}

/// Whether `name` ends in `stem` and a number.
pub(super) fn numbered(name: &str, stem: &str) -> bool {
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
    digits.len() < name.len() && digits.ends_with(stem)
}

impl Weights {
    /// Sorts the entries of `subject`.
    pub fn of(subject: &Subject) -> Weights {
        let mut weights = Weights::default();
        for (key, entry) in &subject.entries {
            match entry {
                Entry::Tensor { tensor, .. } if is_buffer(key) => {
                    weights.buffers.insert(key.clone(), tensor.clone());
                }
                Entry::Tensor { tensor, .. } => {
                    weights.plain.insert(key.clone(), tensor.clone());
                }
                Entry::Quantized(q) => {
                    let packed = key.ends_with("._packed_weight") || key.contains("_packed_params");
                    let stored = Stored::Quantized(q.clone());
                    weights.parts.push(Part::new(key, packed, stored, None));
                }
                Entry::Packed { weight, bias } => {
                    let stored = match &**weight {
                        Entry::Quantized(q) => Stored::Quantized(q.clone()),
                        Entry::Tensor { tensor, .. } => Stored::Float(tensor.clone()),
                        _ => continue,
                    };
                    weights.parts.push(Part::new(key, true, stored, bias.clone()));
                }
                Entry::Scalar(_) | Entry::Other(_) => {}
            }
        }
        weights
    }

    /// The quantized weights.
    pub fn quantized(&self) -> impl Iterator<Item = (&Part, &Quantized)> {
        self.parts.iter().filter_map(|p| match &p.weight {
            Stored::Quantized(q) => Some((p, q)),
            Stored::Float(_) => None,
        })
    }

    /// Every parameter under the name that a float model gives it, whatever its type: for names and shapes.
    pub fn by_name(&self) -> BTreeMap<String, Tensor> {
        let mut all = self.plain.clone();
        for part in &self.parts {
            let tensor = match &part.weight {
                Stored::Quantized(q) => &q.codes,
                Stored::Float(t) => t,
            };
            all.insert(format!("{}.weight", part.module), tensor.clone());
            if let Some(bias) = &part.bias {
                all.insert(format!("{}.bias", part.module), bias.clone());
            }
        }
        all
    }
}

impl Part {
    fn new(key: &str, packed: bool, weight: Stored, bias: Option<Tensor>) -> Part {
        let module = [
            "._packed_params._packed_params",
            "._packed_params._packed_weight",
            "._packed_params",
            "._packed_weight",
            ".weight",
        ]
        .iter()
        .find_map(|end| key.strip_suffix(end))
        .unwrap_or(key);
        Part { module: module.to_owned(), key: key.to_owned(), packed, weight, bias }
    }

    /// The row of the table.
    pub(super) fn row(&self) -> Row {
        let bias = self.bias.as_ref().map_or(0, |b| b.bytes().len() as u64);
        match &self.weight {
            Stored::Float(t) => Row {
                name: self.key.clone(),
                dtype: format!("packed {}", t.dtype().name()),
                shape: t.shape().to_vec(),
                scheme: None,
                scales: None,
                zero_points: None,
                bytes: t.bytes().len() as u64 + bias,
            },
            Stored::Quantized(q) => Row {
                name: self.key.clone(),
                dtype: q.dtype.name().to_owned(),
                shape: q.codes.shape().to_vec(),
                scheme: Some(q.scheme.name().to_owned()),
                scales: Some(span(&q.scales)),
                zero_points: Some(span(&q.zero_points)),
                bytes: q.codes.bytes().len() as u64 + bias,
            },
        }
    }
}

fn span(values: &[f64]) -> [f64; 2] {
    // NaN is what a reader must see, so it wins both ends.
    values.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], &v| {
        if v.is_nan() || lo.is_nan() { [f64::NAN, f64::NAN] } else { [lo.min(v), hi.max(v)] }
    })
}

/// Channels most of whose codes are the lowest or the highest: rows, or indices of the scales' axis.
pub(super) fn saturated(q: &Quantized) -> Vec<usize> {
    const FEWEST: usize = 8; // codes of a channel from which a share means something
    let (lowest, highest) = match q.dtype {
        QDtype::QInt8 => (-128, 127),
        QDtype::QUInt8 => (0, 255),
        // Four bits saturate in sound files too: the range is set by the extremes of a short row.
        QDtype::QInt32 | QDtype::QUInt4 => return Vec::new(),
    };
    let shape = q.codes.shape();
    let axis = if q.scales.len() > 1 { q.axis } else { 0 };
    let (Some(&channels), true) = (shape.get(axis), shape.len() == 2) else { return Vec::new() };
    let inner: usize = shape[axis + 1..].iter().product::<usize>().max(1);
    let mut ends = vec![0usize; channels];
    let mut all = vec![0usize; channels];
    for (i, code) in q.codes().into_iter().enumerate() {
        let channel = i / inner % channels.max(1);
        all[channel] += 1;
        ends[channel] += usize::from(code == lowest || code == highest);
    }
    (0..channels).filter(|&c| all[c] >= FEWEST && 2 * ends[c] > all[c]).collect()
}

/// Decides what an artefact keeps of `q`.
///
/// Errors: codes that do not fit their shape, which the reader has ruled out.
pub fn keep(q: &Quantized) -> Result<Kept> {
    if let Some(bad) = q.scales.iter().position(|s| !(*s as f32).is_finite()) {
        return Ok(Kept::Lost(format!("scale {} of channel {bad}", q.scales[bad])));
    }
    if let Some(bad) = q.scales.iter().position(|s| *s as f32 == 0.0) {
        return Ok(Kept::Lost(format!("scale 0 of channel {bad}")));
    }
    let full = saturated(q);
    if !full.is_empty() {
        return Ok(Kept::Lost(format!("{} channels are saturated", full.len())));
    }
    let shape = q.codes.shape().to_vec();
    let float =
        |reason: String| Ok(Kept::Dequantized(Tensor::from_f32(shape.clone(), &q.dequantize())?, reason));
    let &[rows, _] = &shape[..] else { return float("not a matrix".to_owned()) };
    let zero = match q.dtype {
        QDtype::QInt8 => 0.0,
        // 128 below, the same codes are signed: value = (code - 128 - 0) * scale.
        QDtype::QUInt8 => 128.0,
        QDtype::QInt32 | QDtype::QUInt4 => {
            return float(format!("{} codes, and an artefact holds int8", q.dtype.name()));
        }
    };
    if let Some(bad) = q.zero_points.iter().find(|z| **z != zero) {
        return float(format!("zero point {bad}: the codes are not symmetric"));
    }
    if q.scales.len() > 1 && q.axis != 0 {
        return float(format!("scales lie along axis {}, and an artefact has one for each row", q.axis));
    }
    if q.scales.iter().any(|s| *s < 0.0) {
        return float("a scale is negative".to_owned());
    }
    let scale: Vec<f32> = match q.scales[..] {
        [one] => vec![one as f32; rows],
        _ => q.scales.iter().map(|s| *s as f32).collect(),
    };
    let codes = match q.dtype {
        QDtype::QInt8 => q.codes.clone(),
        _ => {
            let signed: Vec<i8> = q.codes.bytes().iter().map(|c| (c ^ 0x80).cast_signed()).collect();
            Tensor::from_i8(shape.clone(), &signed)?
        }
    };
    Ok(Kept::Exact { codes, scale: Tensor::from_f32(vec![rows, 1], &scale)? })
}

/// `code * scale` of an int8 tensor with one scale for each row.
///
/// Errors: tensors of other types or shapes.
pub fn dequantize_rows(codes: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let scales = scale.to_f32()?;
    let values = codes.i8()?;
    let width = values.len().checked_div(scales.len()).unwrap_or(0).max(1);
    let floats: Vec<f32> = values
        .chunks(width)
        .zip(&scales)
        .flat_map(|(row, s)| row.iter().map(move |&c| f32::from(c) * s))
        .collect();
    Tensor::from_f32(codes.shape().to_vec(), &floats)
}

/// The same tensors in float32: int8 and 4-bit weights with their scales multiplied out, half types widened.
///
/// Errors: an int8 tensor without scales, a 4-bit one without its parts.
pub fn to_float(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Some(weight) = name.strip_suffix(PACKED) {
            out.insert(weight.to_owned(), int4::read(tensors, weight)?.to_float()?);
            continue;
        }
        if PARTS.iter().any(|end| name.strip_suffix(end).is_some_and(|w| int4::is_there(tensors, w))) {
            continue;
        }
        let scaled =
            name.strip_suffix(SCALE).is_some_and(|w| tensors.get(w).is_some_and(|t| t.dtype() == Dtype::I8));
        if scaled {
            continue;
        }
        let float = match (tensor.dtype(), tensors.get(&format!("{name}{SCALE}"))) {
            (Dtype::I8, Some(scale)) => dequantize_rows(tensor, scale),
            (Dtype::F32, _) => Ok(tensor.clone()),
            _ => Tensor::from_f32(tensor.shape().to_vec(), &tensor.to_f32().map_err(|e| e.at(name))?),
        };
        out.insert(name.clone(), float.map_err(|e| e.at(name))?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use qberta_kernels::mapped::Bytes;
    use qberta_store::torch::globals::QScheme;

    fn quantized(dtype: QDtype, bytes: &[u8], scales: &[f64], zero_points: &[f64], axis: usize) -> Quantized {
        let stored = if dtype == QDtype::QInt8 { Dtype::I8 } else { Dtype::U8 };
        let codes = Tensor::new(stored, vec![2, bytes.len() / 2], Bytes::from(bytes.to_vec())).unwrap();
        let scheme = if scales.len() > 1 { QScheme::PerChannelAffine } else { QScheme::PerTensorAffine };
        Quantized { dtype, scheme, scales: scales.to_vec(), zero_points: zero_points.to_vec(), axis, codes }
    }

    #[test]
    fn codes_that_an_artefact_can_hold_are_kept_exactly() {
        for q in [
            quantized(QDtype::QInt8, &[0x80, 1, 2, 0x7f], &[0.5], &[0.0], 0),
            quantized(QDtype::QInt8, &[0x80, 1, 2, 0x7f], &[0.5, 0.25], &[0.0, 0.0], 0),
            // Unsigned codes around 128 are signed codes around 0.
            quantized(QDtype::QUInt8, &[0, 1, 128, 255], &[0.3], &[128.0], 0),
        ] {
            let Kept::Exact { codes, scale } = keep(&q).unwrap() else { panic!("{q:?}") };
            assert_eq!(scale.shape(), [2, 1]);
            assert_eq!(dequantize_rows(&codes, &scale).unwrap().to_f32().unwrap(), q.dequantize(), "{q:?}");
        }
    }

    #[test]
    fn other_codes_become_numbers_and_broken_scales_nothing() {
        for q in [
            quantized(QDtype::QUInt8, &[0, 1, 128, 255], &[0.3], &[127.0], 0),
            quantized(QDtype::QInt8, &[0, 1, 2, 3], &[0.5], &[3.0], 0),
            quantized(QDtype::QInt8, &[0, 1, 2, 3], &[0.5, 0.25], &[0.0, 0.0], 1),
            quantized(QDtype::QInt8, &[0, 1, 2, 3], &[-0.5], &[0.0], 0),
        ] {
            let Kept::Dequantized(values, _) = keep(&q).unwrap() else { panic!("{q:?}") };
            assert_eq!(values.to_f32().unwrap(), q.dequantize());
        }
        // 1e-60 is zero and 1e300 infinite in f32, where torch computes.
        for scale in [f64::NAN, f64::INFINITY, 0.0, 1e-60, 1e300] {
            let q = quantized(QDtype::QInt8, &[0, 1, 2, 3], &[scale], &[0.0], 0);
            assert!(matches!(keep(&q).unwrap(), Kept::Lost(_)), "{scale}");
        }
    }
}
