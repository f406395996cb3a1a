//! Weighted means of rows from codes: attention weights of 14 bits, values of 8.
//!
//! A weight is two codes of 7 bits, so its product with the values is two of the products of [`super::gemm_i8`], with
//! inputs for which AVX2 needs no wide form. Values are coded around the middle of their column, which the mean gives
//! back exactly, since it divides by the sum of the very weights that it added up.

use super::{CodedPanels, CodedRows, GROUP};
use crate::Isa;
use crate::lanes::{Kernel, LANES, Simd};
use crate::matrix::Lines;
use crate::parallel::Tile;
use crate::rows::{largest, math, symmetric_scale};

/// Steps from 0 to the largest weight of a row where values are codes: 127 codes of 128 steps.
pub const WEIGHT_STEPS: f32 = 16_256.0;

/// Most rows of values: the sum of so many weights stays inside 32 bits (16 256 * 132 000 < 2^31), and so do sums of
/// products of codes.
pub(crate) const MOST_WEIGHTS: usize = 132_000;

/// Rows of weights.
pub(crate) struct Weights {
    codes: CodedRows, // [2 * rows, size]: the upper 7 bits of all rows, then the lower
    rate: Vec<f32>,   // [rows]
    rows: usize,      // in use
    products: Lines,  // [2 * rows, columns]
}

impl Weights {
    /// Room for `rows` rows, at most 32, of `size` weights.
    pub fn new(rows: usize, size: usize) -> Weights {
        let (codes, rate) = (CodedRows::empty(2 * rows, size), vec![1.0; rows]);
        Weights { codes, rate, rows: 0, products: Lines::zeroed(0) }
    }

    /// Weights `p = round(16 256 exp(x - max of the row))` of the first `size` values of the rows of `x`, which are
    /// `stride` long. A row with a NaN or +infinity, or with nothing but -infinity, has weights of NaN.
    pub fn set(&mut self, isa: Isa, x: &[f32], stride: usize, size: usize) {
        self.rows = x.len() / stride;
        let mut codes: Vec<_> = self.codes.rows_mut(0..2 * self.rows).collect();
        let (upper, lower) = codes.split_at_mut(self.rows);
        let parts = upper.iter_mut().zip(lower).zip(&mut self.rate);
        for (row, ((upper, lower), rate)) in x.chunks_exact(stride).zip(parts) {
            *rate = isa.run(Weigh { row: &row[..size], upper, lower });
        }
    }
}

/// `p = round(16 256 exp(x - max))`, in two parts; gives 1 / the sum of p.
struct Weigh<'a> {
    row: &'a [f32],
    /// `p / 128`, at least as many as values, in whole registers.
    upper: &'a mut [u8],
    /// `p % 128`, as many.
    lower: &'a mut [u8],
}

impl Kernel for Weigh<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let max = s.splat(largest(s, self.row));
        let (full, rest) = self.row.as_chunks::<LANES>();
        let codes = self.upper.as_chunks_mut().0.iter_mut().zip(self.lower.as_chunks_mut().0);
        let (mut sum, mut weights) = (s.splat(0.0), s.splat_i(0));
        for (i, (upper, lower)) in codes.enumerate().take(self.row.len().div_ceil(LANES)) {
            let e = match full.get(i) {
                Some(x) => math::exp(s, s.sub(s.load(x), max)),
                None => s.first(rest.len(), math::exp(s, s.sub(s.load_any(rest), max)), s.splat(0.0)),
            };
            sum = s.add(sum, e);
            // No e is above 1 by more than rounding.
            let p = s.round(s.mul(e, s.splat(WEIGHT_STEPS)));
            weights = s.add_i(weights, p);
            s.store_bytes(s.shr_i::<7>(p), upper);
            s.store_bytes(s.and_i(p, s.splat_i(127)), lower);
        }
        // The codes of a NaN differ between machines; with this rate, they do not matter.
        if s.sum(sum).is_nan() {
            return f32::NAN;
        }
        let mut sums = [0; LANES];
        s.store_i(weights, &mut sums);
        1.0 / sums.iter().sum::<i32>() as f32
    }
}

/// Rows of values as the columns of a product, each on a grid of its own: `centre + code * scale`.
pub(crate) struct CodedValues {
    panels: CodedPanels,
    scale: Vec<f32>,  // [panels * 16]
    centre: Vec<f32>, // [panels * 16]
    columns: usize,
}

impl CodedValues {
    /// The first `columns` values of `rows` rows of `x`, `stride` apart; at most [`MOST_WEIGHTS`] rows.
    pub fn new(isa: Isa, x: &[f32], stride: usize, [rows, columns]: [usize; 2]) -> CodedValues {
        let (groups, padded) = (rows.div_ceil(GROUP), columns.next_multiple_of(LANES));
        let mut lines = Lines::zeroed(padded * groups * GROUP);
        let (mut scale, mut centre) = (vec![1.0; padded], vec![0.0; padded]);
        let panels = lines.of_mut::<[i32; LANES]>().chunks_exact_mut(groups.max(1));
        let parts = panels.zip(scale.chunks_exact_mut(LANES).zip(centre.chunks_exact_mut(LANES)));
        for (panel, (lines, (scale, centre))) in parts.enumerate() {
            let first = panel * LANES;
            let cols = LANES.min(columns - first);
            isa.run(Centre { x: &x[first..], stride, rows, lines, scale: &mut scale[..cols], centre });
        }
        let panels = CodedPanels::of_lines(lines, padded, groups);
        CodedValues { panels, scale, centre, columns }
    }

    /// `out[i, c] = sum_j p_ij v_jc / sum_j p_ij`, as `fma(fma(f32(sum of upper products), 128, f32(sum of lower
    /// products)), rate_i * scale_c, centre_c)`.
    pub fn mean(&self, isa: Isa, weights: &mut Weights, out: &mut Tile) {
        let rows = weights.rows;
        weights.products.reserve(2 * rows * self.columns * 4);
        let mut products = Tile::over(weights.products.of_mut(), self.columns, 2 * rows, self.columns);
        let panels = 0..self.columns.div_ceil(LANES);
        self.panels.multiply(isa, &weights.codes, 0..2 * rows, panels, &mut products);
        for (i, rate) in weights.rate[..rows].iter().enumerate() {
            let [upper, lower] =
                [i, rows + i].map(|row| &weights.products.of()[row * self.columns..][..self.columns]);
            isa.run(Join { upper, lower, rate: *rate, values: self, out: out.row(i) });
        }
    }
}

/// One panel of columns around their middles: `centre = lo / 2 + hi / 2`, `scale = max(hi - centre, centre - lo) / 127`
/// (1 where that is 0 or next to it, NaN where a value is not finite), `code = round((x - centre) / scale)`.
struct Centre<'a> {
    x: &'a [f32],
    stride: usize,
    rows: usize,
    lines: &'a mut [[i32; LANES]],
    /// One for each column of the panel.
    scale: &'a mut [f32],
    centre: &'a mut [f32],
}

impl Kernel for Centre<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.scale.len();
        let (mut lo, mut hi) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        let mut most = s.splat_i(0);
        for row in 0..self.rows {
            let x = s.load_any(&self.x[row * self.stride..][..cols]);
            (lo, hi) = (s.min(x, lo), s.max(x, hi));
            // A NaN can hide from min and max, never from the largest bits.
            most = s.max_i(most, s.and_i(s.bits(x), s.splat_i(i32::MAX)));
        }
        let half = s.splat(0.5);
        let middle = s.add(s.mul(lo, half), s.mul(hi, half));
        let (mut reach, mut magnitude) = ([0.0; LANES], [0; LANES]);
        s.store(s.max(s.sub(hi, middle), s.sub(middle, lo)), &mut reach);
        s.store_i(most, &mut magnitude);
        s.store_any(middle, &mut self.centre[..cols]);
        let mut rate = [0.0; LANES];
        for l in 0..cols {
            let finite = f32::from_bits(magnitude[l] as u32).is_finite();
            self.scale[l] = symmetric_scale(if finite { reach[l] } else { f32::NAN });
            rate[l] = 1.0 / self.scale[l];
        }
        let (rate, least, most) = (s.load(&rate), s.splat(-127.0), s.splat(127.0));
        for (g, line) in self.lines.iter_mut().enumerate() {
            let mut word = s.splat_i(0);
            // The first row of a group is the lowest byte.
            for row in (g * GROUP..g * GROUP + GROUP).rev() {
                word = s.shl_i::<8>(word);
                if row < self.rows {
                    let x = s.load_any(&self.x[row * self.stride..][..cols]);
                    // A NaN, whose scale is NaN as well, becomes some code.
                    let steps = s.min(s.max(s.mul(s.sub(x, middle), rate), least), most);
                    word = s.or_i(word, s.and_i(s.round(steps), s.splat_i(0xff)));
                }
            }
            s.store_i(word, line);
        }
    }
}

/// The last step of a row of means.
struct Join<'a> {
    upper: &'a [f32],
    lower: &'a [f32],
    rate: f32,
    values: &'a CodedValues,
    out: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.values.scale.as_chunks().0.iter().zip(self.values.centre.as_chunks().0);
        let sums = self.upper.chunks(LANES).zip(self.lower.chunks(LANES));
        for ((out, (upper, lower)), (scale, centre)) in self.out.chunks_mut(LANES).zip(sums).zip(columns) {
            let sum = s.fma(s.load_any(upper), s.splat(128.0), s.load_any(lower));
            let step = s.mul(s.splat(self.rate), s.load(scale));
            s.store_any(s.fma(sum, step, s.load(centre)), out);
        }
    }
}
