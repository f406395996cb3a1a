//! `gemm_i8` by tiles of 16 rows: the same packed weights, the same exact sums, the same last step.

use super::I8;
use crate::amx::{BYTES, Block, Dots, Lines, ROWS, Tiles, Unit};
use crate::lanes::{Kernel, LANES, Simd};
use crate::parallel::Tile;

/// Rows from which tiles are used. From published latencies, not measured: with one band two sums are in
/// flight, so 16 lines of a panel take at least 52 / 2 cycles, for which VNNI does three rows. Twice that and
/// more, because setting tiles up costs something too.
#[cfg(target_arch = "x86_64")]
pub(super) const LEAST_ROWS: usize = 8;

/// All of `out` on tiles of `unit`.
pub(super) struct Sweep<'a, 'o, U> {
    pub unit: U,
    pub product: I8<'a>,
    pub out: &'a mut Tile<'o>,
}

impl<U: Unit> Kernel for Sweep<'_, '_, U> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.out.rows.len();
        let count = self.out.cols.len().div_ceil(LANES);
        if rows == 0 {
            return;
        }
        // Bands of equal height, so that one shape serves all. Where they do not divide the rows, a band begins
        // inside the one before and computes a row twice, which is less work than a low band of its own.
        let bands = rows.div_ceil(ROWS);
        let tiles = self.unit.configure(rows.div_ceil(bands));
        let mut walk = Walk { tiles, product: self.product, bands, out: self.out };
        let (mut wide, mut narrow) = (Dots::<2>::zero(), Dots::<1>::zero());
        for panel in (0..count - count % 2).step_by(2) {
            walk.panels(s, panel, &mut wide);
        }
        if !count.is_multiple_of(2) {
            walk.panels(s, count - 1, &mut narrow);
        }
    }
}

struct Walk<'a, 'o, T> {
    tiles: T,
    product: I8<'a>,
    bands: usize,
    out: &'a mut Tile<'o>,
}

impl<T: Tiles> Walk<'_, '_, T> {
    /// All rows of `P` panels: their weights stay in the cache.
    #[inline(always)]
    fn panels<S: Simd, const P: usize>(&mut self, s: S, panel: usize, dots: &mut Dots<P>) {
        let groups = self.product.groups;
        let mut lines: [&[[i32; LANES]]; P] = [&[]; P];
        let mut rest: [Lines; P] = [[[0; LANES]; ROWS]; P];
        let steps = groups / ROWS;
        for p in 0..P {
            lines[p] = &self.product.panels[(panel + p) * groups..][..groups];
            let left = &lines[p][steps * ROWS..];
            rest[p][..left.len()].copy_from_slice(left);
        }
        let rest = (!groups.is_multiple_of(ROWS)).then_some(&rest);
        for band in (0..self.bands - self.bands % 2).step_by(2) {
            self.block::<S, 2, P>(s, band, panel, Weights { lines, steps, rest }, dots);
        }
        if !self.bands.is_multiple_of(2) {
            self.block::<S, 1, P>(s, self.bands - 1, panel, Weights { lines, steps, rest }, dots);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const R: usize, const P: usize>(
        &mut self,
        s: S,
        band: usize,
        panel: usize,
        weights: Weights<P>,
        dots: &mut Dots<P>,
    ) {
        let codes: &[u8] = bytemuck::cast_slice(self.product.x);
        let (height, stride) = (self.tiles.height(), self.product.stride * super::GROUP);
        // A row has room for whole steps; the codes there meet zero weights.
        debug_assert!(stride.is_multiple_of(BYTES));
        let mut starts = [0; R];
        let mut bands: [&[u8]; R] = [&[]; R];
        for b in 0..R {
            starts[b] = ((band + b) * height).min(self.out.rows.len() - height);
            bands[b] = &codes[starts[b] * stride..];
        }
        let Weights { lines, steps, rest } = weights;
        self.tiles.block(&Block { bands, stride, panels: lines, steps, rest }, dots);
        for b in 0..R {
            let sums = &dots.0[b * ROWS..][..height];
            self.product.finish(s, sums, starts[b], panel, self.out);
        }
    }
}

/// Weights of a block, as [`Block`] has them.
struct Weights<'a, const P: usize> {
    lines: [&'a [[i32; LANES]]; P],
    steps: usize,
    rest: Option<&'a [Lines; P]>,
}
