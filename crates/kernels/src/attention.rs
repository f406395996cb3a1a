//! Attention over ragged sequences, with the disentangled position terms of DeBERTa.
//!
//! For each sequence, head and query i, over the keys j of the same sequence (no mask, no padding):
//!
//! ```text
//! s_ij = ((q_i . k_j) + (q_i . K_r[idx(i-j)]) + (k_j . Q_r[idx(i-j)])) * scale      absent terms skipped
//! e_ij = exp(s_ij - max_j s_ij);   sum_i over 16 partial sums
//! y_i  = (sum_j e_ij v_j) * (1 / sum_i)
//! ```
//!
//! Each dot product is an fma chain over the head's columns from +0.0, or with int8 operands
//! `f32(sum of codes) * (scale * scale)`, codes and scales of each row of a head being those of
//! [`crate::quantize_rows`] on symmetric grids, or of queries and keys of a head on one [`FixedGrid`] each. The last
//! sum is an fma chain over j from +0.0. With a mix, scores are mixed across heads before exp, and
//! `e_ij * (1 / sum_i)` is mixed before the last sum, which is then not divided again. With int8 values, weights
//! `p = round(16 256 e)` are taken in two parts, `p = 128 u + l`, and `w_jc` are the codes of column c of the sequence's
//! values around the column's middle `m_c`, in steps of `t_c`:
//!
//! ```text
//! y_ic = fma(fma(f32(sum_j u_ij w_jc), 128, f32(sum_j l_ij w_jc)), (1 / f32(sum_j p_ij)) * t_c, m_c)
//! m = lo / 2 + hi / 2;   t = max(hi - m, m - lo) / 127;   w = round((v - m) * (1 / t))
//! ```
//!
//! with exact sums. A query row is computed alone, so neither the neighbours in the batch nor the block it falls into
//! can change it.

use std::ops::Range;

#[cfg(doc)]
use crate::FixedGrid;
use crate::gemm_i8::MOST_WEIGHTS;
use crate::matrix::Lines;
use crate::parallel::{for_each_tile, steps};
use crate::{Context, Matrix};

mod operands;
mod relative;
mod scores;
mod task;

pub use operands::{HeadGrids, Operands, Values};
pub use relative::RelativeKeys;

/// The rows of one sequence in the ragged token matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// Which tokens ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queries {
    /// Every token: `q` has one row per token.
    All,
    /// The first token of each sequence: `q` has one row per sequence.
    First,
}

/// What one layer's attention computes.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Number of heads.
    pub heads: usize,
    /// Columns of one head.
    pub head_size: usize,
    /// Multiplies the summed scores.
    pub scale: f32,
    /// What `q_i . k_j` multiplies; a table of positions says itself what its products do.
    pub content: &'a Operands,
    /// What the weighted sum of the values multiplies.
    pub values: Values,
    /// Content to position: adds `q_i . K_r[idx]`.
    pub key_positions: Option<&'a RelativeKeys>,
    /// Position to content: adds `k_j . Q_r[idx]`.
    pub query_positions: Option<&'a RelativeKeys>,
    /// Table row for each distance `i - j`: entry `(i - j) + (len_max - 1)`, `[2 * len_max - 1]`. Only read
    /// when there are positions.
    pub index: &'a [u32],
    /// Longest sequence that `index` covers.
    pub len_max: usize,
    /// Talking heads: `[heads, heads]` mix of the scores and of the weights, `out[g] = sum_h M[g, h] in[h]`,
    /// an fma chain over h from +0.0.
    pub mix: Option<(&'a [f32], &'a [f32])>,
}

/// Rows of queries that one strip of scores covers.
const STRIP: usize = 32;

/// Attention of `q` over `k` and `v` `[tokens, heads * head_size]` in the sequences `spans` -> a matrix of
/// the shape of `q`.
///
/// `q` is `[tokens, heads * head_size]` for [`Queries::All`], and `[spans, heads * head_size]` for
/// [`Queries::First`], with the same results for those rows. Rows of no sequence, and the row of an empty
/// sequence, are +0.0. Panics on unequal shapes, on spans that do not ascend without overlap, on a sequence
/// longer than `len_max`, on an index outside the table, and with int8 values on a mix or a sequence of more than 132 000
/// tokens.
pub fn attend(
    cx: &Context,
    spec: &Attention,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    spans: &[Span],
    queries: Queries,
) -> Matrix {
    check(spec, q, k, v, spans, queries);
    let mut out = Matrix::zeros(q.rows(), q.cols());
    let groups = match spec.mix {
        Some(_) => steps(spec.heads, spec.heads),
        None => steps(spec.heads, 1),
    };
    let parts = split(cx.threads.count(), groups.len(), spans, queries);
    let rows: Vec<Range<usize>> = parts.iter().map(|part| part.out.clone()).collect();
    let cols: Vec<Range<usize>> =
        groups.iter().map(|heads| heads.start * spec.head_size..heads.end * spec.head_size).collect();
    let down = spec.key_positions.map(|_| relative::Walk::down(spec.index));
    let up = spec.query_positions.map(|_| relative::Walk::up(spec.index));
    let (down, up) = (down.as_ref(), up.as_ref());
    for_each_tile(&cx.threads, &mut out, &rows, &cols, |part, group, tile| {
        let part = &parts[part];
        let task = task::Task { isa: cx.isa, spec, down, up, q, k, v, part, heads: groups[group].clone() };
        task.run(tile);
    });
    out
}

/// Consecutive queries of one sequence.
struct Part {
    span: Span,
    /// Positions in the sequence.
    queries: Range<usize>,
    /// Their rows in `q` and in the output.
    out: Range<usize>,
}

/// Whole sequences if there are enough tasks for the threads, else pieces of whole strips.
fn split(threads: usize, groups: usize, spans: &[Span], queries: Queries) -> Vec<Part> {
    let pieces = (4 * threads).div_ceil((spans.len() * groups).max(1));
    let pieces = if threads == 1 { 1 } else { pieces };
    let mut parts = Vec::new();
    for (s, &span) in spans.iter().enumerate().filter(|(_, span)| span.len > 0) {
        match queries {
            Queries::First => parts.push(Part { span, queries: 0..1, out: s..s + 1 }),
            Queries::All => {
                for queries in steps(span.len, span.len.div_ceil(pieces).next_multiple_of(STRIP)) {
                    let out = span.start + queries.start..span.start + queries.end;
                    parts.push(Part { span, queries, out });
                }
            }
        }
    }
    parts
}

fn check(spec: &Attention, q: &Matrix, k: &Matrix, v: &Matrix, spans: &[Span], queries: Queries) {
    let cols = spec.heads * spec.head_size;
    assert!(cols > 0, "attention with {} heads of {} columns", spec.heads, spec.head_size);
    assert_eq!((q.cols(), k.cols(), v.cols()), (cols, cols, cols), "columns of q, k and v");
    assert_eq!(k.rows(), v.rows(), "rows of k and v");
    let expected = match queries {
        Queries::All => k.rows(),
        Queries::First => spans.len(),
    };
    assert_eq!(q.rows(), expected, "rows of q");
    let mut reached = 0;
    for span in spans {
        assert!(
            span.start >= reached && span.len <= k.rows(),
            "sequence {span:?} overlaps the one before it"
        );
        reached = span.start + span.len;
        assert!(reached <= k.rows(), "sequence {span:?} leaves the {} tokens", k.rows());
    }
    if let Operands::Int8Static(grids) = spec.content {
        assert_eq!(grids.heads(), spec.heads, "heads with grids");
    }
    if let Some((scores, weights)) = spec.mix {
        let size = spec.heads * spec.heads;
        assert!(scores.len() == size && weights.len() == size, "a mix of {} heads", spec.heads);
    }
    let longest = spans.iter().map(|span| span.len).max().unwrap_or(0);
    if spec.values == Values::Int8 {
        assert!(spec.mix.is_none(), "int8 values of mixed heads");
        assert!(longest <= MOST_WEIGHTS, "int8 values of {longest} tokens");
    }
    assert!(spec.key_positions.is_none_or(|table| table.is_descending()), "K_r is packed as K_r");
    assert!(spec.query_positions.is_none_or(|table| !table.is_descending()), "Q_r is packed as Q_r");
    for table in [spec.key_positions, spec.query_positions].into_iter().flatten() {
        assert_eq!(
            (table.heads(), table.head_size()),
            (spec.heads, spec.head_size),
            "heads of a relative table"
        );
        assert!(longest <= spec.len_max, "a sequence of {longest} tokens, but len_max is {}", spec.len_max);
        assert_eq!(spec.index.len() + 1, 2 * spec.len_max.max(1), "length of the relative index");
        let most = spec.index.iter().max().copied().unwrap_or(0) as usize;
        assert!(most < table.rows(), "relative index {most} in a table of {} rows", table.rows());
    }
}

#[cfg(test)]
mod tests;
