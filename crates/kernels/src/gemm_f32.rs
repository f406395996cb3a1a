//! `y = x wᵀ + b` in f32.
//!
//! Each output element is one chain: `acc = +0.0; for k ascending: acc = fma(x[k], w[k], acc)`, then
//! `y = acc + bias`. Vector code runs over output columns only, so a chain never changes with the tile.

use crate::lanes::{Kernel, LANES, Simd};
use crate::matrix::Lines;
use crate::parallel::{Tile, for_each_tile};
use crate::tiles::{Product, columns, grid, runs, spill, sweep};
use crate::{Context, Matrix};

/// The definition. `x [rows, in]`, `weight [out, in]`, `bias [out]` -> `[rows, out]`.
#[cfg(test)]
pub(crate) fn reference(x: &Matrix, weight: &[f32], out: usize, bias: Option<&[f32]>) -> Matrix {
    let mut y = Matrix::zeros(x.rows(), out);
    for i in 0..x.rows() {
        for j in 0..out {
            let w = &weight[j * x.cols()..(j + 1) * x.cols()];
            let acc = x.row(i).iter().zip(w).fold(0.0, |acc, (&x, &w)| x.mul_add(w, acc));
            y.row_mut(i)[j] = bias.map_or(acc, |b| acc + b[j]);
        }
    }
    y
}

/// A weight `[out, in]` f32 in panels of 16 output columns, k-major inside a panel: 16 columns of one k are
/// one cache line. Columns past `out` are zero.
#[derive(Clone)]
pub struct PackedF32 {
    lines: Lines,
    out: usize,
    inp: usize,
}

impl PackedF32 {
    /// Packs `weight [out, in]`, row-major. Panics unless `weight.len() == out * inp`.
    pub fn pack(weight: &[f32], out: usize, inp: usize) -> PackedF32 {
        assert_eq!(weight.len(), out * inp, "values of a [{out}, {inp}] weight");
        let mut lines = Lines::zeroed(out.div_ceil(LANES) * inp * LANES * 4);
        let panels: &mut [f32] = lines.of_mut();
        for j in 0..out {
            let start = (j / LANES) * inp * LANES + j % LANES;
            for k in 0..inp {
                panels[start + k * LANES] = weight[j * inp + k];
            }
        }
        PackedF32 { lines, out, inp }
    }

    /// Number of output columns.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Number of input columns.
    pub fn inp(&self) -> usize {
        self.inp
    }

    /// The weight as it was packed, `[out, in]` row-major.
    pub fn unpack(&self) -> Vec<f32> {
        let panels: &[f32] = self.lines.of();
        let mut weight = vec![0.0; self.out * self.inp];
        for (at, w) in weight.iter_mut().enumerate() {
            let (j, k) = (at / self.inp, at % self.inp);
            *w = panels[((j / LANES) * self.inp + k) * LANES + j % LANES];
        }
        weight
    }

    /// The panels, `[out / 16 rounded up, in]` lines of 16 columns.
    pub(crate) fn panels(&self) -> &[[f32; LANES]] {
        &self.lines.of()[..self.out.div_ceil(LANES) * self.inp]
    }
}

impl std::fmt::Debug for PackedF32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedF32[{}, {}]", self.out, self.inp)
    }
}

/// `x [rows, in]` times `w [out, in]` transposed, plus `bias [out]` -> `[rows, out]`, f32.
///
/// `y = fma-chain over k ascending from +0.0`, then `+ bias` if there is one. Panics on unequal shapes.
pub fn gemm_f32(cx: &Context, x: &Matrix, w: &PackedF32, bias: Option<&[f32]>) -> Matrix {
    product(cx, x, w.panels(), [w.out, w.inp], bias)
}

/// `x` times the weight `[out, inp]` in `panels`, plus `bias`.
pub(crate) fn product<L: Line>(
    cx: &Context,
    x: &Matrix,
    panels: &[L],
    [out, inp]: [usize; 2],
    bias: Option<&[f32]>,
) -> Matrix {
    assert_eq!(x.cols(), inp, "input columns of a float product");
    assert!(bias.is_none_or(|b| b.len() == out), "bias of a float product: expected {out} values");
    let mut y = Matrix::zeros(x.rows(), out);
    let (rows, cols) = grid(&cx.threads, x.rows(), out, inp * size_of::<L>() / LANES);
    for_each_tile(&cx.threads, &mut y, &rows, &cols, |_, _, mut tile| {
        let some = tile.cols.start / LANES * inp..tile.cols.end.div_ceil(LANES) * inp;
        cx.isa.run(Block {
            x: &x.as_slice()[tile.rows.start * inp..],
            stride: inp,
            depth: inp,
            panels: &panels[some],
            bias: bias.map(|b| &b[tile.cols.clone()]),
            out: &mut tile,
        });
    });
    y
}

/// One k of 16 output columns, as a weight keeps it.
pub(crate) trait Line: Sync {
    /// Its values.
    fn load<S: Simd>(&self, s: S) -> S::F;
}

impl Line for [f32; LANES] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load(self)
    }
}

/// bfloat16 bits.
impl Line for [u16; LANES] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_half(self)
    }
}

/// `out = x wᵀ + bias` over one tile, however many rows and columns it has.
pub(crate) struct Block<'a, 'o, L> {
    /// Rows of `depth` values, `stride` apart; at least `out.rows.len()` of them.
    pub x: &'a [f32],
    pub stride: usize,
    pub depth: usize,
    /// `[panels, depth]` lines that cover `out.cols.len()` columns.
    pub panels: &'a [L],
    /// `[out.cols.len()]`.
    pub bias: Option<&'a [f32]>,
    pub out: &'a mut Tile<'o>,
}

impl<L: Line> Kernel for Block<'_, '_, L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let chain =
            Chain { x: self.x, stride: self.stride, depth: self.depth, panels: self.panels, bias: self.bias };
        sweep(s, &chain, self.out);
    }
}

/// `acc = +0.0; for k ascending: acc = fma(x[k], w[k], acc)` for rows `x` and the columns of panels `w`.
#[inline(always)]
pub(crate) fn chains<S: Simd, L: Line, const R: usize, const P: usize>(
    s: S,
    x: [&[f32]; R],
    w: [&[L]; P],
) -> [[[f32; LANES]; P]; R] {
    let depth = w[0].len();
    let (x, w) = (x.map(|x| &x[..depth]), w.map(|w| &w[..depth]));
    let mut acc = [[s.splat(0.0); P]; R];
    for k in 0..depth {
        let mut line = [s.splat(0.0); P];
        for p in 0..P {
            line[p] = w[p][k].load(s);
        }
        for r in 0..R {
            let x = s.splat(x[r][k]);
            for p in 0..P {
                acc[r][p] = s.fma(x, line[p], acc[r][p]);
            }
        }
    }
    spill(s, acc)
}

struct Chain<'a, L> {
    x: &'a [f32],
    stride: usize,
    depth: usize,
    panels: &'a [L],
    bias: Option<&'a [f32]>,
}

impl<L: Line> Product for Chain<'_, L> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(&self, s: S, row: usize, panel: usize, out: &mut Tile) {
        let depth = self.depth;
        let x = runs(self.x, row * self.stride, self.stride, depth);
        let sums = chains::<S, L, R, P>(s, x, runs(self.panels, panel * depth, depth, depth));
        for p in 0..P {
            let cols = columns(panel + p, out);
            for r in 0..R {
                let mut y = s.load(&sums[r][p]);
                if let Some(bias) = self.bias {
                    y = s.add(y, s.load_any(&bias[cols.clone()]));
                }
                s.store_any(y, &mut out.row(row + r)[cols.clone()]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
