//! The two sides of a score product, in f32 or as int8 codes.

use std::ops::Range;

use super::Lines;
use crate::Isa;
use crate::gemm_f32::Block;
use crate::gemm_i8::{CodedPanels, CodedRows};
use crate::lanes::LANES;
use crate::parallel::Tile;

/// What the products of attention scores multiply: an explicit choice, since its bits differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operands {
    /// f32 values.
    #[default]
    Float,
    /// int8 codes: each row of each head (a query, a key, a row of a relative table) on its own symmetric grid.
    Int8,
}

/// Rows of one head: queries or keys.
pub(super) struct Rows<'a> {
    x: &'a [f32],
    stride: usize,
    count: usize,
    size: usize,
    /// Their codes, if any product wants them.
    coded: Option<CodedRows>,
}

impl<'a> Rows<'a> {
    /// The first `size` values of `count` rows of `x`, `stride` apart.
    pub fn new(isa: Isa, x: &'a [f32], stride: usize, count: usize, size: usize, coded: bool) -> Rows<'a> {
        let coded = coded.then(|| CodedRows::new(isa, x, stride, count, size));
        Rows { x, stride, count, size, coded }
    }

    fn coded(&self) -> &CodedRows {
        self.coded.as_ref().expect("rows that a product with codes reads were coded")
    }
}

/// How often panels are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// By one sequence.
    Passing,
    /// As long as the model lives.
    Lasting,
}

/// Rows of one head as the columns of a product, in panels of 16.
#[derive(Clone)]
pub(super) enum Panels {
    Float {
        lines: Lines, // [panels, size]
        size: usize,
    },
    Int8(CodedPanels),
}

impl Panels {
    pub fn new(rows: &Rows, operands: Operands, used: Use) -> Panels {
        match (operands, used) {
            (Operands::Float, _) => Panels::float(rows),
            (Operands::Int8, Use::Passing) => Panels::Int8(CodedPanels::passing(rows.coded())),
            (Operands::Int8, Use::Lasting) => Panels::Int8(CodedPanels::lasting(rows.coded())),
        }
    }

    fn float(rows: &Rows) -> Panels {
        let size = rows.size;
        let mut lines = Lines::zeroed(rows.count.div_ceil(LANES) * size * LANES * 4);
        for j in 0..rows.count {
            let panel = &mut lines.of_mut::<[f32; LANES]>()[j / LANES * size..][..size];
            for (line, &x) in panel.iter_mut().zip(&rows.x[j * rows.stride..][..size]) {
                line[j % LANES] = x;
            }
        }
        Panels::Float { lines, size }
    }

    /// Products of rows `some` (at most [`super::STRIP`]) of `rows` with the columns of panels `numbers`, of
    /// which `out` has as many as it wants.
    pub fn multiply(&self, isa: Isa, rows: &Rows, some: Range<usize>, numbers: Range<usize>, out: &mut Tile) {
        match self {
            Panels::Float { lines, size } => isa.run(Block {
                x: &rows.x[some.start * rows.stride..],
                stride: rows.stride,
                depth: *size,
                panels: &lines.of()[numbers.start * size..numbers.end * size],
                bias: None,
                out,
            }),
            Panels::Int8(panels) => panels.multiply(isa, rows.coded(), some, numbers, out),
        }
    }
}
