//! The element-wise part of attention: position terms into a strip of scores, exp, mixing of heads.

use crate::lanes::{Kernel, LANES, Simd};
use crate::rows::exp_sum;

/// Rows of the position-to-content window of one strip and one panel of keys.
pub(super) const WINDOW: usize = super::STRIP + LANES - 1;

/// Adds the position terms to one panel of keys of a strip of scores, and scales.
pub(super) struct Combine<'a> {
    /// The panel's first column in row 0 of the strip; rows are `stride` apart.
    pub scores: &'a mut [f32],
    pub stride: usize,
    pub rows: usize,
    /// Keys of the panel, 1..=16.
    pub keys: usize,
    pub scale: f32,
    pub content: Option<ContentToPosition<'a>>,
    pub position: Option<PositionToContent<'a>>,
    /// Table rows by distance, and their runs.
    pub index: &'a [u32],
    pub runs: &'a [u32],
    /// Where `index` has the distance between row 0 and the panel's first key.
    pub nearest: usize,
}

/// `q_i . K_r[a]` for the strip.
#[derive(Clone, Copy)]
pub(super) struct ContentToPosition<'a> {
    /// Row-major, `stride` apart; column `first - a` is table row a.
    pub products: &'a [f32],
    pub stride: usize,
    pub first: usize,
}

/// `k_j . Q_r[a]` for the panel.
#[derive(Clone, Copy)]
pub(super) struct PositionToContent<'a> {
    /// One line of 16 keys per table row, from row `first` on.
    pub products: &'a [[f32; LANES]],
    pub first: usize,
}

impl Kernel for Combine<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut window = [[0.0; LANES]; WINDOW];
        if let Some(position) = self.position {
            self.skew(s, position, &mut window);
        }
        let scale = s.splat(self.scale);
        for i in 0..self.rows {
            let scores = &mut self.scores[i * self.stride..][..self.keys];
            let mut y = s.load_any(scores);
            if let Some(content) = self.content {
                y = s.add(y, content.row(s, i, self.index, self.runs, self.nearest + i, self.keys));
            }
            if self.position.is_some() {
                y = s.add(y, s.load(&window[i + LANES - 1]));
            }
            s.store_any(s.mul(y, scale), scores);
        }
    }
}

impl Combine<'_> {
    /// Lane l of line i + 15 becomes the product of key l with the table row at distance (row i - key l).
    ///
    /// First line r holds, in every lane, the products at the distance of row r - 15 to key 0; then lane l is
    /// moved down l lines in four steps, one per bit of l.
    #[inline(always)]
    fn skew<S: Simd>(&self, s: S, position: PositionToContent, window: &mut [[f32; LANES]; WINDOW]) {
        let lines = self.rows + LANES - 1;
        // Lines before the farthest key's distance to row 0 are moved only into lanes past the last key.
        for r in LANES - self.keys..lines {
            let a = self.index[self.nearest + r - (LANES - 1)] as usize;
            window[r] = position.products[a - position.first];
        }
        for bit in [1, 2, 4, 8] {
            let mut mask = [0; LANES];
            for (l, m) in mask.iter_mut().enumerate() {
                *m = if l & bit != 0 { -1 } else { 0 };
            }
            let mask = s.load_i(&mask);
            for r in (bit..lines).rev() {
                let moved = s.choose(mask, s.load(&window[r - bit]), s.load(&window[r]));
                s.store(moved, &mut window[r]);
            }
        }
    }
}

impl ContentToPosition<'_> {
    /// The products of strip row `i` for `keys` keys, of which the first is at `index[nearest]`.
    #[inline(always)]
    fn row<S: Simd>(self, s: S, i: usize, index: &[u32], runs: &[u32], nearest: usize, keys: usize) -> S::F {
        let products = &self.products[i * self.stride..][..self.stride];
        let start = self.first - index[nearest] as usize;
        if runs[nearest] as usize >= keys - 1 {
            return s.load_any(&products[start..start + keys]);
        }
        let mut y = [0.0; LANES];
        let distances = &index[nearest + 1 - keys..nearest + 1];
        for (y, &a) in y.iter_mut().zip(distances.iter().rev()) {
            *y = products[self.first - a as usize];
        }
        s.load(&y)
    }
}

/// Multiplies every value by `scale`: the scores of an attention without position terms.
pub(super) struct Scale<'a> {
    pub values: &'a mut [f32],
    pub scale: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (full, rest) = self.values.as_chunks_mut::<LANES>();
        for x in full {
            s.store(s.mul(s.load(x), s.splat(self.scale)), x);
        }
        let y = s.mul(s.load_any(rest), s.splat(self.scale));
        s.store_any(y, rest);
    }
}

/// Scores of one query to `exp(score - max)`; gives 1 / their sum.
pub(super) struct Exp<'a> {
    pub row: &'a mut [f32],
}

impl Kernel for Exp<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        1.0 / exp_sum(s, self.row)
    }
}

/// `out[g] = sum_h mix[g, h] in[h]` for each position of a strip, fma chain over h from +0.0.
pub(super) struct Mix<'a> {
    /// `[heads, heads]`.
    pub mix: &'a [f32],
    /// `[heads, size]`, a multiple of 16 long.
    pub from: &'a [f32],
    /// The same shape.
    pub to: &'a mut [f32],
    pub heads: usize,
}

impl Kernel for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, _) = self.from.as_chunks::<LANES>();
        let (to, _) = self.to.as_chunks_mut::<LANES>();
        let size = to.len() / self.heads;
        for (g, to) in to.chunks_exact_mut(size.max(1)).enumerate() {
            for (at, to) in to.iter_mut().enumerate() {
                let mut acc = s.splat(0.0);
                for h in 0..self.heads {
                    acc = s.fma(s.splat(self.mix[g * self.heads + h]), s.load(&from[h * size + at]), acc);
                }
                s.store(acc, to);
            }
        }
    }
}
