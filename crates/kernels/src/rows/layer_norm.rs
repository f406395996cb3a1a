//! Layer normalisation of rows, in two passes, with the residual sum fused in.
//!
//! Sums over a row are 16 partial sums (lane l takes elements l, l + 16, ..) added by the fixed tree.

use crate::lanes::{Kernel, LANES, Simd};
use crate::rows::activation::add_row;
use crate::rows::least_rows;
use crate::{Context, Matrix};

/// The definition. One row, `weight` and `bias`, all `[cols]`.
#[cfg(test)]
pub(crate) fn reference(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    fn tree(mut lanes: [f32; 16]) -> f32 {
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }
    let count = row.len() as f32;
    let mut sums = [0.0; 16];
    row.iter().enumerate().for_each(|(c, x)| sums[c % 16] += x);
    let mean = tree(sums) / count;
    let mut squares = [0.0f32; 16];
    row.iter().enumerate().for_each(|(c, x)| squares[c % 16] = (x - mean).mul_add(x - mean, squares[c % 16]));
    let rate = 1.0 / (tree(squares) / count + eps).sqrt();
    for (c, x) in row.iter_mut().enumerate() {
        *x = ((*x - mean) * rate).mul_add(weight[c], bias[c]);
    }
}

/// Normalises each row of `x [rows, cols]` to mean 0 and variance 1, then scales by `weight [cols]` and
/// shifts by `bias [cols]`.
///
/// `mean = sum x / cols; var = sum fma((x - mean)^2) / cols; rate = 1 / sqrt(var + eps)` and
/// `y = fma((x - mean) * rate, weight, bias)`. Panics on unequal shapes.
pub fn layer_norm(cx: &Context, x: &mut Matrix, weight: &[f32], bias: &[f32], eps: f32) {
    normalise(cx, x, None, weight, bias, eps);
}

/// `x = layer_norm(x + residual)`, the same bits as [`crate::add`] and then [`layer_norm`]. Shapes as there,
/// `residual [rows, cols]`.
pub fn add_layer_norm(
    cx: &Context,
    x: &mut Matrix,
    residual: &Matrix,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    assert_eq!((x.rows(), x.cols()), (residual.rows(), residual.cols()), "shapes of add_layer_norm");
    normalise(cx, x, Some(residual), weight, bias, eps);
}

fn normalise(
    cx: &Context,
    x: &mut Matrix,
    residual: Option<&Matrix>,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    let cols = x.cols();
    assert!(
        weight.len() == cols && bias.len() == cols,
        "weight and bias of layer_norm: expected {cols} values"
    );
    cx.threads.for_each_rows(x.as_mut_slice(), cols, least_rows(cols), |first, x| {
        let residual = residual.map(|r| &r.as_slice()[first * cols..][..x.len()]);
        cx.isa.run(LayerNorm { x, residual, weight, bias, eps });
    });
}

pub(crate) struct LayerNorm<'a> {
    /// Whole rows.
    pub x: &'a mut [f32],
    pub residual: Option<&'a [f32]>,
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        for (i, row) in self.x.chunks_exact_mut(cols).enumerate() {
            if let Some(residual) = self.residual {
                add_row(s, row, &residual[i * cols..(i + 1) * cols]);
            }
            layer_norm_row(s, row, self.weight, self.bias, self.eps);
        }
    }
}

#[inline(always)]
fn layer_norm_row<S: Simd>(s: S, row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = row.len() as f32;
    let (full, rest) = row.as_chunks_mut::<LANES>();
    let mut sum = s.splat(0.0);
    for x in full.iter() {
        sum = s.add(sum, s.load(x));
    }
    sum = s.first(rest.len(), s.add(sum, s.load_any(rest)), sum);
    let mean = s.splat(s.sum(sum) / count);

    let mut squares = s.splat(0.0);
    for x in full.iter() {
        let d = s.sub(s.load(x), mean);
        squares = s.fma(d, d, squares);
    }
    let d = s.sub(s.load_any(rest), mean);
    squares = s.first(rest.len(), s.fma(d, d, squares), squares);
    let rate = s.splat(1.0 / (s.sum(squares) / count + eps).sqrt());

    let (weight, weight_rest) = weight.as_chunks::<LANES>();
    let (bias, bias_rest) = bias.as_chunks::<LANES>();
    for ((x, weight), bias) in full.iter_mut().zip(weight).zip(bias) {
        let unit = s.mul(s.sub(s.load(x), mean), rate);
        s.store(s.fma(unit, s.load(weight), s.load(bias)), x);
    }
    let unit = s.mul(s.sub(s.load_any(rest), mean), rate);
    s.store_any(s.fma(unit, s.load_any(weight_rest), s.load_any(bias_rest)), rest);
}

#[cfg(test)]
mod tests;
