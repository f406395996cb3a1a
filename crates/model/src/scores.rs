//! Attention scores term by term, for whoever has to explain them: observers of probabilities, diagnosis.
//!
//! The network does not run this page (`qberta_kernels::attend` is its attention); it writes the same
//! definition out in matrices that can be looked at. A test holds the two together.

use crate::batch::Batch;
use crate::config::Architecture;
use crate::engine::Rows;
use crate::forward::Positions;
use crate::model::Weights;
use crate::relative;
use qberta_kernels::{
    FixedGrid, Matrix, Operands, Span, Values, WEIGHT_STEPS, quantize_weight_rows, softmax_row,
};
use std::ops::Range;

/// The scores of one head in one sequence, each `[queries, keys]` and scaled as they are summed.
#[derive(Clone, Debug)]
pub struct Scores {
    /// Content to content, `q_i . k_j`.
    pub c2c: Matrix,
    /// Content to position, `q_i . K_r[i - j]`.
    pub c2p: Option<Matrix>,
    /// Position to content, `k_j . Q_r[i - j]`.
    pub p2c: Option<Matrix>,
}

impl Scores {
    /// The sum of the terms.
    pub fn sum(&self) -> Matrix {
        let mut sum = self.c2c.clone();
        for term in [&self.c2p, &self.p2c].into_iter().flatten() {
            for (s, t) in sum.as_mut_slice().iter_mut().zip(term.as_slice()) {
                *s += t;
            }
        }
        sum
    }
}

/// The rows of `q` that belong to sequence `number` of a batch, when `q` holds `rows`.
pub fn query_rows(span: Span, number: usize, rows: Rows) -> Range<usize> {
    match rows {
        Rows::All => span.start..span.start + span.len,
        Rows::First => number..number + 1,
    }
}

/// The scores of every head in sequence `number` of `batch`, with `operands` as the layer multiplies them.
///
/// `q [rows, heads * head_size]` holds `rows`, `k` one row per token; `tables` are the projected relative
/// tables of the layer ([`crate::forward::project_positions`]).
pub fn scores(
    arch: &Architecture,
    operands: &Operands,
    tables: &Positions<Matrix>,
    (q, rows): (&Matrix, Rows),
    k: &Matrix,
    batch: &Batch,
    number: usize,
) -> Vec<Scores> {
    let span = batch.spans()[number];
    let queries = query_rows(span, number, rows);
    let scale = ((arch.head_size * arch.score_terms) as f32).sqrt().recip();
    let index = match &arch.relative {
        Some(r) => relative::index(span.len, r),
        None => Vec::new(),
    };
    let distance = |i: usize, j: usize| index[i + span.len - 1 - j] as usize;
    let grid = |value: &dyn Fn(usize, usize) -> f32| {
        let mut grid = Matrix::zeros(queries.len(), span.len);
        for i in 0..queries.len() {
            for (j, cell) in grid.row_mut(i).iter_mut().enumerate() {
                *cell = scale * value(i, j);
            }
        }
        grid
    };
    (0..arch.heads)
        .map(|head| {
            let cells = head * arch.head_size..(head + 1) * arch.head_size;
            let [query, key] = match operands {
                Operands::Float => [Multiplied::Values; 2],
                Operands::Int8 => [Multiplied::Coded; 2],
                Operands::Int8Static(grids) => grids.grids().map(|g| Multiplied::On(g[head])),
            };
            let table = if operands.is_coded() { Multiplied::Coded } else { Multiplied::Values };
            let whole = |x: &Matrix| table.of(x, 0..x.rows(), cells.clone());
            let q = query.of(q, queries.clone(), cells.clone());
            let k = key.of(k, span.start..span.start + span.len, cells.clone());
            Scores {
                c2c: grid(&|i, j| dot(q.row(i), k.row(j))),
                c2p: tables
                    .key
                    .as_ref()
                    .map(whole)
                    .map(|t| grid(&|i, j| dot(q.row(i), t.row(distance(i, j))))),
                p2c: tables
                    .query
                    .as_ref()
                    .map(whole)
                    .map(|t| grid(&|i, j| dot(k.row(j), t.row(distance(i, j))))),
            }
        })
        .collect()
}

/// What a product takes of a row.
#[derive(Clone, Copy)]
enum Multiplied {
    /// Its values.
    Values,
    /// What its codes on a grid of its own stand for.
    Coded,
    /// What its codes on this grid stand for.
    On(FixedGrid),
}

impl Multiplied {
    /// The part of `x` that one head multiplies.
    fn of(self, x: &Matrix, rows: Range<usize>, cells: Range<usize>) -> Matrix {
        let mut part = Matrix::zeros(rows.len(), cells.len());
        for (to, from) in rows.enumerate() {
            let (row, to) = (&x.row(from)[cells.clone()], part.row_mut(to));
            match self {
                Multiplied::Values => to.copy_from_slice(row),
                Multiplied::Coded => {
                    let (codes, scale) = quantize_weight_rows(row, 1, row.len());
                    to.iter_mut().zip(codes).for_each(|(y, code)| *y = f32::from(code) * scale[0]);
                }
                Multiplied::On(grid) => {
                    to.iter_mut().zip(row).for_each(|(y, x)| *y = grid.nearest(*x));
                }
            }
        }
        part
    }
}

/// The attention weights of every head, `[queries, keys]`, in `layer` of a model with `weights`: softmax of the summed scores, mixed across
/// heads before and after where the layer has talking heads. Where the context is computed from codes, what
/// those stand for.
pub fn probabilities(scores: &[Scores], weights: &Weights, layer: usize) -> Vec<Matrix> {
    let talking = weights.talking.get(layer);
    let mut heads: Vec<Matrix> = scores.iter().map(Scores::sum).collect();
    if let Some(talking) = talking {
        heads = mix(&heads, &talking.logits);
    }
    for head in &mut heads {
        for i in 0..head.rows() {
            softmax_row(head.row_mut(i));
            if weights.context(layer) == Values::Int8 {
                code_weights(head.row_mut(i));
            }
        }
    }
    match talking {
        Some(talking) => mix(&heads, &talking.weights),
        None => heads,
    }
}

/// Weights in steps of the largest, again with a sum of 1.
fn code_weights(row: &mut [f32]) {
    let most = row.iter().copied().fold(0.0, f32::max);
    row.iter_mut().for_each(|p| *p = (*p / most * WEIGHT_STEPS).round_ties_even());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|p| *p /= sum);
}

/// `out[g] = sum_h m[g, h] in[h]`.
fn mix(heads: &[Matrix], m: &[f32]) -> Vec<Matrix> {
    m.chunks_exact(heads.len())
        .map(|weights| {
            let mut out = Matrix::zeros(heads[0].rows(), heads[0].cols());
            for (head, w) in heads.iter().zip(weights) {
                for (o, x) in out.as_mut_slice().iter_mut().zip(head.as_slice()) {
                    *o = w.mul_add(*x, *o);
                }
            }
            out
        })
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, a) = a.as_chunks::<8>();
    let (b8, b) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() + sums.iter().sum::<f32>()
}
