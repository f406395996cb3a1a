//! Smoothing (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438): channels of an input that reach far are made smaller before
//! they are coded, and the weights that meet them larger.
//!
//! `s_c = max|x_c|^a / max|w_c|^(1 - a)`, over calibration data and over the weights of all modules that read the input, as
//! a power of two, relative to the median channel. Only inputs that come from a LayerNorm are smoothed, as in the
//! paper: query, key and value together, and the first feed-forward linear. The quantizer multiplies, not the LayerNorm, so
//! the residual branch of a post-LayerNorm network keeps its values.

use crate::calibrate::{self, Calibration};
use crate::observe::Channels;
use crate::plan::Plan;
use crate::quantize::Progress;
use crate::weights;
use qberta_kernels::Context;
use qberta_model::{Architecture, Error, Model, Result, Site, Slot};
use qberta_store::layout::{self, LinearRole, Role};
use qberta_store::manifest::Input;
use qberta_store::{Source, Tensor};
use std::collections::BTreeMap;

/// The largest power of two: more would only move error from inputs to weights.
const MOST: f64 = 8.0;

/// Powers of two by module.
pub(crate) type Shifts = BTreeMap<String, Vec<i8>>;

/// Modules that read one input.
struct Readers {
    modules: Vec<(String, LinearRole)>,
}

impl Readers {
    /// The site that shows all rows of the input: the query of the last layer sees only those asked, the value, which
    /// comes last, every token.
    fn site(&self) -> Option<Site> {
        self.modules.iter().flat_map(|(_, role)| &role.sites).map(|(site, _)| *site).next_back()
    }
}

/// The shifts of every module of `plan` that a LayerNorm feeds and whose input is quantized. `model` holds float weights.
///
/// Errors: sequences that the model cannot take, activations that are not finite.
pub(crate) fn shifts(
    model: &Model,
    plan: &Plan,
    alpha: f64,
    data: Calibration<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Shifts> {
    let readers = readers(model.architecture(), plan);
    if readers.is_empty() {
        return Err(Error::input("recipe smooths inputs, but quantizes none that comes from a LayerNorm")
            .at("smooth")
            .expected(
                "weights and inputs of query, key, value or the first feed-forward linear that are not float",
            )
            .hint("drop smooth, or quantize those inputs"));
    }
    let sites: Vec<Site> = readers.iter().filter_map(Readers::site).collect();
    let reach = calibrate::reach(model, &sites, data, cx, progress)?;
    let mut shifts = Shifts::new();
    for (group, site) in readers.iter().zip(&sites) {
        let inputs = reach.get(site).map(Channels::magnitudes).unwrap_or_default();
        if inputs.iter().any(|m| !m.is_finite()) {
            return Err(Error::corrupt("activations are not finite")
                .at(&group.modules[0].0)
                .hint("the float model overflows on this data; check it in its original framework"));
        }
        let weights = columns(model, group);
        if inputs.len() != weights.len() {
            continue;
        }
        let shift = powers(&inputs, &weights, alpha);
        for (module, _) in &group.modules {
            shifts.insert(module.clone(), shift.clone());
        }
    }
    Ok(shifts)
}

/// The powers of two closest to what each channel asks for.
fn powers(inputs: &[f64], weights: &[f64], alpha: f64) -> Vec<i8> {
    // A channel that is always zero, or that nobody reads, asks for nothing.
    let wish =
        |(x, w): (&f64, &f64)| (*x > 0.0 && *w > 0.0).then(|| alpha * x.log2() - (1.0 - alpha) * w.log2());
    let wishes: Vec<Option<f64>> = inputs.iter().zip(weights).map(wish).collect();
    let mut sorted: Vec<f64> = wishes.iter().flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    wishes.iter().map(|w| w.map_or(0, |w| (w - median).round().clamp(-MOST, MOST) as i8)).collect()
}

/// The largest weight that meets each channel.
fn columns(model: &Model, group: &Readers) -> Vec<f64> {
    let mut most: Vec<f64> = Vec::new();
    for (site, _) in group.modules.iter().flat_map(|(_, role)| &role.sites) {
        let Some(linear) = model.weights().linears.get(site) else { continue };
        let (Some((values, _)), (_, inp)) = (linear.float(), linear.shape()) else { continue };
        most.resize(inp, 0.0);
        for row in values.chunks_exact(inp.max(1)) {
            most.iter_mut().zip(row).for_each(|(m, w)| *m = m.max(f64::from(w.abs())));
        }
    }
    most
}

fn readers(arch: &Architecture, plan: &Plan) -> Vec<Readers> {
    let mut groups: BTreeMap<(u16, bool), Readers> = BTreeMap::new();
    for module in layout::modules(arch) {
        let coded = plan.get(&module.name).is_some_and(|d| d.weight.is_coded() && d.input != Input::Float);
        let (Role::Linear(role), true) = (module.role, coded) else { continue };
        let Some(Site::Layer(layer, slot)) = role.sites.first().map(|(s, _)| *s) else { continue };
        if matches!(slot, Slot::Query | Slot::Key | Slot::Value | Slot::FfnUp) {
            let group = groups.entry((layer, slot == Slot::FfnUp)).or_insert(Readers { modules: Vec::new() });
            group.modules.push((module.name, role));
        }
    }
    groups.into_values().collect()
}

/// Multiplies the weights of smoothed modules by what their inputs are divided by.
///
/// Errors: a weight that is missing, is not float, or leaves f32.
pub(crate) fn apply(mut source: Source, shifts: &Shifts) -> Result<Source> {
    for (module, shift) in shifts {
        let name = format!("{module}.weight");
        let tensor =
            source.tensors.get(&name).ok_or_else(|| Error::corrupt("tensor is missing").at(&name))?;
        let values = scaled(weights::values(&name, tensor)?, shift, 1);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::corrupt("smoothed weight leaves f32").at(name));
        }
        let tensor = Tensor::from_f32(tensor.shape().to_vec(), &values)?;
        source.tensors.insert(name, tensor);
    }
    Ok(source)
}

/// `values [_, channels]` times `2^(sign * shift)` by channel.
pub(crate) fn scaled(mut values: Vec<f32>, shift: &[i8], sign: i32) -> Vec<f32> {
    for row in values.chunks_exact_mut(shift.len().max(1)) {
        row.iter_mut().zip(shift).for_each(|(v, s)| *v *= 2f32.powi(sign * i32::from(*s)));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_reaches_far_is_divided_and_one_that_weights_need_is_not() {
        let inputs = [1.0, 1.0, 64.0, 1.0, 0.0, 1.0, 1.0];
        let weights = [1.0, 1.0, 1.0, 64.0, 1.0, 0.0, 1.0];
        assert_eq!(powers(&inputs, &weights, 0.5), [0, 0, 3, -3, 0, 0, 0]);
        assert_eq!(powers(&inputs, &weights, 1.0), [0, 0, 6, 0, 0, 0, 0]);
        assert_eq!(powers(&[1.0, 1.0, 1e30], &[1.0, 1.0, 1e-30], 0.5), [0, 0, 8]);
        assert!(powers(&[], &[], 0.5).is_empty());
    }

    #[test]
    fn scaling_back_gives_the_same_bits() {
        let values: Vec<f32> = (0..12).map(|i| (i as f32 * 0.77).sin()).collect();
        let shift = [3, -8, 0];
        assert_eq!(scaled(scaled(values.clone(), &shift, 1), &shift, -1), values);
    }
}
