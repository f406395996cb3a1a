//! Products of activations with activations, both as int8 codes: what attention is made of.
//!
//! The same sums and the same last step as [`super::gemm_i8`], without a bias.

use std::ops::Range;

use super::{Columns, GROUP, I8, Order, compute, word_of};
use crate::Isa;
use crate::lanes::{Kernel, LANES, Simd};
use crate::matrix::Lines;
use crate::parallel::Tile;
use crate::rows::{InputGrid, QuantizeFixed, QuantizeRow, Shaping};

/// The code that means 0 in a row on a symmetric grid.
const ZERO: i32 = 128;

/// Rows at most in one product.
pub(crate) const ROWS: usize = 64;

/// Rows of `size` values as u8 codes: the first operand.
pub(crate) struct CodedRows {
    codes: Lines, // rows padded to 64 codes
    scale: Vec<f32>,
    zero: i32, // the code that means 0
    size: usize,
}

impl CodedRows {
    /// The first `size` values of `rows` rows of `x`, `stride` apart, on `grid`, which is symmetric.
    pub fn new(isa: Isa, x: &[f32], stride: usize, [rows, size]: [usize; 2], grid: InputGrid) -> CodedRows {
        let mut coded = CodedRows {
            codes: Lines::zeroed(rows * size.next_multiple_of(64)),
            scale: vec![1.0; rows],
            zero: ZERO,
            size,
        };
        let (codes, scale) = (coded.codes.of_mut(), &mut coded.scale[..]);
        isa.run(Code { x, stride, size, grid, codes, scale });
        coded
    }

    /// Room for `rows` rows of `size` codes whose 0 is 0, with scale 1, to be filled by [`CodedRows::rows_mut`].
    pub fn empty(rows: usize, size: usize) -> CodedRows {
        let codes = Lines::zeroed(rows * size.next_multiple_of(64));
        CodedRows { codes, scale: vec![1.0; rows], zero: 0, size }
    }

    /// The codes of rows `rows`, each padded to a multiple of 64 with codes that count for nothing.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> impl Iterator<Item = &mut [u8]> {
        let stride = self.stride();
        self.codes.of_mut()[rows.start * stride..rows.end * stride].chunks_exact_mut(stride.max(1))
    }

    fn stride(&self) -> usize {
        self.size.next_multiple_of(64)
    }

    fn groups(&self) -> usize {
        self.size.div_ceil(GROUP)
    }
}

struct Code<'a> {
    x: &'a [f32],
    stride: usize,
    size: usize,
    grid: InputGrid,
    codes: &'a mut [u8],
    scale: &'a mut [f32],
}

impl Kernel for Code<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let padded = self.size.next_multiple_of(64).max(1);
        let split = &Shaping::default();
        for (i, (codes, scale)) in self.codes.chunks_exact_mut(padded).zip(self.scale).enumerate() {
            let row = &self.x[i * self.stride..][..self.size];
            *scale = match self.grid {
                InputGrid::Row(grid) => QuantizeRow { row, grid, codes, split: None }.run(s).scale,
                InputGrid::Fixed(grid) => QuantizeFixed { row, grid, codes, split }.run(s),
            };
        }
    }
}

/// Rows as the columns of a product, in panels of 16: the second operand.
#[derive(Clone)]
pub(crate) struct CodedPanels {
    lines: Lines,    // [panels, groups]
    scale: Vec<f32>, // [panels * 16], 0 past the last row
    sums: Vec<i32>,  // likewise
    order: Order,
    groups: usize,
}

impl CodedPanels {
    /// For one use: no time is spent on a better order of the sums.
    pub fn passing(rows: &CodedRows) -> CodedPanels {
        CodedPanels::new(rows, |_, groups| Order::wide(groups))
    }

    /// For many.
    pub fn lasting(rows: &CodedRows) -> CodedPanels {
        CodedPanels::new(rows, |lines, groups| Order::of(lines.of(), groups))
    }

    fn new(rows: &CodedRows, order: impl Fn(&Lines, usize) -> Order) -> CodedPanels {
        let (groups, count) = (rows.groups(), rows.scale.len());
        let columns = count.next_multiple_of(LANES);
        let mut lines = Lines::zeroed(columns * groups * GROUP);
        let words: &mut [[i8; GROUP]] = lines.of_mut();
        let (mut scale, mut sums) = (rows.scale.clone(), vec![0; columns]);
        scale.resize(columns, 0.0);
        for (j, row) in rows.codes.of::<u8>().chunks_exact(rows.stride().max(1)).enumerate().take(count) {
            let column = words[word_of(groups, j, 0).min(columns * groups)..].iter_mut().step_by(LANES);
            // Codes past `size` in the last word are those of 0, since the quantizer fills whole registers.
            for (word, codes) in column.zip(&row.as_chunks::<GROUP>().0[..groups]) {
                // Code - 128 in two's complement is the code with its top bit turned.
                *word = codes.map(|code| (code ^ 0x80) as i8);
                sums[j] += word.iter().map(|&code| i32::from(code)).sum::<i32>();
            }
        }
        let order = order(&lines, groups);
        CodedPanels { lines, scale, sums, order, groups }
    }

    /// Packed `lines [panels, groups]` for rows whose 0 is 0 and whose codes are at most 127; sums come unscaled.
    pub fn of_lines(lines: Lines, columns: usize, groups: usize) -> CodedPanels {
        let (scale, sums) = (vec![1.0; columns], vec![0; columns]);
        CodedPanels { lines, scale, sums, order: Order::narrow(groups), groups }
    }

    /// `out[i, j] = f32(sum of codes) * (scale of row i * scale of column j)` for rows `rows` (at most
    /// [`ROWS`]) and the columns of panels `numbers`, of which `out` has as many as it wants.
    pub fn multiply(
        &self,
        isa: Isa,
        x: &CodedRows,
        rows: Range<usize>,
        numbers: Range<usize>,
        out: &mut Tile,
    ) {
        let (stride, cols) =
            (x.stride() / GROUP, numbers.start * LANES..numbers.start * LANES + out.cols.len());
        let product = I8 {
            x: &x.codes.of()[rows.start * stride..],
            stride,
            scale_x: &x.scale[rows.clone()],
            zero: &[x.zero; ROWS][..rows.len()],
            groups: self.groups,
            panels: &self.lines.of()[numbers.start * self.groups..numbers.end * self.groups],
            order: &self.order,
            first: numbers.start,
            columns: Columns { scale: &self.scale[cols.clone()], sums: &self.sums[cols], bias: None },
        };
        compute(isa, product, out);
    }
}
