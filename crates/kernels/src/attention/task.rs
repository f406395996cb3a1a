//! One task of attention: some heads and some consecutive queries of one sequence, strip by strip.

use std::ops::Range;

use super::operands::{Panels, Rows, Use, Values};
use super::relative::{RelativeKeys, Walk, reach};
use super::scores::{Combine, Exp, Mix, Products, SLACK, Scale, Terms};
use super::{Attention, Lines, Part, STRIP, Span};
use crate::gemm_f32::Block;
use crate::gemm_i8::{CodedValues, Weights};
use crate::lanes::LANES;
use crate::parallel::Tile;
use crate::{Isa, Matrix};

/// The heads `heads` (all of them if they are mixed, else one) for the queries of `part`.
pub(super) struct Task<'a> {
    pub isa: Isa,
    pub spec: &'a Attention<'a>,
    /// How distances lie in the columns of `K_r` and of `Q_r`.
    pub down: Option<&'a Walk>,
    pub up: Option<&'a Walk>,
    pub q: &'a Matrix,
    pub k: &'a Matrix,
    pub v: &'a Matrix,
    pub part: &'a Part,
    pub heads: Range<usize>,
}

/// What the strips of one head share.
struct Head {
    number: usize,
    keys: Panels, // k: panels of 16 tokens
    values: Weighted,
    positions: Vec<Computed>, // k . Q_r for each strip of keys
}

/// The values of a head as the columns of a product with weights, in panels of 16.
enum Weighted {
    Float(Lines), // [panels, tokens]
    Int8(CodedValues),
}

/// Products of a strip of rows with the part of a relative table that they reach.
struct Computed {
    values: Lines,
    stride: usize,
    origin: i64,
}

impl Computed {
    fn empty() -> Computed {
        Computed { values: Lines::zeroed(0), stride: 0, origin: 0 }
    }

    fn from<'a>(&'a self, row: usize, table: &RelativeKeys, walk: &'a Walk) -> Products<'a> {
        let (stride, origin) = (self.stride, self.origin);
        let values = &self.values.of()[row * stride..];
        Products { values, stride, origin, descending: table.is_descending(), walk }
    }
}

/// A stride of at least `cols` for rows read side by side: an odd number of cache lines, for otherwise, where
/// it is a power of two, they would push each other out of the cache.
fn stride(cols: usize) -> usize {
    (cols.div_ceil(LANES) | 1) * LANES
}

impl Task<'_> {
    /// Fills `out [queries, heads * head_size]`.
    pub fn run(&self, mut out: Tile) {
        let keys = self.part.span.len;
        let heads: Vec<Head> = self.heads.clone().map(|head| self.pack(head)).collect();
        let stride = stride(keys);
        // Mixed heads need their strips at the same time, so theirs are low.
        let strip = if self.spec.mix.is_some() { STRIP / 4 } else { STRIP };
        let strip = strip.min(self.part.queries.len());
        let mut scores = Lines::zeroed(heads.len() * strip * stride * 4);
        let mut mixed =
            Lines::zeroed(if self.spec.mix.is_some() { heads.len() * strip * stride * 4 } else { 0 });
        let mut content = Computed::empty();
        let coded = self.spec.values == Values::Int8;
        let mut weights = Weights::new(if coded { strip } else { 0 }, keys);
        for first in self.part.queries.clone().step_by(strip) {
            let queries = first..(first + strip).min(self.part.queries.end);
            let size = queries.len() * stride;
            let scores = &mut scores.of_mut::<f32>()[..heads.len() * size];
            for (head, scores) in heads.iter().zip(scores.chunks_exact_mut(size)) {
                self.score(head, queries.clone(), scores, stride, &mut content);
            }
            match self.spec.mix {
                None => match &heads[0].values {
                    Weighted::Int8(values) => {
                        self.finish_coded(values, queries, scores, stride, &mut weights, &mut out);
                    }
                    Weighted::Float(values) => self.finish(values, queries, scores, stride, &mut out),
                },
                Some(mix) => {
                    let mixed = &mut mixed.of_mut::<f32>()[..heads.len() * size];
                    self.mix(mix, scores, mixed, stride);
                    for (at, head) in heads.iter().enumerate() {
                        let Weighted::Float(values) = &head.values else {
                            unreachable!("int8 values of mixed heads are refused")
                        };
                        let weights = &scores[at * size..(at + 1) * size];
                        self.weigh(values, queries.clone(), weights, stride, &mut out, at);
                    }
                }
            }
        }
    }

    /// exp, the weighted sum of the values and the division, for one head on its own.
    fn finish(
        &self,
        values: &Lines,
        queries: Range<usize>,
        scores: &mut [f32],
        stride: usize,
        out: &mut Tile,
    ) {
        let mut rates = [0.0; STRIP];
        for (row, rate) in scores.chunks_exact_mut(stride).zip(&mut rates) {
            *rate = self.isa.run(Exp { row: &mut row[..self.part.span.len] });
        }
        self.weigh(values, queries.clone(), scores, stride, out, 0);
        for (i, rate) in (queries.start - self.part.queries.start..).zip(&rates[..queries.len()]) {
            out.row(i)[..self.spec.head_size].iter_mut().for_each(|y| *y *= rate);
        }
    }

    /// The same from codes.
    fn finish_coded(
        &self,
        values: &CodedValues,
        queries: Range<usize>,
        scores: &[f32],
        stride: usize,
        weights: &mut Weights,
        out: &mut Tile,
    ) {
        weights.set(self.isa, scores, stride, self.part.span.len);
        let first = queries.start - self.part.queries.start;
        let mut tile = out.part(first..first + queries.len(), 0..self.spec.head_size);
        values.mean(self.isa, weights, &mut tile);
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
        values: &Lines,
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
            panels: values.of::<[f32; LANES]>(),
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
        computed: &mut Computed,
    ) {
        let Span { len: keys, .. } = self.part.span;
        let (rows, size) = (queries.len(), self.spec.head_size);
        let first_row = self.part.out.start + (queries.start - self.part.queries.start);
        let q = &self.q.as_slice()[first_row * self.q.cols() + head.number * size..];
        let codes = self.wants_codes(self.spec.key_positions);
        let grid = codes.then(|| self.spec.content.query_grid(head.number));
        let q = Rows::new(self.isa, q, self.q.cols(), [rows, size], grid);
        let mut tile = Tile::over(scores, stride, rows, keys);
        head.keys.multiply(self.isa, &q, 0..rows, 0..keys.div_ceil(LANES), &mut tile);
        if self.spec.key_positions.is_none() && self.spec.query_positions.is_none() {
            return self.isa.run(Scale { values: scores, scale: self.spec.scale });
        }

        let centre = self.spec.len_max - 1; // distance 0 in the index
        if let Some(table) = self.spec.key_positions {
            let reached = reach(&self.spec.index[queries.start + centre + 1 - keys..queries.end + centre]);
            self.multiply(table, head.number, reached, &q, 0..rows, computed);
        }
        for key in (0..keys).step_by(LANES) {
            let content = self.spec.key_positions.zip(self.down);
            let position = self.spec.query_positions.zip(self.up);
            self.isa.run(Combine {
                scores: &mut scores[key..],
                stride,
                rows,
                scale: self.spec.scale,
                terms: Terms {
                    keys: LANES.min(keys - key),
                    content: content.map(|(table, walk)| computed.from(0, table, walk)),
                    position: position
                        .map(|(table, walk)| head.positions[key / STRIP].from(key % STRIP, table, walk)),
                    index: self.spec.index,
                    nearest: queries.start + centre - key,
                },
            });
        }
    }

    /// Whether some product of rows that also meet `table` takes codes.
    fn wants_codes(&self, table: Option<&RelativeKeys>) -> bool {
        self.spec.content.is_coded() || table.is_some_and(RelativeKeys::is_coded)
    }

    /// Products of rows `some` of `x` with the table rows `reached` of one head.
    fn multiply(
        &self,
        table: &RelativeKeys,
        head: usize,
        reached: Range<usize>,
        x: &Rows,
        some: Range<usize>,
        into: &mut Computed,
    ) {
        let numbers = table.panels_of(reached);
        let (first, cols) = ((numbers.start * LANES) as i64, numbers.len() * LANES);
        into.stride = stride(cols);
        into.origin = if table.is_descending() { table.rows() as i64 - 1 - first } else { -first };
        into.values.reserve((some.len() * into.stride + SLACK) * 4);
        let mut out = Tile::over(into.values.of_mut(), into.stride, some.len(), cols);
        table.panels(head).multiply(self.isa, x, some, numbers, &mut out);
    }

    fn pack(&self, head: usize) -> Head {
        let Span { start, len } = self.part.span;
        let size = self.spec.head_size;
        let cols = head * size..(head + 1) * size;
        let k = &self.k.as_slice()[start * self.k.cols() + head * size..];
        let codes = self.wants_codes(self.spec.query_positions);
        let grid = codes.then(|| self.spec.content.key_grid(head));
        let k = Rows::new(self.isa, k, self.k.cols(), [len, size], grid);
        let keys = Panels::new(&k, self.spec.content.is_coded(), Use::Passing);
        let values = match self.spec.values {
            Values::Float => Weighted::Float(self.pack_values(cols)),
            Values::Int8 => {
                let v = &self.v.as_slice()[start * self.v.cols() + cols.start..];
                Weighted::Int8(CodedValues::new(self.isa, v, self.v.cols(), [len, size]))
            }
        };
        let mut positions = Vec::new();
        if let Some(table) = self.spec.query_positions {
            let (queries, centre) = (&self.part.queries, self.spec.len_max - 1);
            for first in (0..len).step_by(STRIP) {
                let rows = STRIP.min(len - first);
                let distances = queries.start + centre + 1 - (first + rows)..queries.end + centre - first;
                let mut products = Computed::empty();
                let reached = reach(&self.spec.index[distances]);
                self.multiply(table, head, reached, &k, first..first + rows, &mut products);
                positions.push(products);
            }
        }
        Head { number: head, keys, values, positions }
    }

    /// Columns `cols` of the sequence's values, in panels.
    fn pack_values(&self, cols: Range<usize>) -> Lines {
        let Span { start, len } = self.part.span;
        let mut values = Lines::zeroed(cols.len().div_ceil(LANES) * len * LANES * 4);
        for (j, row) in (start..start + len).enumerate() {
            for (panel, v) in self.v.row(row)[cols.clone()].chunks(LANES).enumerate() {
                values.of_mut::<[f32; LANES]>()[panel * len + j][..v.len()].copy_from_slice(v);
            }
        }
        values
    }
}
