//! The two sides of a score product, in f32 or as int8 codes.

use std::ops::Range;

use super::Lines;
use crate::Isa;
use crate::gemm_f32::Block;
use crate::gemm_i8::{CodedPanels, CodedRows};
use crate::lanes::LANES;
use crate::parallel::Tile;
use crate::rows::{FixedGrid, InputGrid, RowGrid};

/// What the products of attention scores multiply: an explicit choice, since its bits differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Operands {
    /// f32 values.
    #[default]
    Float,
    /// int8 codes: each row of each head (a query, a key, a row of a relative table) on its own symmetric grid.
    Int8,
    /// int8 codes: queries and keys of a head on one stored grid each; rows of relative tables, which no data
    /// change, on their own.
    Int8Static(HeadGrids),
}

impl Operands {
    /// Whether they are codes.
    pub fn is_coded(&self) -> bool {
        *self != Operands::Float
    }

    /// The grid of the queries of `head`, wherever they meet codes.
    pub(super) fn query_grid(&self, head: usize) -> InputGrid {
        self.grid(|grids| grids.query[head])
    }

    /// The grid of the keys of `head`, likewise.
    pub(super) fn key_grid(&self, head: usize) -> InputGrid {
        self.grid(|grids| grids.key[head])
    }

    fn grid(&self, stored: impl Fn(&HeadGrids) -> FixedGrid) -> InputGrid {
        match self {
            Operands::Int8Static(grids) => InputGrid::Fixed(stored(grids)),
            Operands::Float | Operands::Int8 => OWN,
        }
    }
}

/// What the weighted sum of the values multiplies: an explicit choice, since its bits differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// f32 values.
    #[default]
    Float,
    /// Codes: each column of the values of a sequence in 8 bits around its middle, attention weights in 14 bits of the
    /// row's largest. Not with [`super::Attention::mix`].
    Int8,
}

/// Each row on its own grid.
pub(super) const OWN: InputGrid = InputGrid::Row(RowGrid::Symmetric);

/// Stored symmetric grids of queries and of keys, one for each head.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadGrids {
    query: Vec<FixedGrid>,
    key: Vec<FixedGrid>,
}

impl HeadGrids {
    /// From the scales of queries and of keys, `[heads]` each, in real units per code.
    ///
    /// Errors: a sentence, for unequal numbers of heads or a scale that is not a normal number above 0 (with its head).
    pub fn new(query: &[f32], key: &[f32]) -> Result<HeadGrids, String> {
        if query.len() != key.len() {
            return Err(format!("{} heads of queries and {} of keys", query.len(), key.len()));
        }
        let grids = |of: &str, scales: &[f32]| -> Result<Vec<_>, String> {
            let grid = |(head, scale): (usize, &f32)| {
                FixedGrid::symmetric(*scale).map_err(|e| format!("{e}, for the {of} of head {head}"))
            };
            scales.iter().enumerate().map(grid).collect()
        };
        Ok(HeadGrids { query: grids("queries", query)?, key: grids("keys", key)? })
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.query.len()
    }

    /// The grids of queries and of keys, `[heads]` each.
    pub fn grids(&self) -> [&[FixedGrid]; 2] {
        [&self.query, &self.key]
    }
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
    /// The first `size` values of `count` rows of `x`, `stride` apart, and their codes if there is a grid for them.
    pub fn new(
        isa: Isa,
        x: &'a [f32],
        stride: usize,
        [count, size]: [usize; 2],
        grid: Option<InputGrid>,
    ) -> Rows<'a> {
        let coded = grid.map(|grid| CodedRows::new(isa, x, stride, [count, size], grid));
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
    /// `coded`: of their codes.
    pub fn new(rows: &Rows, coded: bool, used: Use) -> Panels {
        match (coded, used) {
            (false, _) => Panels::float(rows),
            (true, Use::Passing) => Panels::Int8(CodedPanels::passing(rows.coded())),
            (true, Use::Lasting) => Panels::Int8(CodedPanels::lasting(rows.coded())),
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
                panels: &lines.of::<[f32; LANES]>()[numbers.start * size..numbers.end * size],
                bias: None,
                out,
            }),
            Panels::Int8(panels) => panels.multiply(isa, rows.coded(), some, numbers, out),
        }
    }
}
