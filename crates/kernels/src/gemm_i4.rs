//! `y = x wᵀ + b` with 4-bit weights in groups: `gemm_i4` on quantized rows, `gemm_f32_i4` on float rows.
//!
//! A group is 32, 64 or 128 consecutive inputs of one output column and has a scale of its own. Inside a group
//! the sum of products is an exact integer below 2^24, so its conversion to f32 is exact too; the groups are
//! then combined by one fma chain in ascending order. Every instruction set therefore has the same bits,
//! though AVX2 adds a block of 32 inputs in 16 bits: 8 pairs of products are at most 8 * 2 * 255 * 8 = 32 640.

use crate::gemm_i8::GROUP as WORD;
use crate::lanes::{LANES, Simd};
use crate::matrix::Lines;
use crate::parallel::{Tile, for_each_tile};
use crate::rows::QuantizedRows;
use crate::tiles::{Product, Sweep, columns, grid, runs, spill, spill_i};
use crate::{Context, Matrix};

/// The definition of [`gemm_i4`] for one output element: codes of an input row, codes and scales of a weight row.
#[cfg(test)]
pub(crate) fn reference(x: &[u8], zero: i32, scale_x: f32, (w, scale, group): Row<'_>, bias: f32) -> f32 {
    let mut acc = 0.0f32;
    for ((x, w), scale) in x.chunks(group).zip(w.chunks(group)).zip(scale) {
        let sum: i32 = x.iter().zip(w).map(|(&x, &w)| (i32::from(x) - zero) * i32::from(w)).sum();
        acc = (sum as f32).mul_add(*scale, acc);
    }
    acc.mul_add(scale_x, bias)
}

/// The definition of [`gemm_f32_i4`] for one output element.
#[cfg(test)]
pub(crate) fn reference_f32(x: &[f32], (w, scale, group): Row<'_>, bias: Option<f32>) -> f32 {
    let weight = w.iter().enumerate().map(|(k, &w)| f32::from(w) * scale[k / group]);
    let acc = x.iter().zip(weight).fold(0.0f32, |acc, (&x, w)| x.mul_add(w, acc));
    bias.map_or(acc, |b| acc + b)
}

/// Codes, scales and group of one weight row.
#[cfg(test)]
type Row<'a> = (&'a [i8], &'a [f32], usize);

/// Codes of one input column in a cache line: four in the low halves of its bytes, the next four in the high.
const STEP: usize = 2 * WORD;

/// Inputs that share a scale must be one of these.
pub const GROUPS: [usize; 3] = [32, 64, 128];

/// A weight `[out, in]` as 4-bit codes in [-8, 7] with one f32 scale per output column and group of inputs.
///
/// Panels of 16 output columns; in a panel, a cache line holds 8 consecutive k of each column. Columns past
/// `out` and k past `in` are zero.
#[derive(Clone)]
pub struct PackedI4 {
    lines: Lines,
    scale: Lines, // [panels, groups, 16] f32
    sums: Lines,  // the same shape: sums of codes, exact, for the zero point of the input
    out: usize,
    inp: usize,
    group: usize,
}

impl PackedI4 {
    /// Packs `codes [out, in]`, row-major, with `scale [out, ceil(in / group)]`.
    ///
    /// Errors: a sentence, for wrong lengths, a group that is not one of [`GROUPS`], a code outside [-8, 7], and a
    /// scale that is not finite and > 0 (with its row).
    pub fn pack(
        codes: &[i8],
        scale: &[f32],
        out: usize,
        inp: usize,
        group: usize,
    ) -> Result<PackedI4, String> {
        if !GROUPS.contains(&group) {
            return Err(format!("groups of {group} inputs: expected 32, 64 or 128"));
        }
        let groups = inp.div_ceil(group);
        if Some(codes.len()) != out.checked_mul(inp) || Some(scale.len()) != out.checked_mul(groups) {
            let (codes, scale) = (codes.len(), scale.len());
            return Err(format!(
                "a [{out}, {inp}] weight in groups of {group} with {codes} codes and {scale} scales"
            ));
        }
        if let Some(at) = codes.iter().position(|c| !(-8..8).contains(c)) {
            return Err(format!("code {} in row {} does not fit 4 bits", codes[at], at / inp.max(1)));
        }
        if let Some(at) = scale.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            let row = at / groups;
            return Err(format!("scale of row {row} is {}: expected a finite number above 0", scale[at]));
        }
        let panels = out.div_ceil(LANES);
        let mut packed = PackedI4 {
            lines: Lines::zeroed(panels * steps(inp) * LANES * WORD),
            scale: Lines::zeroed(panels * groups * LANES * 4),
            sums: Lines::zeroed(panels * groups * LANES * 4),
            out,
            inp,
            group,
        };
        for (j, row) in codes.chunks_exact(inp.max(1)).enumerate().take(out) {
            packed.pack_row(j, row, &scale[j * groups..(j + 1) * groups]);
        }
        Ok(packed)
    }

    fn pack_row(&mut self, j: usize, codes: &[i8], scale: &[f32]) {
        let at = word_of(steps(self.inp), j, 0);
        let words: &mut [[u8; WORD]] = self.lines.of_mut();
        for (word, codes) in words[at..].iter_mut().step_by(LANES).zip(codes.chunks(STEP)) {
            for (k, code) in codes.iter().enumerate() {
                word[k % WORD] |= (code.cast_unsigned() & 15) << (k / WORD * 4);
            }
        }
        let at = word_of(scale.len(), j, 0);
        let groups = codes.chunks(self.group).zip(scale).enumerate();
        for (g, (codes, scale)) in groups {
            let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
            self.scale.of_mut::<f32>()[at + g * LANES] = *scale;
            self.sums.of_mut::<f32>()[at + g * LANES] = sum as f32;
        }
    }

    /// Number of output columns.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Number of input columns.
    pub fn inp(&self) -> usize {
        self.inp
    }

    /// Inputs that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Real units per code, `[out, ceil(in / group)]` row-major.
    pub fn scale(&self) -> Vec<f32> {
        let groups = self.inp.div_ceil(self.group);
        let at = (0..self.out).flat_map(|j| (0..groups).map(move |g| word_of(groups, j, g)));
        at.map(|at| self.scale.of::<f32>()[at]).collect()
    }

    /// The codes as they were packed, `[out, in]` row-major.
    pub fn codes(&self) -> Vec<i8> {
        let (words, steps): (&[[u8; WORD]], usize) = (self.lines.of(), steps(self.inp));
        let code = |j: usize, k: usize| {
            let byte = words[word_of(steps, j, k / STEP)][k % WORD] >> (k % STEP / WORD * 4);
            (byte << 4).cast_signed() >> 4
        };
        (0..self.out).flat_map(|j| (0..self.inp).map(move |k| code(j, k))).collect()
    }

    /// What a tile over columns `cols` (which start a panel) reads.
    fn panels<'a>(&'a self, bias: Option<&'a [f32]>, cols: &std::ops::Range<usize>) -> Panels<'a> {
        let groups = self.inp.div_ceil(self.group);
        let (first, last) = (cols.start / LANES, cols.end.div_ceil(LANES));
        Panels {
            steps: steps(self.inp),
            group_steps: self.group / STEP,
            groups,
            lines: &self.lines.of()[first * steps(self.inp)..last * steps(self.inp)],
            scale: &self.scale.of()[first * groups..last * groups],
            sums: &self.sums.of()[first * groups..last * groups],
            bias: bias.map(|b| &b[cols.clone()]),
        }
    }
}

/// Lines of a panel: whole blocks of 32 inputs, as AVX2 adds them.
fn steps(inp: usize) -> usize {
    inp.div_ceil(32) * (32 / STEP)
}

/// The word of column `j` in line `at` of its panel, where a panel has `lines` lines.
fn word_of(lines: usize, j: usize, at: usize) -> usize {
    (j / LANES * lines + at) * LANES + j % LANES
}

impl std::fmt::Debug for PackedI4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedI4[{}, {} in groups of {}]", self.out, self.inp, self.group)
    }
}

/// `x [rows, in]` codes times `w [out, in]` codes transposed, plus `bias [out]` -> `[rows, out]`, f32.
///
/// `acc = +0.0; for each group g ascending: acc = fma(f32(sum_k (x[k] - zero) w[k]), scale[g], acc)`, then
/// `y = fma(acc, scale_x, bias or +0.0)`. Panics on unequal shapes.
pub fn gemm_i4(cx: &Context, x: &QuantizedRows, w: &PackedI4, bias: Option<&[f32]>) -> Matrix {
    assert_eq!(x.cols(), w.inp, "input columns of gemm_i4");
    assert!(bias.is_none_or(|b| b.len() == w.out), "bias of gemm_i4: expected {} values", w.out);
    let mut y = Matrix::zeros(x.rows(), w.out);
    let (rows, cols) = grid(&cx.threads, x.rows(), w.out, w.inp);
    for_each_tile(&cx.threads, &mut y, &rows, &cols, |_, _, mut tile| {
        let product = I4 {
            x: &x.words()[tile.rows.start * x.stride_words()..],
            stride: x.stride_words(),
            scale_x: &x.scales()[tile.rows.clone()],
            zero: &x.zeros()[tile.rows.clone()],
            w: w.panels(bias, &tile.cols),
        };
        cx.isa.run(Sweep { product, out: &mut tile });
    });
    y
}

/// `x [rows, in]` f32 times `w [out, in]` codes transposed, plus `bias [out]` -> `[rows, out]`, f32: the bits of
/// [`crate::gemm_f32()`] on the dequantized weights.
///
/// `acc = +0.0; for k ascending: acc = fma(x[k], f32(code[k]) * scale[group of k], acc)`, the product rounded
/// first, then `+ bias` if there is one. Panics on unequal shapes.
pub fn gemm_f32_i4(cx: &Context, x: &Matrix, w: &PackedI4, bias: Option<&[f32]>) -> Matrix {
    assert_eq!(x.cols(), w.inp, "input columns of gemm_f32_i4");
    assert!(bias.is_none_or(|b| b.len() == w.out), "bias of gemm_f32_i4: expected {} values", w.out);
    let mut y = Matrix::zeros(x.rows(), w.out);
    let (rows, cols) = grid(&cx.threads, x.rows(), w.out, w.inp * 4);
    for_each_tile(&cx.threads, &mut y, &rows, &cols, |_, _, mut tile| {
        let x = &x.as_slice()[tile.rows.start * w.inp..];
        let product = F32I4 { x, depth: w.inp, w: w.panels(bias, &tile.cols) };
        cx.isa.run(Sweep { product, out: &mut tile });
    });
    y
}

/// The panels of a tile: `steps` lines of codes each, `groups` lines of scales and of sums.
struct Panels<'a> {
    steps: usize,
    group_steps: usize,
    groups: usize,
    lines: &'a [[i32; LANES]],
    scale: &'a [[f32; LANES]],
    sums: &'a [[f32; LANES]],
    bias: Option<&'a [f32]>,
}

impl Panels<'_> {
    #[inline(always)]
    fn bias<S: Simd>(&self, s: S, cols: std::ops::Range<usize>) -> S::F {
        match self.bias {
            Some(bias) => s.load_any(&bias[cols]),
            None => s.splat(0.0),
        }
    }
}

struct I4<'a> {
    x: &'a [i32], // rows of words of four u8 codes, `stride` words apart
    stride: usize,
    scale_x: &'a [f32],
    zero: &'a [i32],
    w: Panels<'a>,
}

impl Product for I4<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(&self, s: S, row: usize, panel: usize, out: &mut Tile) {
        let (steps, groups) = (self.w.steps, self.w.groups);
        let x: [&[i32]; R] = runs(self.x, row * self.stride, self.stride, 2 * steps);
        let w: [&[[i32; LANES]]; P] = runs(self.w.lines, panel * steps, steps, steps);
        let scale: [&[[f32; LANES]]; P] = runs(self.w.scale, panel * groups, groups, groups);
        let sums: [&[[f32; LANES]]; P] = runs(self.w.sums, panel * groups, groups, groups);
        let mut acc = [[[0.0; LANES]; P]; R];
        for g in 0..groups {
            let end = ((g + 1) * self.w.group_steps).min(steps);
            let mut dots = [[[0; LANES]; P]; R];
            let mut step = g * self.w.group_steps;
            while step < end {
                let last = (step + S::SHORT / 2).min(end);
                let block = shorts::<S, R, P>(s, &x, &w, step, last);
                for r in 0..R {
                    for p in 0..P {
                        let sum = s.add_i(s.load_i(&dots[r][p]), s.load_i(&block[r][p]));
                        s.store_i(sum, &mut dots[r][p]);
                    }
                }
                step = last;
            }
            for p in 0..P {
                let (scale, sums) = (s.load(&scale[p][g]), s.load(&sums[p][g]));
                for r in 0..R {
                    // All three are integers below 2^24, so this is exact.
                    let shift = s.splat(-(self.zero[row + r] as f32));
                    let dot = s.fma(shift, sums, s.float(s.load_i(&dots[r][p])));
                    s.store(s.fma(dot, scale, s.load(&acc[r][p])), &mut acc[r][p]);
                }
            }
        }
        for p in 0..P {
            let cols = columns(panel + p, out);
            let bias = self.w.bias(s, cols.clone());
            for r in 0..R {
                let y = s.fma(s.load(&acc[r][p]), s.splat(self.scale_x[row + r]), bias);
                s.store_any(y, &mut out.row(row + r)[cols.clone()]);
            }
        }
    }
}

/// The products of lines `step..last`, few enough for the short sums of `S`.
#[inline(always)]
fn shorts<S: Simd, const R: usize, const P: usize>(
    s: S,
    x: &[&[i32]; R],
    w: &[&[[i32; LANES]]; P],
    step: usize,
    last: usize,
) -> [[[i32; LANES]; P]; R] {
    let mut acc = [[s.splat_i(0); P]; R];
    for t in step..last {
        let mut halves = [[s.splat_i(0); P]; 2];
        for p in 0..P {
            let [low, high] = s.nibbles(s.load_i(&w[p][t]));
            (halves[0][p], halves[1][p]) = (low, high);
        }
        for h in 0..2 {
            for r in 0..R {
                let x = s.splat_i(x[r][2 * t + h]);
                for p in 0..P {
                    acc[r][p] = s.dot4_short(acc[r][p], x, halves[h][p]);
                }
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            acc[r][p] = s.close_short(acc[r][p]);
        }
    }
    spill_i(s, acc)
}

struct F32I4<'a> {
    x: &'a [f32], // rows of `depth` values
    depth: usize,
    w: Panels<'a>,
}

impl Product for F32I4<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(&self, s: S, row: usize, panel: usize, out: &mut Tile) {
        let (depth, steps, groups) = (self.depth, self.w.steps, self.w.groups);
        let x: [&[f32]; R] = runs(self.x, row * depth, depth, depth);
        let w: [&[[i32; LANES]]; P] = runs(self.w.lines, panel * steps, steps, steps);
        let scale: [&[[f32; LANES]]; P] = runs(self.w.scale, panel * groups, groups, groups);
        let mut acc = [[s.splat(0.0); P]; R];
        for t in 0..depth.div_ceil(STEP) {
            let mut lines = [[[0.0; LANES]; P]; STEP]; // the loop over k then is the one of gemm_f32
            for p in 0..P {
                let scale = s.load(&scale[p][t / self.w.group_steps]);
                let halves = s.nibbles(s.load_i(&w[p][t]));
                for h in 0..2 {
                    let wide = s.widen4(halves[h]);
                    for k in 0..WORD {
                        let code = s.mul(wide[k], s.splat(S::NIBBLE));
                        s.store(s.mul(code, scale), &mut lines[h * WORD + k][p]);
                    }
                }
            }
            // A term of padding is left out, not multiplied by zero: -0.0 + 0.0 would change a bit.
            for k in 0..STEP.min(depth - t * STEP) {
                let mut line = [s.splat(0.0); P];
                for p in 0..P {
                    line[p] = s.load(&lines[k][p]);
                }
                for r in 0..R {
                    let x = s.splat(x[r][t * STEP + k]);
                    for p in 0..P {
                        acc[r][p] = s.fma(x, line[p], acc[r][p]);
                    }
                }
            }
        }
        let sums = spill(s, acc);
        for p in 0..P {
            let cols = columns(panel + p, out);
            for r in 0..R {
                let mut y = s.load(&sums[r][p]);
                if let Some(bias) = self.w.bias {
                    y = s.add(y, s.load_any(&bias[cols.clone()]));
                }
                s.store_any(y, &mut out.row(row + r)[cols.clone()]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
