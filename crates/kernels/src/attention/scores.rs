//! The element-wise part of attention: position terms into a strip of scores, exp, mixing of heads.

use super::relative::{Step, Walk, Way};
use crate::lanes::{Kernel, LANES, Simd};
use crate::rows::exp_sum;

/// Rows that are combined at a time.
pub(super) const BLOCK: usize = 8;

/// Values that the last row of a product needs after it: a step may read past the columns it uses.
pub(super) const SLACK: usize = LANES;

/// Adds the position terms to one panel of keys of a strip of scores, and scales.
pub(super) struct Combine<'a> {
    /// The panel's first column in row 0 of the strip; rows are `stride` apart and hold whole panels.
    pub scores: &'a mut [f32],
    pub stride: usize,
    pub rows: usize,
    pub scale: f32,
    pub terms: Terms<'a>,
}

/// The position terms of a panel of keys.
pub(super) struct Terms<'a> {
    /// Keys of the panel, 1..=16.
    pub keys: usize,
    pub content: Option<Products<'a>>,
    pub position: Option<Products<'a>>,
    /// Table rows by distance.
    pub index: &'a [u32],
    /// Where `index` has the distance between row 0 and the panel's first key.
    pub nearest: usize,
}

/// Products with the reachable rows of a relative table: `q_i . K_r[a]` with a row for each query of the strip,
/// or `k_j . Q_r[a]` with a row for each key of the panel.
#[derive(Clone, Copy)]
pub(super) struct Products<'a> {
    /// Row-major, `stride` apart, and [`SLACK`].
    pub values: &'a [f32],
    pub stride: usize,
    /// The column of table row 0 if columns ascend, which may be before the first; else that of table row 0,
    /// from which columns descend.
    pub origin: i64,
    pub descending: bool,
    pub walk: &'a Walk,
}

impl Kernel for Combine<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Combine { scores, stride, rows, scale, terms } = self;
        let scale = s.splat(scale);
        for first in (0..rows).step_by(BLOCK) {
            let mut position = [s.splat(0.0); BLOCK];
            if let Some(products) = terms.position {
                position = terms.to_content(s, products, first);
            }
            for r in 0..BLOCK.min(rows - first) {
                let i = first + r;
                let Some(scores) = scores[i * stride..].first_chunk_mut::<LANES>() else { return };
                let mut y = s.load(scores);
                if let Some(products) = terms.content {
                    y = s.add(y, terms.to_position(s, products, i));
                }
                if terms.position.is_some() {
                    y = s.add(y, position[r]);
                }
                s.store(s.mul(y, scale), scores);
            }
        }
    }
}

impl Terms<'_> {
    /// `q_i . K_r` at the distances from row `i` of the strip to the keys of the panel.
    #[inline(always)]
    fn to_position<S: Simd>(&self, s: S, products: Products, i: usize) -> S::F {
        let near = self.nearest + i;
        // A last panel of eight keys or fewer has no others, and no distances to them.
        let far = if self.keys > BLOCK { near - BLOCK } else { near };
        products.pair(s, self.index, [(i, near), (i, far)])
    }

    /// `k_j . Q_r` at the distances from rows `first..first + 8` of the strip to the keys of the panel: read
    /// along the rows, then turned around.
    #[inline(always)]
    fn to_content<S: Simd>(&self, s: S, products: Products, first: usize) -> [S::F; BLOCK] {
        let mut columns = [s.splat(0.0); BLOCK];
        let near = self.nearest + first;
        for r in 0..BLOCK {
            // A key past the last repeats it: nobody reads its scores.
            let (low, high) = (r.min(self.keys - 1), (BLOCK + r).min(self.keys - 1));
            columns[r] = products.pair(s, self.index, [(low, near - low), (high, near - high)]);
        }
        s.transpose_halves(columns)
    }
}

impl Products<'_> {
    /// Eight values from each of two places, given as a row and the distance that its first value is at.
    #[inline(always)]
    fn pair<S: Simd>(&self, s: S, index: &[u32], [low, high]: [(usize, usize); 2]) -> S::F {
        let steps: [&Step; 2] = [&self.walk.steps[low.1], &self.walk.steps[high.1]];
        if steps[0].way == Way::Scattered || steps[1].way == Way::Scattered {
            return s.pair(&self.scattered(index, low), &self.scattered(index, high));
        }
        let (low, high) = (self.eight(index, low), self.eight(index, high));
        if steps[0].way == Way::Straight && steps[1].way == Way::Straight {
            return s.pair(low, high);
        }
        s.pair_turned(low, high, [&steps[0].turn, &steps[1].turn])
    }

    #[inline(always)]
    fn column(&self, a: u32) -> i64 {
        if self.descending { self.origin - i64::from(a) } else { self.origin + i64::from(a) }
    }

    /// The values of row `at.0` from the column of distance `at.1` on.
    #[inline(always)]
    fn eight(&self, index: &[u32], at: (usize, usize)) -> &[f32; 8] {
        let start = at.0 * self.stride + self.column(index[at.1]) as usize;
        match self.values[start..].first_chunk() {
            Some(eight) => eight,
            None => unreachable!("products end with slack"),
        }
    }

    /// The values of row `at.0` at eight distances from `at.1` on, one by one; 0 where none was computed.
    #[inline(never)]
    fn scattered(&self, index: &[u32], at: (usize, usize)) -> [f32; 8] {
        let row = &self.values[at.0 * self.stride..][..self.stride];
        let distance = |l: usize| if self.descending { at.1.checked_sub(l) } else { Some(at.1 + l) };
        let value = |l: usize| {
            let a = *index.get(distance(l)?)?;
            row.get(usize::try_from(self.column(a)).ok()?).copied()
        };
        std::array::from_fn(|l| value(l).unwrap_or(0.0))
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
