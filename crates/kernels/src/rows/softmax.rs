//! Softmax of a row: `e = exp(x - max)`, `p = e * (1 / sum e)`.
//!
//! A NaN or an infinity above every other value makes the whole row NaN: it reaches the sum.

use crate::lanes::{Kernel, LANES, Scalar, Simd};
use crate::rows::math::exp;

/// `row [n]` -> probabilities, in place. The same bits on every machine; for the few values of a head.
///
/// `max` of all, `e_j = exp(row_j - max)`, their sum over 16 partial sums by the fixed tree, then
/// `e_j * (1 / sum)`. An empty row stays empty.
pub fn softmax_row(row: &mut [f32]) {
    let rate = 1.0 / SoftmaxRow { row }.run(Scalar);
    row.iter_mut().for_each(|e| *e *= rate);
}

struct SoftmaxRow<'a> {
    row: &'a mut [f32],
}

impl Kernel for SoftmaxRow<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        exp_sum(s, self.row)
    }
}

/// The largest value of a row without NaN.
#[inline(always)]
pub(crate) fn largest<S: Simd>(s: S, row: &[f32]) -> f32 {
    let (full, rest) = row.as_chunks::<LANES>();
    let mut max = s.splat(f32::NEG_INFINITY);
    for x in full {
        max = s.max(max, s.load(x));
    }
    s.largest(s.first(rest.len(), s.max(max, s.load_any(rest)), max))
}

/// Replaces each value by `exp(value - max)` and returns the sum of those.
#[inline(always)]
pub(crate) fn exp_sum<S: Simd>(s: S, row: &mut [f32]) -> f32 {
    let max = s.splat(largest(s, row));
    let (full, rest) = row.as_chunks_mut::<LANES>();
    let mut sum = s.splat(0.0);
    for x in full {
        let e = exp(s, s.sub(s.load(x), max));
        s.store(e, x);
        sum = s.add(sum, e);
    }
    let e = exp(s, s.sub(s.load_any(rest), max));
    s.store_any(e, rest);
    sum = s.first(rest.len(), s.add(sum, e), sum);
    s.sum(sum)
}

#[cfg(test)]
mod tests;
