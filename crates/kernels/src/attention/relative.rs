//! Projected relative positions of one layer, packed for the score kernels.

use std::ops::Range;

use super::{Attention, Lines};
use crate::Matrix;
use crate::lanes::LANES;

/// `K_r` or `Q_r` of one layer: for each head the projected rows of the relative table, `[rows, head_size]`.
///
/// Stored per head as panels of 16 table rows in *descending* order: column t of the panels is table row
/// `rows - 1 - t`. As j ascends, i - j descends, so neighbouring keys read neighbouring columns.
#[derive(Clone)]
pub struct RelativeKeys {
    lines: Lines,
    rows: usize,
    heads: usize,
    head_size: usize,
}

impl RelativeKeys {
    /// Packs `projected [table rows, heads * head_size]`. Panics unless its columns divide into `heads`.
    pub fn pack(projected: &Matrix, heads: usize) -> RelativeKeys {
        assert!(
            heads > 0 && projected.cols().is_multiple_of(heads),
            "{heads} heads in {} columns",
            projected.cols()
        );
        let (rows, head_size) = (projected.rows(), projected.cols() / heads);
        let lines = Lines::zeroed(heads * rows.div_ceil(LANES) * head_size * LANES * 4);
        let mut packed = RelativeKeys { lines, rows, heads, head_size };
        for a in 0..rows {
            for (head, values) in projected.row(a).chunks_exact(head_size.max(1)).enumerate() {
                let first = packed.at(head, a, 0);
                let column = packed.lines.of_mut::<f32>()[first..].iter_mut().step_by(LANES);
                column.zip(values).for_each(|(to, from)| *to = *from);
            }
        }
        packed
    }

    /// Rows of the relative table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Columns of one head.
    pub fn head_size(&self) -> usize {
        self.head_size
    }

    fn at(&self, head: usize, a: usize, c: usize) -> usize {
        let t = self.rows - 1 - a;
        let panel = head * self.rows.div_ceil(LANES) + t / LANES;
        (panel * self.head_size + c) * LANES + t % LANES
    }

    /// The panels of `head` numbered `panels`, `[panels, head_size]` lines.
    pub(super) fn panels(&self, head: usize, panels: Range<usize>) -> &[[f32; LANES]] {
        let first = head * self.rows.div_ceil(LANES);
        &self.lines.of()[(first + panels.start) * self.head_size..(first + panels.end) * self.head_size]
    }

    /// Table rows `rows` of `head`, `[rows.len(), head_size]`, row-major.
    pub(super) fn unpack(&self, head: usize, rows: Range<usize>) -> Lines {
        let mut lines = Lines::zeroed(rows.len() * self.head_size * 4);
        let (values, panels): (&mut [f32], &[f32]) = (lines.of_mut(), self.lines.of());
        for (row, a) in values.chunks_exact_mut(self.head_size).zip(rows) {
            let first = self.at(head, a, 0);
            row.iter_mut().enumerate().for_each(|(c, y)| *y = panels[first + c * LANES]);
        }
        lines
    }
}

impl std::fmt::Debug for RelativeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelativeKeys[{} rows, {} heads of {}]", self.rows, self.heads, self.head_size)
    }
}

/// For each entry of the index, how many entries before it lead up to it in steps of one:
/// `index[d - n] = index[d] - n` for all `n <= runs[d]`. Empty if the attention has no positions.
pub(super) fn runs(spec: &Attention) -> Vec<u32> {
    if spec.key_positions.is_none() && spec.query_positions.is_none() {
        return Vec::new();
    }
    let mut runs = vec![0; spec.index.len()];
    for d in 1..runs.len() {
        if u64::from(spec.index[d]) == u64::from(spec.index[d - 1]) + 1 {
            runs[d] = runs[d - 1] + 1;
        }
    }
    runs
}

/// The range of table rows that `index` names. Panics on an empty one.
pub(super) fn reach(index: &[u32]) -> Range<usize> {
    let (least, most) = index.iter().fold((u32::MAX, 0), |(lo, hi), &a| (lo.min(a), hi.max(a)));
    least as usize..most as usize + 1
}
