//! Projected relative positions of one layer, packed for the score kernels.

use std::ops::Range;

use super::operands::{OWN, Panels, Rows, Use};
use crate::lanes::LANES;
use crate::{Isa, Matrix};

/// `K_r` or `Q_r` of one layer: for each head the projected rows of the relative table, `[rows, head_size]`.
///
/// Stored per head as panels of 16 table rows, in the order in which a row of scores reads their products: with
/// j for `K_r`, so descending (column t is table row `rows - 1 - t`), with i for `Q_r`, so ascending.
#[derive(Clone)]
pub struct RelativeKeys {
    panels: Vec<Panels>, // one for each head
    coded: bool,
    descending: bool,
    rows: usize,
    head_size: usize,
}

impl RelativeKeys {
    /// Packs `K_r`, `projected [table rows, heads * head_size]`; `coded`: as int8 codes, each row of each head on its
    /// own symmetric grid. Panics unless its columns divide into `heads`.
    pub fn pack(isa: Isa, projected: &Matrix, heads: usize, coded: bool) -> RelativeKeys {
        RelativeKeys::pack_either(isa, projected, heads, coded, true)
    }

    /// Packs `Q_r`, likewise.
    pub fn pack_queries(isa: Isa, projected: &Matrix, heads: usize, coded: bool) -> RelativeKeys {
        RelativeKeys::pack_either(isa, projected, heads, coded, false)
    }

    fn pack_either(
        isa: Isa,
        projected: &Matrix,
        heads: usize,
        coded: bool,
        descending: bool,
    ) -> RelativeKeys {
        let (rows, cols) = (projected.rows(), projected.cols());
        assert!(heads > 0 && cols.is_multiple_of(heads), "{heads} heads in {cols} columns");
        let head_size = cols / heads;
        let head = |head: usize| {
            let mut x = Matrix::zeros(rows, head_size);
            for t in 0..rows {
                let a = if descending { rows - 1 - t } else { t };
                x.row_mut(t).copy_from_slice(&projected.row(a)[head * head_size..(head + 1) * head_size]);
            }
            let rows = Rows::new(isa, x.as_slice(), head_size, [rows, head_size], coded.then_some(OWN));
            Panels::new(&rows, coded, Use::Lasting)
        };
        RelativeKeys { panels: (0..heads).map(head).collect(), coded, descending, rows, head_size }
    }

    /// Whether products with the table are products of codes.
    pub fn is_coded(&self) -> bool {
        self.coded
    }

    /// Rows of the relative table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.panels.len()
    }

    /// Columns of one head.
    pub fn head_size(&self) -> usize {
        self.head_size
    }

    /// Whether column t is table row `rows - 1 - t`.
    pub(super) fn is_descending(&self) -> bool {
        self.descending
    }

    /// The panels that hold table rows `reached`.
    pub(super) fn panels_of(&self, reached: Range<usize>) -> Range<usize> {
        let columns = match self.descending {
            true => self.rows - reached.end..self.rows - reached.start,
            false => reached,
        };
        columns.start / LANES..columns.end.div_ceil(LANES)
    }

    /// The panels of `head`.
    pub(super) fn panels(&self, head: usize) -> &Panels {
        &self.panels[head]
    }
}

impl std::fmt::Debug for RelativeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelativeKeys[{} rows, {} heads of {}]", self.rows, self.heads(), self.head_size)
    }
}

/// How eight neighbouring distances lie in the columns of a product, from each distance on.
///
/// Next to the diagonal they are eight neighbouring columns. Further out, in DeBERTa's logarithmic buckets, they
/// repeat some of at most eight: one load and one permutation. Any other index is read value by value.
pub(super) struct Walk {
    /// By distance, as in the index.
    pub steps: Vec<Step>,
}

/// Eight distances: lane l reads column `turn[l]` after the first.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub turn: [u8; 8],
    pub way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Straight,
    Turned,
    Scattered,
}

impl Walk {
    /// From distance d on to d + 1, d + 2, ..: how query positions are read, along i.
    pub fn up(index: &[u32]) -> Walk {
        Walk::new(index, |d, l| (d + l).min(index.len() - 1), |first, a| i64::from(a) - i64::from(first))
    }

    /// From distance d on to d - 1, d - 2, ..: how key positions are read, along j.
    pub fn down(index: &[u32]) -> Walk {
        Walk::new(index, |d, l| d.saturating_sub(l), |first, a| i64::from(first) - i64::from(a))
    }

    fn new(index: &[u32], at: impl Fn(usize, usize) -> usize, columns: impl Fn(u32, u32) -> i64) -> Walk {
        let step = |d: usize| {
            let far: [i64; 8] = std::array::from_fn(|l| columns(index[d], index[at(d, l)]));
            let way = match far {
                [0, 1, 2, 3, 4, 5, 6, 7] => Way::Straight,
                _ if far.iter().all(|far| (0..8).contains(far)) => Way::Turned,
                _ => Way::Scattered,
            };
            Step { turn: far.map(|far| if way == Way::Scattered { 0 } else { far as u8 }), way }
        };
        Walk { steps: (0..index.len()).map(step).collect() }
    }
}

/// The range of table rows that `index` names. Panics on an empty one.
pub(super) fn reach(index: &[u32]) -> Range<usize> {
    let (least, most) = index.iter().fold((u32::MAX, 0), |(lo, hi), &a| (lo.min(a), hi.max(a)));
    least as usize..most as usize + 1
}
