//! Rows of numbers to rows of 8-bit codes, each row with its own scale: the meaning of rounding.
//!
//! `code = clamp(round(x * r) + zero)` with `r = 1 / scale` rounded to f32, ties to even, rounding before
//! the zero point is added. A row whose scale would not be a normal number (all zero, or next to it) has
//! scale 1 and the codes of zero. A row with a NaN or an infinity has scale NaN, so whatever is computed
//! from it is NaN and can be reported.

use crate::lanes::{Kernel, LANES, Simd};
use crate::matrix::Lines;
use crate::rows::least_rows;
use crate::{Context, Isa, Matrix};

mod fixed;

pub(crate) use fixed::QuantizeFixed;
pub use fixed::{FixedGrid, quantize_rows_fixed};

/// How the values of a row are laid onto codes 0..=255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowGrid {
    /// `scale = max|x| / 127`, zero at code 128, codes 1..=255.
    Symmetric,
    /// `lo = min(x, 0), hi = max(x, 0), scale = (hi - lo) / 255`, zero at `clamp(-round(lo / scale), 0, 255)`.
    Asymmetric,
}

impl RowGrid {
    /// The smallest code.
    fn least(self) -> i32 {
        match self {
            RowGrid::Symmetric => 1,
            RowGrid::Asymmetric => 0,
        }
    }
}

/// `[rows, cols]` u8 codes with an f32 scale (real units per code) and an i32 zero point per row.
///
/// `x ~ (code - zero) * scale`. Rows are padded to a multiple of 64 codes.
#[derive(Clone)]
pub struct QuantizedRows {
    codes: Lines,
    scale: Vec<f32>,
    zero: Vec<i32>,
    cols: usize,
}

impl QuantizedRows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.scale.len()
    }

    /// Number of columns, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Codes of row `i`, `[cols]`.
    pub fn codes(&self, i: usize) -> &[u8] {
        &self.codes.of()[i * self.stride()..][..self.cols]
    }

    /// Real units per code of row `i`; NaN if the row was not finite.
    pub fn scale(&self, i: usize) -> f32 {
        self.scale[i]
    }

    /// The code that means 0 in row `i`.
    pub fn zero(&self, i: usize) -> i32 {
        self.zero[i]
    }

    /// The values that the codes stand for, `[rows, cols]`: `f32(code - zero) * scale`.
    pub fn dequantize(&self) -> Matrix {
        let mut x = Matrix::zeros(self.rows(), self.cols);
        for i in 0..self.rows() {
            for (x, &code) in x.row_mut(i).iter_mut().zip(self.codes(i)) {
                *x = (i32::from(code) - self.zero[i]) as f32 * self.scale[i];
            }
        }
        x
    }

    fn stride(&self) -> usize {
        self.cols.next_multiple_of(64)
    }

    /// All codes, four to a word, rows `stride_words` apart.
    pub(crate) fn words(&self) -> &[i32] {
        self.codes.of()
    }

    pub(crate) fn stride_words(&self) -> usize {
        self.stride() / 4
    }

    pub(crate) fn scales(&self) -> &[f32] {
        &self.scale
    }

    pub(crate) fn zeros(&self) -> &[i32] {
        &self.zero
    }
}

impl std::fmt::Debug for QuantizedRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantizedRows[{}, {}]", self.rows(), self.cols)
    }
}

/// The scale and zero point of a row with the given range, and whether its codes are all `zero`.
pub(crate) struct Fit {
    pub scale: f32,
    zero: i32,
    flat: bool,
}

impl Fit {
    /// `most` is max|x|, and `lo <= 0 <= hi` the range (only looked at if asymmetric).
    fn of(grid: RowGrid, most: f32, lo: f32, hi: f32) -> Fit {
        let (scale, resting) = match grid {
            RowGrid::Symmetric => (most / 127.0, 128),
            RowGrid::Asymmetric => ((hi - lo) / 255.0, 0),
        };
        // `most` is looked at too: a NaN can hide from min and max, never from the bits of max|x|.
        if !(most.is_finite() && scale.is_finite()) {
            return Fit { scale: f32::NAN, zero: resting, flat: true };
        }
        if scale < f32::MIN_POSITIVE {
            return Fit { scale: 1.0, zero: resting, flat: true };
        }
        let zero = match grid {
            RowGrid::Symmetric => 128,
            RowGrid::Asymmetric => (-(lo / scale).round_ties_even() as i32).clamp(0, 255),
        };
        Fit { scale, zero, flat: false }
    }
}

/// The scale of a symmetric grid over values of magnitude at most `most`, as of a row of [`RowGrid::Symmetric`]: 1 where it
/// would not be a normal number, NaN where `most` is not finite.
pub(crate) fn symmetric_scale(most: f32) -> f32 {
    Fit::of(RowGrid::Symmetric, most, 0.0, 0.0).scale
}

/// What happens to the channels of a row before it is coded, so that a few large ones do not set the step of the
/// whole row: smoothing, then extra columns. Neither changes what the integer product means.
///
/// *Smoothing* (Xiao et al. 2022, arXiv:2211.10438): channel `c` is multiplied by `2^-shift[c]`, and the weights that
/// meet it were multiplied by `2^shift[c]` before they were quantized; powers of two, so that nothing else is rounded.
///
/// Extra column `e` repeats channel `columns[e]`; a channel with `n` extra columns spreads its value over
/// `n + 1` codes and so reaches `n + 1` times as far at the same scale. The weight matrix repeats the same
/// columns, so the integer product is that of the sum (outlier channel splitting, Zhao et al. 2019,
/// arXiv:1901.09504, applied to activations).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shaping {
    columns: Vec<u32>,
    runs: Vec<Run>,
    /// Factors of the channels; empty if none is smoothed.
    factors: Vec<f32>,
}

/// The largest shift in either direction.
pub const SHIFT_MAX: i8 = 24;

/// A channel with extra columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    channel: u32,
    copies: u32,
}

impl Run {
    /// What a value is multiplied by to be divided among all its columns.
    #[inline(always)]
    fn share(self) -> f32 {
        1.0 / (self.copies + 1) as f32
    }
}

impl Shaping {
    /// Extra columns for rows of `cols` values: `columns` ascending, a channel as often as it has copies.
    ///
    /// Errors: a sentence, for channels out of range or out of order.
    pub fn new(columns: Vec<u32>, cols: usize) -> Result<Shaping, String> {
        if let Some(c) = columns.iter().find(|&&c| c as usize >= cols) {
            return Err(format!("split channel {c} is outside the {cols} columns of the input"));
        }
        if !columns.is_sorted() {
            return Err("split channels are not in ascending order".into());
        }
        let run = |run: &[u32]| Run { channel: run[0], copies: run.len() as u32 };
        let runs = columns.chunk_by(|a, b| a == b).map(run).collect();
        Ok(Shaping { columns, runs, factors: Vec::new() })
    }

    /// The same for rows whose channels are divided by 2 to the power of `shifts` first; none if `shifts` is empty.
    ///
    /// Errors: a sentence, for another number of shifts than `cols`, or one beyond [`SHIFT_MAX`].
    pub fn smoothed(mut self, shifts: &[i8], cols: usize) -> Result<Shaping, String> {
        if !shifts.is_empty() && shifts.len() != cols {
            return Err(format!("{} smoothing shifts for {cols} columns", shifts.len()));
        }
        if let Some(c) = shifts.iter().position(|s| !(-SHIFT_MAX..=SHIFT_MAX).contains(s)) {
            let shift = shifts[c];
            return Err(format!(
                "smoothing shift of channel {c} is {shift}: expected at most {SHIFT_MAX} either way"
            ));
        }
        self.factors = shifts.iter().map(|&s| 2f32.powi(-i32::from(s))).collect();
        Ok(self)
    }

    /// Multiplies the channels of `row` by their factors: exact but for values next to zero or infinity.
    pub fn smooth(&self, row: &mut [f32]) {
        row.iter_mut().zip(&self.factors).for_each(|(x, f)| *x *= f);
    }

    /// The channel of each extra column.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// `row` smoothed, and every split channel divided by its number of columns: what sets the range.
    pub fn shared(&self, row: &[f32]) -> Vec<f32> {
        let mut shared = row.to_vec();
        self.smooth(&mut shared);
        self.share(&mut shared);
        shared
    }

    /// Divides every split channel of `row` by its number of columns.
    #[inline(always)]
    fn share(&self, row: &mut [f32]) {
        for run in &self.runs {
            row[run.channel as usize] *= run.share();
        }
    }

    /// Fills the extra columns of `codes`, whose first `row.len()` are done: what a channel's code could
    /// not reach goes to its first extra column, what that cannot reach to the next.
    ///
    /// Inlined into kernels, where rounding is one instruction and not a call.
    #[inline(always)]
    fn spread(&self, row: &[f32], fit: &Fit, least: i32, codes: &mut [u8]) {
        let r = 1.0 / fit.scale;
        let (done, mut extra) = codes.split_at_mut(row.len());
        for run in &self.runs {
            let channel = run.channel as usize;
            let whole = (row[channel] * r).round_ties_even() as i32;
            let mut rest = whole.wrapping_sub(i32::from(done[channel]) - fit.zero);
            let Some((codes, others)) = extra.split_at_mut_checked(run.copies as usize) else { return };
            for code in codes {
                let part = rest.wrapping_add(fit.zero).clamp(least, 255);
                *code = part as u8;
                rest = rest.wrapping_sub(part - fit.zero);
            }
            extra = others;
        }
    }
}

/// The definition for one row: codes, scale and zero point.
#[cfg(test)]
pub(crate) fn reference(row: &[f32], grid: RowGrid) -> (Vec<u8>, f32, i32) {
    let most = row.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let lo = row.iter().fold(0.0f32, |lo, &x| lo.min(x));
    let hi = row.iter().fold(0.0f32, |hi, &x| hi.max(x));
    let fit = Fit::of(grid, f32::from_bits(most), lo, hi);
    let least = grid.least();
    let r = 1.0 / fit.scale;
    let code = |&x: &f32| ((x * r).round_ties_even() as i32 + fit.zero).clamp(least, 255) as u8;
    let codes = if fit.flat { vec![fit.zero as u8; row.len()] } else { row.iter().map(code).collect() };
    (codes, fit.scale, fit.zero)
}

/// Codes of each row of `x [rows, cols]` on its own grid.
///
/// `r = 1 / scale; code = clamp(round(x * r) + zero, 0 or 1, 255)`, round to nearest, ties to even.
pub fn quantize_rows(cx: &Context, x: &Matrix, grid: RowGrid) -> QuantizedRows {
    quantize_rows_split(cx, x, grid, &Shaping::default())
}

/// The same with extra columns for outlier channels: `[rows, cols + split columns]`.
///
/// The range of a row is that of its values with split channels divided by their number of columns.
/// Panics if `split` was made for other columns.
pub fn quantize_rows_split(cx: &Context, x: &Matrix, grid: RowGrid, split: &Shaping) -> QuantizedRows {
    quantize_input(cx, x, InputGrid::Row(grid), split)
}

/// Where the grid of rows of codes comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum InputGrid {
    /// From each row itself (dynamic).
    Row(RowGrid),
    /// From calibration data, one for the whole input (static).
    Fixed(FixedGrid),
}

/// Codes of the rows of `x [rows, cols]` on `grid`, with extra columns for the channels of `split`:
/// [`quantize_rows_split`] or [`quantize_rows_fixed`].
pub fn quantize_input(cx: &Context, x: &Matrix, grid: InputGrid, split: &Shaping) -> QuantizedRows {
    let mut quantized = QuantizedRows::empty(x.rows(), x.cols(), split);
    let least = least_rows(quantized.cols);
    cx.threads.for_each_rows(&mut quantized.rows_mut(), 1, least, |first, rows| {
        let mut room = Room::default();
        for (i, to) in rows.iter_mut().enumerate() {
            to.fill(cx.isa, x.row(first + i), grid, split, &mut room);
        }
    });
    quantized
}

/// A row of codes to be written.
pub(crate) struct RowMut<'a> {
    codes: &'a mut [u8],
    scale: &'a mut f32,
    zero: &'a mut i32,
}

/// Room for a row on its way to codes.
#[derive(Default)]
pub(crate) struct Room {
    smoothed: Vec<f32>,
    shared: Vec<f32>,
}

impl RowMut<'_> {
    /// Codes of `row`.
    pub fn fill<'r>(
        &mut self,
        isa: Isa,
        mut row: &'r [f32],
        grid: InputGrid,
        split: &Shaping,
        room: &'r mut Room,
    ) {
        let Room { smoothed, shared } = room;
        if !split.factors.is_empty() {
            smoothed.clear();
            smoothed.extend_from_slice(row);
            split.smooth(smoothed);
            row = smoothed;
        }
        (*self.scale, *self.zero) = match grid {
            InputGrid::Row(grid) => {
                let fit = isa.run(QuantizeRow { row, grid, codes: self.codes, split: Some((split, shared)) });
                (fit.scale, fit.zero)
            }
            InputGrid::Fixed(grid) => {
                let scale = isa.run(QuantizeFixed { row, grid, codes: self.codes, split });
                (scale, i32::from(grid.zero()))
            }
        };
    }
}

impl QuantizedRows {
    /// `rows` rows of `inputs` values and the extra columns of `split`, to be written.
    pub(crate) fn empty(rows: usize, inputs: usize, split: &Shaping) -> QuantizedRows {
        assert!(split.factors.is_empty() || split.factors.len() == inputs, "smoothing of another input");
        let inside = split.columns.last().is_none_or(|&c| (c as usize) < inputs);
        assert!(inside, "split channels of a wider input");
        let cols = inputs + split.columns.len();
        let codes = Lines::zeroed(rows * cols.next_multiple_of(64));
        QuantizedRows { codes, scale: vec![1.0; rows], zero: vec![0; rows], cols }
    }

    /// All rows, each on its own. Rows without columns are not among them: they have nothing to be written.
    pub(crate) fn rows_mut(&mut self) -> Vec<RowMut<'_>> {
        let stride = self.stride();
        if stride == 0 {
            return Vec::new();
        }
        let codes = self.codes.of_mut::<u8>().chunks_exact_mut(stride);
        let row = |(codes, (scale, zero))| RowMut { codes, scale, zero };
        codes.zip(self.scale.iter_mut().zip(&mut self.zero)).map(row).collect()
    }
}

/// Codes of one row, filled up with codes of zero to a multiple of 16.
pub(crate) struct QuantizeRow<'a> {
    pub row: &'a [f32],
    pub grid: RowGrid,
    /// The padded row.
    pub codes: &'a mut [u8],
    /// Channels with extra columns (`row` is smoothed already), and room for a row.
    pub split: Option<(&'a Shaping, &'a mut Vec<f32>)>,
}

impl Kernel for QuantizeRow<'_> {
    type Output = Fit;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Fit {
        let mut range = self.row; // sets scale and zero point
        let mut split = None;
        if let Some((given, shared)) = self.split
            && !given.runs.is_empty()
        {
            shared.clear();
            shared.extend_from_slice(self.row);
            given.share(shared);
            (range, split) = (&*shared, Some(given));
        }
        let (full, rest) = range.as_chunks::<LANES>();
        let (mut most, mut lo, mut hi) = (s.splat_i(0), s.splat(0.0), s.splat(0.0));
        for x in full {
            let x = s.load(x);
            most = s.max_i(most, s.and_i(s.bits(x), s.splat_i(i32::MAX)));
            lo = s.min(lo, x);
            hi = s.max(hi, x);
        }
        // The tail is filled with +0.0, which changes none of the three.
        let x = s.load_any(rest);
        most = s.max_i(most, s.and_i(s.bits(x), s.splat_i(i32::MAX)));
        lo = s.min(lo, x);
        hi = s.max(hi, x);
        let most = f32::from_bits(s.largest_i(most) as u32);
        let lo = -s.largest(s.sub(s.splat(0.0), lo));
        let fit = Fit::of(self.grid, most, lo, s.largest(hi));

        if fit.flat {
            self.codes.fill(fit.zero as u8);
            return fit;
        }
        let (r, zero) = (s.splat(1.0 / fit.scale), s.splat_i(fit.zero));
        let least = s.splat_i(self.grid.least());
        let most = s.splat_i(255);
        let (full, rest) = self.row.as_chunks::<LANES>();
        let (codes, _) = self.codes.as_chunks_mut::<LANES>();
        for (x, codes) in full.iter().zip(codes.iter_mut()) {
            let code = s.add_i(s.round(s.mul(s.load(x), r)), zero);
            s.store_bytes(s.min_i(s.max_i(code, least), most), codes);
        }
        if !rest.is_empty() {
            let code = s.add_i(s.round(s.mul(s.load_any(rest), r)), zero);
            s.store_bytes(s.min_i(s.max_i(code, least), most), &mut codes[full.len()]);
        }
        if let Some(split) = split {
            split.spread(self.row, &fit, self.grid.least(), self.codes);
        }
        fit
    }
}

/// Codes and scales of `weight [rows, cols]`, one scale per row (an output channel): `([rows * cols], [rows])`.
///
/// `scale = max|w| / 127; r = 1 / scale; code = clamp(round(w * r), -127, 127)`, ties to even. A row whose
/// scale is below the smallest normal number has scale 1 and codes 0; a row that is not finite has scale NaN
/// and codes 0, which `PackedI8::pack` refuses. Panics unless `weight.len() == rows * cols`.
pub fn quantize_weight_rows(weight: &[f32], rows: usize, cols: usize) -> (Vec<i8>, Vec<f32>) {
    assert_eq!(weight.len(), rows * cols, "values of a [{rows}, {cols}] weight");
    let mut codes = vec![0; weight.len()];
    let mut scales = Vec::with_capacity(rows);
    for i in 0..rows {
        let (row, codes) = (&weight[i * cols..(i + 1) * cols], &mut codes[i * cols..(i + 1) * cols]);
        let most = row.iter().map(|w| w.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        let fit = Fit::of(RowGrid::Symmetric, f32::from_bits(most), 0.0, 0.0);
        scales.push(fit.scale);
        if !fit.flat {
            let r = 1.0 / fit.scale;
            for (code, w) in codes.iter_mut().zip(row) {
                *code = (w * r).round_ties_even().clamp(-127.0, 127.0) as i8;
            }
        }
    }
    (codes, scales)
}

#[cfg(test)]
mod tests;
