//! One task of attention: some heads and some consecutive queries of one sequence, strip by strip.

use std::ops::Range;

use super::relative::reach;
use super::scores::{Combine, ContentToPosition, Exp, Mix, PositionToContent, Scale};
use super::{Attention, Lines, Part, STRIP, Span};
use crate::gemm_f32::Block;
use crate::lanes::LANES;
use crate::parallel::Tile;
use crate::{Isa, Matrix};

/// The heads `heads` (all of them if they are mixed, else one) for the queries of `part`.
pub(super) struct Task<'a> {
    pub isa: Isa,
    pub spec: &'a Attention<'a>,
    pub runs: &'a [u32],
    pub q: &'a Matrix,
    pub k: &'a Matrix,
    pub v: &'a Matrix,
    pub part: &'a Part,
    pub heads: Range<usize>,
}

/// What the strips of one head share.
struct Head {
    number: usize,
    keys: Lines,            // k transposed: panels of 16 tokens, [panels, head_size]
    values: Lines,          // v: panels of 16 columns, [panels, tokens]
    query_positions: Lines, // the reachable rows of Q_r, [rows, head_size]
    query_first: usize,     // the first of those rows
}

/// Buffers of one strip.
struct Scratch {
    content: Lines,  // [STRIP, table columns] q . K_r
    position: Lines, // [WINDOW or fewer, 16] k . Q_r
}

impl Task<'_> {
    /// Fills `out [queries, heads * head_size]`.
    pub fn run(&self, mut out: Tile) {
        let keys = self.part.span.len;
        let heads: Vec<Head> = self.heads.clone().map(|head| self.pack(head)).collect();
        let stride = keys.next_multiple_of(LANES);
        // Mixed heads need their strips at the same time, so theirs are low.
        let strip = if self.spec.mix.is_some() { STRIP / 4 } else { STRIP };
        let strip = strip.min(self.part.queries.len());
        let mut scores = Lines::zeroed(heads.len() * strip * stride * 4);
        let mut mixed =
            Lines::zeroed(if self.spec.mix.is_some() { heads.len() * strip * stride * 4 } else { 0 });
        let mut scratch = Scratch { content: Lines::zeroed(0), position: Lines::zeroed(0) };
        for first in self.part.queries.clone().step_by(strip) {
            let queries = first..(first + strip).min(self.part.queries.end);
            let size = queries.len() * stride;
            let scores = &mut scores.of_mut::<f32>()[..heads.len() * size];
            for (head, scores) in heads.iter().zip(scores.chunks_exact_mut(size)) {
                self.score(head, queries.clone(), scores, stride, &mut scratch);
            }
            match self.spec.mix {
                None => self.finish(&heads[0], queries, scores, stride, &mut out, 0),
                Some(mix) => {
                    let mixed = &mut mixed.of_mut::<f32>()[..heads.len() * size];
                    self.mix(mix, scores, mixed, stride);
                    for (at, head) in heads.iter().enumerate() {
                        let weights = &scores[at * size..(at + 1) * size];
                        self.weigh(head, queries.clone(), weights, stride, &mut out, at);
                    }
                }
            }
        }
    }

    /// exp, the weighted sum of the values and the division, for one head on its own.
    fn finish(
        &self,
        head: &Head,
        queries: Range<usize>,
        scores: &mut [f32],
        stride: usize,
        out: &mut Tile,
        at: usize,
    ) {
        let mut rates = [0.0; STRIP];
        for (row, rate) in scores.chunks_exact_mut(stride).zip(&mut rates) {
            *rate = self.isa.run(Exp { row: &mut row[..self.part.span.len] });
        }
        self.weigh(head, queries.clone(), scores, stride, out, at);
        let size = self.spec.head_size;
        for (i, rate) in (queries.start - self.part.queries.start..).zip(&rates[..queries.len()]) {
            out.row(i)[at * size..(at + 1) * size].iter_mut().for_each(|y| *y *= rate);
        }
    }

    /// Scores of all heads to mixed weights, through `other` and back.
    fn mix(&self, mix: (&[f32], &[f32]), scores: &mut [f32], other: &mut [f32], stride: usize) {
        let heads = self.heads.len();
        self.isa.run(Mix { mix: mix.0, from: scores, to: other, heads });
        for row in other.chunks_exact_mut(stride) {
            let row = &mut row[..self.part.span.len];
            let rate = self.isa.run(Exp { row });
            self.isa.run(Scale { values: row, scale: rate });
        }
        self.isa.run(Mix { mix: mix.1, from: other, to: scores, heads });
    }

    /// `out = weights v` for `queries` of head `at` of this task.
    fn weigh(
        &self,
        head: &Head,
        queries: Range<usize>,
        weights: &[f32],
        stride: usize,
        out: &mut Tile,
        at: usize,
    ) {
        let (size, first) = (self.spec.head_size, queries.start - self.part.queries.start);
        self.isa.run(Block {
            x: weights,
            stride,
            depth: self.part.span.len,
            panels: head.values.of(),
            bias: None,
            out: &mut out.part(first..first + queries.len(), at * size..(at + 1) * size),
        });
    }

    /// Scaled scores of `queries`, rows `stride` apart.
    fn score(
        &self,
        head: &Head,
        queries: Range<usize>,
        scores: &mut [f32],
        stride: usize,
        scratch: &mut Scratch,
    ) {
        let Span { len: keys, .. } = self.part.span;
        let (rows, size) = (queries.len(), self.spec.head_size);
        let first_row = self.part.out.start + (queries.start - self.part.queries.start);
        let q = &self.q.as_slice()[first_row * self.q.cols() + head.number * size..];
        let panels: &[[f32; LANES]] = head.keys.of();
        let mut tile = Tile::over(scores, stride, rows, keys);
        self.isa.run(Block { x: q, stride: self.q.cols(), depth: size, panels, bias: None, out: &mut tile });
        if self.spec.key_positions.is_none() && self.spec.query_positions.is_none() {
            return self.isa.run(Scale { values: scores, scale: self.spec.scale });
        }

        let centre = self.spec.len_max - 1; // distance 0 in the index
        let content = self.spec.key_positions.map(|table| {
            let reached = reach(&self.spec.index[queries.start + centre + 1 - keys..queries.end + centre]);
            let columns = table.rows() - reached.end..table.rows() - reached.start;
            let (from, to) = (columns.start / LANES, columns.end.div_ceil(LANES));
            let stride = (to - from) * LANES;
            scratch.content.reserve(rows * stride * 4);
            let panels = table.panels(head.number, from..to);
            let mut out = Tile::over(scratch.content.of_mut(), stride, rows, stride);
            self.isa.run(Block {
                x: q,
                stride: self.q.cols(),
                depth: size,
                panels,
                bias: None,
                out: &mut out,
            });
            let first = table.rows() - 1 - from * LANES;
            ContentToPosition { products: scratch.content.of(), stride, first }
        });
        for (panel, key) in (0..keys).step_by(LANES).enumerate() {
            let count = LANES.min(keys - key);
            let nearest = queries.start + centre - key;
            let position = self.spec.query_positions.map(|_| {
                let reached = reach(&self.spec.index[nearest + 1 - count..nearest + rows]);
                scratch.position.reserve(reached.len() * LANES * 4);
                let mut out = Tile::over(scratch.position.of_mut(), LANES, reached.len(), LANES);
                self.isa.run(Block {
                    x: &head.query_positions.of()[(reached.start - head.query_first) * size..],
                    stride: size,
                    depth: size,
                    panels: &panels[panel * size..(panel + 1) * size],
                    bias: None,
                    out: &mut out,
                });
                PositionToContent { products: scratch.position.of(), first: reached.start }
            });
            self.isa.run(Combine {
                scores: &mut scores[key..],
                stride,
                rows,
                keys: count,
                scale: self.spec.scale,
                content,
                position,
                index: self.spec.index,
                runs: self.runs,
                nearest,
            });
        }
    }

    fn pack(&self, head: usize) -> Head {
        let Span { start, len } = self.part.span;
        let size = self.spec.head_size;
        let cols = head * size..(head + 1) * size;
        let mut keys = Lines::zeroed(len.div_ceil(LANES) * size * LANES * 4);
        for (j, row) in (start..start + len).enumerate() {
            let panel = &mut keys.of_mut::<[f32; LANES]>()[j / LANES * size..][..size];
            for (line, &k) in panel.iter_mut().zip(&self.k.row(row)[cols.clone()]) {
                line[j % LANES] = k;
            }
        }
        let mut values = Lines::zeroed(size.div_ceil(LANES) * len * LANES * 4);
        for (j, row) in (start..start + len).enumerate() {
            for (panel, v) in self.v.row(row)[cols.clone()].chunks(LANES).enumerate() {
                values.of_mut::<[f32; LANES]>()[panel * len + j][..v.len()].copy_from_slice(v);
            }
        }
        let (mut query_positions, mut query_first) = (Lines::zeroed(0), 0);
        if let Some(table) = self.spec.query_positions {
            let queries = &self.part.queries;
            let centre = self.spec.len_max - 1;
            let reached = reach(&self.spec.index[queries.start + centre + 1 - len..queries.end + centre]);
            query_first = reached.start;
            query_positions = table.unpack(head, reached);
        }
        Head { number: head, keys, values, query_positions, query_first }
    }
}
