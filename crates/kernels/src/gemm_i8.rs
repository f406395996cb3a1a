//! `y = x wᵀ + b` with int8 weights: `gemm_i8` on quantized rows, `gemm_f32_i8` on float rows.
//!
//! The integer sums are exact, so any order gives the same bits. Nothing saturates: VNNI adds four products
//! straight into i32, AVX2 takes 16 bits only where they suffice. Sums may wrap on the way (a zero point of 128
//! adds up to 128 times the column sum, which is subtracted again); the corrected sum fits i32 by the bound on `in`.

mod coded;
mod panel;
mod strips;
mod weighted;

pub(crate) use coded::{CodedPanels, CodedRows};
use panel::Order;
pub(crate) use panel::Panel;
#[cfg(target_arch = "x86_64")]
pub(crate) use panel::Runs;
pub use strips::{NormParameters, gemm_i8_add_norm, gemm_i8_codes};
pub use weighted::WEIGHT_STEPS;
pub(crate) use weighted::{CodedValues, MOST_WEIGHTS, Weights};

use crate::gemm_f32::chains;
use crate::lanes::{Kernel, LANES, Simd};
use crate::matrix::Lines;
use crate::parallel::{Tile, for_each_tile};
use crate::rows::QuantizedRows;
use crate::tiles::{Product, Sweep, columns, grid, runs, spill_i};
use crate::{Context, Isa, Matrix};

#[cfg(any(test, target_arch = "x86_64"))]
mod tiled;

/// The definition of [`gemm_i8`] for one output element: codes of an input row and of a weight row.
#[cfg(test)]
pub(crate) fn reference(x: &[u8], zero: i32, scale_x: f32, w: &[i8], scale_w: f32, bias: f32) -> f32 {
    let sum: i64 = x.iter().zip(w).map(|(&x, &w)| (i64::from(x) - i64::from(zero)) * i64::from(w)).sum();
    let sum = i32::try_from(sum).expect("the bound on `in` keeps sums inside i32");
    (sum as f32).mul_add(scale_x * scale_w, bias)
}

/// The definition of [`gemm_f32_i8`] for one output element.
#[cfg(test)]
pub(crate) fn reference_f32(x: &[f32], w: &[i8], scale: f32, bias: f32) -> f32 {
    x.iter().zip(w).fold(0.0f32, |acc, (&x, &w)| x.mul_add(f32::from(w), acc)).mul_add(scale, bias)
}

/// Codes of one lane word: consecutive k of one output column.
pub(crate) const GROUP: usize = 4;

/// A weight `[out, in]` as s8 codes with one f32 scale per output column (real units per code).
///
/// Panels of 16 output columns; in a panel, a cache line holds 4 consecutive k of each column, which is what
/// byte dot products read. Columns past `out` and k past `in` are zero.
#[derive(Clone)]
pub struct PackedI8 {
    lines: Lines,
    scale: Vec<f32>,
    sums: Vec<i32>, // [out] sum of the codes of a column, for the zero point of the input
    order: Order,
    out: usize,
    inp: usize,
}

impl PackedI8 {
    /// Packs `codes [out, in]`, row-major, with `scale [out]`.
    ///
    /// Errors: a sentence, for wrong lengths, a scale that is not finite and > 0 (with its row), and an `in`
    /// so large that a sum could leave i32: above 66 000, or above 65 793 when a code is -128.
    pub fn pack(codes: &[i8], scale: &[f32], out: usize, inp: usize) -> Result<PackedI8, String> {
        PackedI8::pack_repeating(codes, scale, out, inp, &[])
    }

    /// The same for a weight that ends in copies of its columns `repeat`: `[out, in + repeat.len()]` from
    /// `codes [out, in]`. Panics if one of them is not below `in`.
    pub fn pack_repeating(
        codes: &[i8],
        scale: &[f32],
        out: usize,
        inp: usize,
        repeat: &[u32],
    ) -> Result<PackedI8, String> {
        const IN_MAX: usize = 66_000; // 255 * 127 * 66 000 < 2^31
        const IN_MAX_FULL: usize = 65_793; // 255 * 128 * 65 793 < 2^31
        if Some(codes.len()) != out.checked_mul(inp) || scale.len() != out {
            let (codes, scale) = (codes.len(), scale.len());
            return Err(format!("a [{out}, {inp}] weight with {codes} codes and {scale} scales"));
        }
        if let Some(row) = scale.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(format!("scale of row {row} is {}: expected a finite number above 0", scale[row]));
        }
        let (given, inp) = (inp, inp + repeat.len());
        if inp > IN_MAX || inp > IN_MAX_FULL && codes.contains(&i8::MIN) {
            return Err(format!("a weight with {inp} input columns can overflow 32-bit sums"));
        }
        let groups = inp.div_ceil(GROUP);
        let mut lines = Lines::zeroed(out.div_ceil(LANES) * groups * LANES * GROUP);
        let mut sums = vec![0; out];
        let rows: Vec<&[i8]> = codes.chunks_exact(given.max(1)).collect();
        let panels = lines.of_mut::<[[i8; GROUP]; LANES]>().chunks_exact_mut(groups.max(1));
        for ((rows, sums), panel) in rows.chunks(LANES).zip(sums.chunks_mut(LANES)).zip(panels) {
            let (whole, end) = panel.split_at_mut(given / GROUP);
            let words: Vec<&[[i8; GROUP]]> = rows.iter().map(|row| row.as_chunks().0).collect();
            for (g, line) in whole.iter_mut().enumerate() {
                line.iter_mut().zip(&words).for_each(|(word, row)| *word = row[g]);
            }
            for ((l, row), sum) in rows.iter().enumerate().zip(sums) {
                let extra = repeat.iter().map(|&c| row[c as usize]);
                *sum = row.iter().copied().chain(extra.clone()).map(i32::from).sum();
                let rest = row.as_chunks::<GROUP>().1.iter().copied().chain(extra);
                rest.enumerate().for_each(|(at, code)| end[at / GROUP][l][at % GROUP] = code);
            }
        }
        let order = Order::of(lines.of(), groups);
        Ok(PackedI8 { lines, scale: scale.to_vec(), sums, order, out, inp })
    }

    /// Number of output columns.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Number of input columns.
    pub fn inp(&self) -> usize {
        self.inp
    }

    /// Real units per code of each output column, `[out]`.
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// The codes as they were packed, `[out, in]` row-major.
    pub fn codes(&self) -> Vec<i8> {
        let (words, groups): (&[[i8; GROUP]], usize) = (self.lines.of(), self.groups());
        let mut codes = Vec::with_capacity(self.out * self.inp);
        for j in 0..self.out {
            let column = words.get(word_of(groups, j, 0)..).unwrap_or_default();
            let column = column.iter().step_by(LANES).take(groups);
            codes.extend(column.flatten().take(self.inp));
        }
        codes
    }

    fn groups(&self) -> usize {
        self.inp.div_ceil(GROUP)
    }

    /// The lines that hold columns `cols` (which start a panel).
    fn panels(&self, cols: &std::ops::Range<usize>) -> &[[i32; LANES]] {
        let groups = self.groups();
        &self.lines.of()[cols.start / LANES * groups..cols.end.div_ceil(LANES) * groups]
    }
}

/// The word of codes `GROUP * group..` of output column `j`; those of the next group lie a line further.
fn word_of(groups: usize, j: usize, group: usize) -> usize {
    (j / LANES * groups + group) * LANES + j % LANES
}

impl std::fmt::Debug for PackedI8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedI8[{}, {}]", self.out, self.inp)
    }
}

/// `x [rows, in]` codes times `w [out, in]` codes transposed, plus `bias [out]` -> `[rows, out]`, f32.
///
/// `y = fma(f32(sum_k x[k] w[k] - zero * sum_k w[k]), scale_x * scale_w, bias or +0.0)`: the integer sum is
/// exact, its conversion and the product of the scales are each rounded, then one fma. Panics on unequal
/// shapes.
pub fn gemm_i8(cx: &Context, x: &QuantizedRows, w: &PackedI8, bias: Option<&[f32]>) -> Matrix {
    gemm_i8_by(cx, x, w, bias, |product, out| compute(cx.isa, product, out))
}

/// The same with `compute` for each part of the output.
fn gemm_i8_by(
    cx: &Context,
    x: &QuantizedRows,
    w: &PackedI8,
    bias: Option<&[f32]>,
    compute: impl Fn(I8, &mut Tile) + Sync,
) -> Matrix {
    check(x, w, bias);
    let mut y = Matrix::zeros(x.rows(), w.out);
    let (rows, cols) = grid(&cx.threads, x.rows(), w.out, w.inp);
    for_each_tile(&cx.threads, &mut y, &rows, &cols, |_, _, mut tile| {
        compute(I8::part(x, w, bias, &tile.rows, &tile.cols), &mut tile);
    });
    y
}

fn check(x: &QuantizedRows, w: &PackedI8, bias: Option<&[f32]>) {
    assert_eq!(x.cols(), w.inp, "input columns of gemm_i8");
    assert!(bias.is_none_or(|b| b.len() == w.out), "bias of gemm_i8: expected {} values", w.out);
}

/// On the tiles of `isa` if it has some and the rows are worth it, on its lanes if not.
fn compute(isa: Isa, product: I8, out: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = isa.tiles().filter(|_| out.rows.len() >= tiled::LEAST_ROWS) {
        return isa.run(tiled::Sweep { unit, product, out });
    }
    isa.run(Sweep { product, out });
}

/// `x [rows, in]` f32 times `w [out, in]` codes transposed, plus `bias [out]` -> `[rows, out]`, f32: only the
/// weight is quantized.
///
/// `acc = +0.0; for k ascending: acc = fma(x[k], f32(code[k]), acc)`, then
/// `y = fma(acc, scale, bias or +0.0)`. Panics on unequal shapes.
pub fn gemm_f32_i8(cx: &Context, x: &Matrix, w: &PackedI8, bias: Option<&[f32]>) -> Matrix {
    assert_eq!(x.cols(), w.inp, "input columns of gemm_f32_i8");
    assert!(bias.is_none_or(|b| b.len() == w.out), "bias of gemm_f32_i8: expected {} values", w.out);
    let mut y = Matrix::zeros(x.rows(), w.out);
    let (rows, cols) = grid(&cx.threads, x.rows(), w.out, w.inp * 4);
    // Codes become floats once for all rows of a task, as many panels at a time as stay in a near cache.
    const CACHED: usize = 256 << 10;
    let some = (CACHED / (w.inp.max(1) * LANES * 4)).clamp(1, 8) * LANES;
    for_each_tile(&cx.threads, &mut y, &rows, &cols, |_, _, mut tile| {
        let mut wide = Lines::zeroed(some * w.inp * 4);
        let (first, all) = (tile.cols.start, tile.cols.len());
        for start in (0..all).step_by(some) {
            let cols = start..(start + some).min(all);
            let from = first + cols.start..first + cols.end;
            let panels = &mut wide.of_mut()[..cols.len().div_ceil(LANES) * w.inp];
            cx.isa.run(Widen { from: w.panels(&from), depth: w.inp, to: panels });
            let rows = 0..tile.rows.len();
            let product = F32I8 {
                x: &x.as_slice()[tile.rows.start * w.inp..],
                depth: w.inp,
                panels,
                columns: Columns::of(w, bias, &from),
            };
            cx.isa.run(Sweep { product, out: &mut tile.part(rows, cols) });
        }
    });
    y
}

/// Codes as floats (exact), k-major in each panel: the panels of a float weight.
struct Widen<'a> {
    from: &'a [[i32; LANES]], // [panels, groups]
    depth: usize,
    to: &'a mut [[f32; LANES]], // [panels, depth]
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.depth.div_ceil(GROUP).max(1);
        for (from, to) in self.from.chunks_exact(groups).zip(self.to.chunks_exact_mut(self.depth.max(1))) {
            for (line, to) in from.iter().zip(to.chunks_mut(GROUP)) {
                let wide = s.widen4(s.load_i(line));
                for (k, to) in to.iter_mut().enumerate() {
                    s.store(wide[k], to);
                }
            }
        }
    }
}

/// What the last step of a tile needs of its columns.
struct Columns<'a> {
    scale: &'a [f32],
    sums: &'a [i32],
    bias: Option<&'a [f32]>,
}

impl<'a> Columns<'a> {
    fn of(w: &'a PackedI8, bias: Option<&'a [f32]>, cols: &std::ops::Range<usize>) -> Columns<'a> {
        let bias = bias.map(|b| &b[cols.clone()]);
        Columns { scale: &w.scale[cols.clone()], sums: &w.sums[cols.clone()], bias }
    }

    #[inline(always)]
    fn bias<S: Simd>(&self, s: S, cols: std::ops::Range<usize>) -> S::F {
        match self.bias {
            Some(bias) => s.load_any(&bias[cols]),
            None => s.splat(0.0),
        }
    }
}

struct I8<'a> {
    x: &'a [i32], // rows of `groups` words of four u8 codes, `stride` words apart
    stride: usize,
    scale_x: &'a [f32],
    zero: &'a [i32],
    groups: usize,
    panels: &'a [[i32; LANES]],
    order: &'a Order,
    first: usize, // of `panels`, counted in the whole weight
    columns: Columns<'a>,
}

impl<'a> I8<'a> {
    /// Rows `rows` by columns `cols`, which start a panel.
    fn part(
        x: &'a QuantizedRows,
        w: &'a PackedI8,
        bias: Option<&'a [f32]>,
        rows: &std::ops::Range<usize>,
        cols: &std::ops::Range<usize>,
    ) -> I8<'a> {
        I8 {
            x: &x.words()[rows.start * x.stride_words()..],
            stride: x.stride_words(),
            scale_x: &x.scales()[rows.clone()],
            zero: &x.zeros()[rows.clone()],
            groups: w.groups(),
            panels: w.panels(cols),
            order: &w.order,
            first: cols.start / LANES,
            columns: Columns::of(w, bias, cols),
        }
    }
}

impl I8<'_> {
    /// Exact sums of codes, `[rows, panels]`.
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const P: usize>(
        &self,
        s: S,
        row: usize,
        panel: usize,
    ) -> [[[i32; LANES]; P]; R] {
        let groups = self.groups;
        let x: [&[i32]; R] = runs(self.x, row * self.stride, self.stride, groups);
        let w: [&[[i32; LANES]]; P] = runs(self.panels, panel * groups, groups, groups);
        if S::DOTS {
            let mut dots = [[[0; LANES]; P]; R];
            for p in 0..P {
                let sums = s.dots(&x, &Panel::new(w[p], self.order, self.first + panel + p));
                for r in 0..R {
                    dots[r][p] = sums[r];
                }
            }
            return dots;
        }
        let mut acc = [[s.splat_i(0); P]; R];
        for g in 0..groups {
            let mut line = [s.splat_i(0); P];
            for p in 0..P {
                line[p] = s.load_i(&w[p][g]);
            }
            for r in 0..R {
                let x = s.splat_i(x[r][g]);
                for p in 0..P {
                    acc[r][p] = s.dot4(acc[r][p], x, line[p]);
                }
            }
        }
        spill_i(s, acc)
    }
}

impl Product for I8<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(&self, s: S, row: usize, panel: usize, out: &mut Tile) {
        self.finish(s, &self.dots::<S, R, P>(s, row, panel), row, panel, out);
    }
}

impl I8<'_> {
    /// From exact sums to outputs: rows from `row` on, panels from `panel` on.
    #[inline(always)]
    fn finish<S: Simd, const P: usize>(
        &self,
        s: S,
        dots: &[[[i32; LANES]; P]],
        row: usize,
        panel: usize,
        out: &mut Tile,
    ) {
        for p in 0..P {
            let cols = columns(panel + p, out);
            let scale = s.load_any(&self.columns.scale[cols.clone()]);
            let sums = s.load_any_i(&self.columns.sums[cols.clone()]);
            let bias = self.columns.bias(s, cols.clone());
            for r in 0..dots.len() {
                let shift = s.mul_i(s.splat_i(self.zero[row + r]), sums);
                let sum = s.float(s.sub_i(s.load_i(&dots[r][p]), shift));
                let y = s.fma(sum, s.mul(s.splat(self.scale_x[row + r]), scale), bias);
                s.store_any(y, &mut out.row(row + r)[cols.clone()]);
            }
        }
    }
}

struct F32I8<'a> {
    x: &'a [f32], // rows of `depth` values
    depth: usize,
    panels: &'a [[f32; LANES]], // codes
    columns: Columns<'a>,
}

impl Product for F32I8<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(&self, s: S, row: usize, panel: usize, out: &mut Tile) {
        let depth = self.depth;
        let x = runs(self.x, row * depth, depth, depth);
        let sums = chains::<S, _, R, P>(s, x, runs(self.panels, panel * depth, depth, depth));
        for p in 0..P {
            let cols = columns(panel + p, out);
            let scale = s.load_any(&self.columns.scale[cols.clone()]);
            let bias = self.columns.bias(s, cols.clone());
            for r in 0..R {
                s.store_any(s.fma(s.load(&sums[r][p]), scale, bias), &mut out.row(row + r)[cols.clone()]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
