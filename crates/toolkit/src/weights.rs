//! Codes and scales of weight matrices, each value to the nearest code.

use crate::plan::Plan;
use crate::quantize::Progress;
use qberta_kernels::quantize_weight_rows;
use qberta_model::{Error, Result};
use qberta_store::assemble::SCALE;
use qberta_store::manifest::{Group, Weight};
use qberta_store::{Source, Tensor, int4};
use std::collections::{BTreeMap, BTreeSet};

/// Codes `[rows, cols]` and scales `[rows, groups]` of a weight; per-channel weights have one group.
pub(crate) struct Coded {
    pub codes: Vec<i8>,
    pub scale: Vec<f32>,
}

/// `values [rows, cols]`, all finite, stored as `weight` says; `None` for float.
pub(crate) fn nearest(values: &[f32], rows: usize, cols: usize, weight: Weight) -> Option<Coded> {
    let (codes, scale) = match weight {
        Weight::Float | Weight::Bf16 => return None,
        Weight::Int8Channel => quantize(values, rows, cols),
        Weight::Int4(group) => quantize_groups(values, group),
    };
    Some(Coded { codes, scale })
}

/// The tensors of the weight called `name` as an artefact holds them.
///
/// Errors: a float weight, columns that the group does not divide.
pub(crate) fn tensors(
    name: &str,
    coded: &Coded,
    [rows, cols]: [usize; 2],
    weight: Weight,
) -> Result<Vec<(String, Tensor)>> {
    match weight {
        Weight::Float | Weight::Bf16 => Err(Error::input("float weight has no codes").at(name)),
        Weight::Int8Channel => Ok(vec![
            (format!("{name}{SCALE}"), Tensor::from_f32(vec![rows, 1], &coded.scale)?),
            (name.to_owned(), Tensor::from_i8(vec![rows, cols], &coded.codes)?),
        ]),
        Weight::Int4(group) => int4::tensors(name, &coded.codes, &coded.scale, [rows, cols], group),
    }
}

/// The tensors of the artefact: codes and scales where the plan has them, the source's bytes elsewhere.
pub(crate) fn all(
    source: &Source,
    plan: &Plan,
    used: &BTreeSet<String>,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Tensor>> {
    let modules = plan.values().filter(|d| !d.of_attention()).count();
    progress.stage("quantizing", modules as u64);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in source.tensors.iter().filter(|(n, _)| used.contains(*n)) {
        let decision = name.strip_suffix(".weight").and_then(|module| plan.get(module));
        match (decision.map(|d| d.weight).filter(|w| *w != Weight::Float), tensor.shape()) {
            (Some(Weight::Bf16), shape) => {
                tensors.insert(
                    name.clone(),
                    Tensor::from_bf16(shape.to_vec(), &values(name, tensor)?).map_err(|e| e.at(name))?,
                );
            }
            (Some(weight), &[rows, cols]) => {
                if let Some(coded) = nearest(&values(name, tensor)?, rows, cols, weight) {
                    tensors.extend(self::tensors(name, &coded, [rows, cols], weight)?);
                }
            }
            _ => {
                tensors.insert(name.clone(), tensor.clone());
            }
        }
        if decision.is_some() {
            progress.step();
        }
    }
    Ok(tensors)
}

/// The values of a weight's float tensor.
///
/// Errors: an integer tensor, a value that is not finite.
pub(crate) fn values(name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
    let values = tensor.to_f32().map_err(|e| e.at(name))?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(i) => {
            Err(Error::corrupt("value is not finite").at(name).found(format!("{} at element {i}", values[i])))
        }
    }
}

/// Codes in [-7, 7] and one scale per group of `values`, all finite, whose rows the group divides.
pub fn quantize_groups(values: &[f32], group: Group) -> (Vec<i8>, Vec<f32>) {
    let groups = values.chunks_exact(group.inputs());
    let scale: Vec<f32> = groups.clone().map(|g| step(g, |_| 1.0)).collect();
    let codes = groups.zip(&scale).flat_map(|(g, s)| g.iter().map(move |w| code(*w, *s))).collect();
    (codes, scale)
}

/// The 4-bit code of `w` on a grid of step `scale`.
pub(crate) fn code(w: f32, scale: f32) -> i8 {
    (w * (1.0 / scale)).round_ties_even().clamp(-7.0, 7.0) as i8
}

/// The step at which a group loses least, each value's squared error counted `importance(index)` times: of the steps
/// that reach the largest value with a code of 1 to 7 (a group that lies on a grid keeps it) and of shorter ones
/// that clip it.
pub(crate) fn step(group: &[f32], importance: impl Fn(usize) -> f64) -> f32 {
    /// Codes that the largest value would need; beyond 7 it is clipped.
    const REACH: [f32; 21] = [
        7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 7.2, 7.4, 7.6, 7.8, 8.0, 8.25, 8.5, 8.75, 9.0, 9.33, 9.66, 10.0,
        10.5, 11.0,
    ];
    let most = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if most / 11.0 < f32::MIN_POSITIVE {
        return 1.0;
    }
    let lost = |step: f32| -> f64 {
        let error = |w: f32| f64::from(f32::from(code(w, step)) * step - w);
        group.iter().enumerate().map(|(k, &w)| importance(k) * error(w).powi(2)).sum()
    };
    let mut best = (most / 7.0, lost(most / 7.0));
    for reach in &REACH[1..] {
        let step = most / reach;
        let lost = lost(step);
        if lost < best.1 {
            best = (step, lost);
        }
    }
    best.0
}

/// Codes `[rows, cols]` in [-127, 127] and one scale per row for `values [rows, cols]`, all finite.
///
/// A row whose values already lie on an int8 grid (a checkpoint trained with fake quantization, or one
/// that was int8 before) keeps that grid and is stored without loss; any other row gets
/// `scale = absmax / 127`. The grid of a row need not reach 127: per-tensor quantization leaves rows whose
/// largest code is smaller, and rescaling those would add the rounding error a second time.
pub fn quantize(values: &[f32], rows: usize, cols: usize) -> (Vec<i8>, Vec<f32>) {
    let (mut codes, mut scales) = quantize_weight_rows(values, rows, cols);
    for (row, (codes, scale)) in codes.chunks_exact_mut(cols.max(1)).zip(&mut scales).enumerate() {
        let values = &values[row * cols..(row + 1) * cols];
        if let Some(grid) = grid(values) {
            *scale = grid;
            for (code, w) in codes.iter_mut().zip(values) {
                *code = (w / grid).round_ties_even() as i8;
            }
        }
    }
    (codes, scales)
}

/// The step of the coarsest int8 grid that holds every value, if there is one short of `absmax / 127`.
fn grid(values: &[f32]) -> Option<f32> {
    /// Half precision rounds a product by at most this much of itself. What passes by chance is still
    /// closer than `absmax / 1024`, and half a step of the usual grid is `absmax / 254`.
    const TOLERANCE: f32 = 1.0 / 1024.0;
    let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    (1..127).map(|largest| most / largest as f32).find(|&step| {
        let near = |w: &f32| ((w / step).round_ties_even() * step - w).abs() <= TOLERANCE * w.abs();
        step >= f32::MIN_POSITIVE && values.iter().all(near)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_on_a_grid_is_stored_without_loss() {
        let step = 0.0371f32;
        let values: Vec<f32> = [-90, 3, 0, 41, 7, 90, -1, 64].map(|q| q as f32 * step).into();
        let (codes, scale) = quantize(&values, 1, 8);
        assert_eq!(codes, [-90, 3, 0, 41, 7, 90, -1, 64]);
        assert!((scale[0] - step).abs() <= step * f32::EPSILON);
        // Half-precision storage of the same weights changes nothing but the last bits.
        let half: Vec<f32> = values.iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_e000)).collect();
        assert_eq!(quantize(&half, 1, 8).0, codes);
    }

    #[test]
    fn other_rows_use_the_full_range() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 101) as f32 * 0.731).sin()).collect();
        let (codes, scale) = quantize(&values, 1, 64);
        let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert_eq!(scale[0], most / 127.0);
        assert_eq!(codes.iter().map(|c| c.unsigned_abs()).max(), Some(127));
    }

    #[test]
    fn zero_rows_have_scale_one() {
        assert_eq!(quantize(&[0.0; 6], 2, 3), (vec![0; 6], vec![1.0; 2]));
        assert_eq!(quantize_groups(&[0.0; 64], Group::G32), (vec![0; 64], vec![1.0; 2]));
        assert_eq!(quantize_groups(&[1e-40; 32], Group::G32), (vec![0; 32], vec![1.0]));
    }

    #[test]
    fn a_group_on_a_grid_is_stored_without_loss() {
        let codes: Vec<i8> = (0..64).map(|k| if k < 32 { k % 11 - 5 } else { 3 * (k % 2) }).collect();
        let values: Vec<f32> = codes.iter().map(|&c| f32::from(c) * 0.37).collect();
        let (found, scale) = quantize_groups(&values, Group::G32);
        let again: Vec<f32> = found.iter().enumerate().map(|(k, &c)| f32::from(c) * scale[k / 32]).collect();
        for (a, b) in again.iter().zip(&values) {
            assert!((a - b).abs() <= 2.0 * f32::EPSILON * b.abs(), "{a} {b}");
        }
    }

    #[test]
    fn no_other_step_of_those_tried_loses_less() {
        let values: Vec<f32> = (0..32).map(|i| ((i * 37 % 101) as f32 * 0.731).sin().powi(3)).collect();
        let (codes, scale) = quantize_groups(&values, Group::G32);
        let lost = |s: f32| -> f64 {
            values.iter().map(|&w| f64::from(f32::from(code(w, s)) * s - w).powi(2)).sum()
        };
        let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(lost(scale[0]) <= lost(most / 7.0));
        assert!(codes.iter().all(|c| (-7..8).contains(c)));
    }
}
