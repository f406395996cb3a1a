//! Rows of numbers to codes on one grid that was fixed beforehand (static quantization).

use super::{Fit, InputGrid, QuantizedRows, RowGrid, Shaping, quantize_input};
use crate::lanes::{Kernel, LANES, Simd};
use crate::{Context, Matrix};

/// A grid for whole matrices: `x ~ (code - zero) * scale`, codes 0..=255, or 1..=255 around 128 if it is symmetric.
/// What lies outside [`FixedGrid::range`] is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedGrid {
    scale: f32,
    zero: u8,
    /// The smallest code.
    least: u8,
}

impl FixedGrid {
    /// Errors: a sentence, for a scale that is not a normal number above 0 or has no normal reciprocal.
    pub fn new(scale: f32, zero: u8) -> Result<FixedGrid, String> {
        if !(scale.is_normal() && scale > 0.0 && (1.0 / scale).is_normal()) {
            return Err(format!("scale is {scale:e}: expected a normal number above 0"));
        }
        Ok(FixedGrid { scale, zero, least: 0 })
    }

    /// The grid of signed codes -127..=127 with 0 in the middle.
    ///
    /// Errors: those of [`FixedGrid::new`].
    pub fn symmetric(scale: f32) -> Result<FixedGrid, String> {
        Ok(FixedGrid { least: 1, ..FixedGrid::new(scale, 128)? })
    }

    /// The symmetric grid that reaches to `most` either way: `scale = most / 127`, 1 if that is 0 or next to it.
    ///
    /// Errors: a sentence, for a reach that is not finite.
    pub fn reaching(most: f32) -> Result<FixedGrid, String> {
        if !most.is_finite() {
            return Err(format!("reach {most} is not finite"));
        }
        FixedGrid::symmetric(Fit::of(RowGrid::Symmetric, most.abs(), 0.0, 0.0).scale)
    }

    /// The grid over `lo..=hi` widened to hold 0: `scale = (hi - lo) / 255`, zero at
    /// `clamp(-round(lo / scale), 0, 255)`; scale 1 if the range is 0 or next to it.
    ///
    /// Errors: a sentence, for a range that is not finite or leaves f32.
    pub fn over(lo: f32, hi: f32) -> Result<FixedGrid, String> {
        if !(lo.is_finite() && hi.is_finite()) {
            return Err(format!("range {lo} to {hi} is not finite"));
        }
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let fit = Fit::of(RowGrid::Asymmetric, hi.max(-lo), lo, hi);
        FixedGrid::new(fit.scale, fit.zero as u8)
    }

    /// Real units per code.
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// The code that means 0.
    pub fn zero(self) -> u8 {
        self.zero
    }

    /// The values of the smallest and of the largest code.
    pub fn range(self) -> (f32, f32) {
        let [least, zero] = [self.least, self.zero].map(f32::from);
        ((least - zero) * self.scale, (255.0 - zero) * self.scale)
    }

    /// The value of the code of `x`, which is finite.
    pub fn nearest(self, x: f32) -> f32 {
        let [least, zero] = [self.least, self.zero].map(f32::from);
        let code = (x * (1.0 / self.scale)).round_ties_even() + zero;
        (code.clamp(least, 255.0) - zero) * self.scale
    }

    /// Whether `x` is further outside than rounding would take it: its code is clamped.
    pub fn clips(self, x: f32) -> bool {
        let code = (x * (1.0 / self.scale)).round_ties_even() + f32::from(self.zero);
        !(f32::from(self.least)..=255.0).contains(&code)
    }
}

/// Codes of `x [rows, cols]` on `grid`, with extra columns for outlier channels: `[rows, cols + split columns]`.
///
/// `r = 1 / scale; code = clamp(round(x * r) + zero, 0 or 1, 255)`, round to nearest, ties to even; a row with a
/// NaN or an infinity has scale NaN. Panics if `split` was made for other columns.
pub fn quantize_rows_fixed(cx: &Context, x: &Matrix, grid: FixedGrid, split: &Shaping) -> QuantizedRows {
    quantize_input(cx, x, InputGrid::Fixed(grid), split)
}

/// The definition for one row without extra columns.
#[cfg(test)]
pub(crate) fn reference(row: &[f32], grid: FixedGrid) -> Vec<u8> {
    let r = 1.0 / grid.scale;
    let code = |x: &f32| {
        ((x * r).round_ties_even() + f32::from(grid.zero)).clamp(f32::from(grid.least), 255.0) as u8
    };
    row.iter().map(code).collect()
}

/// Codes of one row on `grid`, filled up with codes of zero to a multiple of 16; gives its scale, NaN if a value is
/// not finite.
pub(crate) struct QuantizeFixed<'a> {
    pub row: &'a [f32],
    pub grid: FixedGrid,
    /// The padded row.
    pub codes: &'a mut [u8],
    pub split: &'a Shaping,
}

impl Kernel for QuantizeFixed<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Beyond this many steps every code is clamped; the conversion to integers is exact inside.
        const FAR: f32 = 1024.0;
        let (r, zero) = (s.splat(1.0 / self.grid.scale), s.splat_i(i32::from(self.grid.zero)));
        let (near, far) = (s.splat(-FAR), s.splat(FAR));
        let least = self.grid.least;
        let (none, all) = (s.splat_i(i32::from(least)), s.splat_i(255));
        let mut most = s.splat_i(0);
        let (full, rest) = self.row.as_chunks::<LANES>();
        let (codes, _) = self.codes.as_chunks_mut::<LANES>();
        for (i, codes) in codes.iter_mut().enumerate().take(self.row.len().div_ceil(LANES)) {
            let x = if i < full.len() { s.load(&full[i]) } else { s.load_any(rest) };
            most = s.max_i(most, s.and_i(s.bits(x), s.splat_i(i32::MAX)));
            let steps = s.min(s.max(s.mul(x, r), near), far);
            let code = s.add_i(s.round(steps), zero);
            s.store_bytes(s.min_i(s.max_i(code, none), all), codes);
        }
        if !f32::from_bits(s.largest_i(most) as u32).is_finite() {
            self.codes.fill(self.grid.zero);
            return f32::NAN;
        }
        let fit = Fit { scale: self.grid.scale, zero: i32::from(self.grid.zero), flat: false };
        self.split.spread(self.row, &fit, i32::from(least), self.codes);
        fit.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::quantize_rows_split;
    use crate::testing::{contexts, matrix};

    #[test]
    fn every_instruction_set_has_the_reference_codes() {
        let plain = [(0.01, 128u8), (0.003, 0), (0.5, 255), (1e-30, 7), (1e30, 200)];
        let plain = plain.map(|(scale, zero)| FixedGrid::new(scale, zero).unwrap());
        let symmetric = [0.01, 1e-30, 3.0].map(|scale| FixedGrid::symmetric(scale).unwrap());
        for grid in plain.into_iter().chain(symmetric) {
            let (scale, zero) = (grid.scale(), grid.zero());
            for cols in [1, 15, 16, 17, 64, 100, 257] {
                let mut x = matrix(5, cols, 3);
                x.row_mut(1)[cols - 1] = 3.0e38;
                x.row_mut(2)[cols / 2] = -3.0e38;
                for cx in contexts() {
                    let q = quantize_rows_fixed(&cx, &x, grid, &Shaping::default());
                    for i in 0..5 {
                        let what = format!("row {i} of {cols}, {grid:?} on {}", cx.isa);
                        assert_eq!(q.codes(i), reference(x.row(i), grid), "{what}");
                        assert_eq!((q.scale(i), q.zero(i)), (scale, i32::from(zero)), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_grid_of_a_row_gives_the_codes_of_dynamic_quantization() {
        let x = matrix(1, 200, 9);
        for columns in [vec![], vec![3, 3, 77]] {
            let split = Shaping::new(columns, 200).unwrap();
            for cx in contexts() {
                let dynamic = quantize_rows_split(&cx, &x, RowGrid::Asymmetric, &split);
                let shared = split.shared(x.row(0));
                let (lo, hi) = shared.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
                let grid = FixedGrid::over(lo, hi).unwrap();
                let fixed = quantize_rows_fixed(&cx, &x, grid, &split);
                assert_eq!((dynamic.codes(0), dynamic.scale(0)), (fixed.codes(0), fixed.scale(0)));
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        let grid = FixedGrid::new(0.1, 10).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 16, 34] {
                let mut x = matrix(2, 35, 4);
                x.row_mut(1)[at] = bad;
                for cx in contexts() {
                    let q = quantize_rows_fixed(&cx, &x, grid, &Shaping::default());
                    assert!(q.scale(1).is_nan() && !q.scale(0).is_nan());
                }
            }
        }
    }

    #[test]
    fn grids_hold_zero_and_refuse_nonsense() {
        let grid = FixedGrid::over(2.0, 5.0).unwrap();
        assert_eq!((grid.zero(), grid.scale()), (0, 5.0 / 255.0));
        assert_eq!(FixedGrid::over(0.0, 0.0).unwrap(), FixedGrid::new(1.0, 0).unwrap());
        assert!(grid.clips(5.1) && !grid.clips(5.0) && !grid.clips(-0.009) && grid.clips(-0.011));
        let grid = FixedGrid::reaching(-12.7).unwrap();
        assert_eq!((grid.zero(), grid.scale(), grid.least), (128, 12.7 / 127.0, 1));
        assert!(grid.clips(-12.8) && !grid.clips(-12.7) && !grid.clips(12.7));
        assert_eq!(FixedGrid::reaching(0.0).unwrap(), FixedGrid::symmetric(1.0).unwrap());
        assert!(FixedGrid::reaching(f32::INFINITY).is_err() && FixedGrid::symmetric(0.0).is_err());
        for (lo, hi) in [(f32::NAN, 1.0), (0.0, f32::INFINITY), (-3e38, 3e38)] {
            assert!(FixedGrid::over(lo, hi).is_err(), "{lo} {hi}");
        }
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-42] {
            assert!(FixedGrid::new(scale, 0).is_err(), "{scale}");
        }
    }
}
