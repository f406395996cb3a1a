use proptest::prelude::*;

use super::*;
use crate::rows::{InputGrid, RowGrid};
use crate::testing::{assert_same, contexts, matrix, values};
use crate::{Isa, quantize_weight_rows, softmax_row};

/// One problem: tables and q, k, v of the given sizes.
struct Case {
    heads: usize,
    size: usize,
    lens: Vec<usize>,
    keys: Option<Matrix>,
    queries: Option<Matrix>,
    index: Vec<u32>,
    len_max: usize,
    mix: Option<(Vec<f32>, Vec<f32>)>,
    content: Operands,
    values: Values,
    /// Whether the key table and the query table are.
    coded: [bool; 2],
    q: Matrix,
    k: Matrix,
    v: Matrix,
}

impl Case {
    /// Distances go linearly to `near` from the centre of a table of `2 * half` rows, then by halves.
    fn new(heads: usize, size: usize, lens: &[usize], (near, half): (i64, i64), seed: u64) -> Case {
        let len_max = lens.iter().copied().max().unwrap_or(0) + 2;
        let far = len_max as i64 - 1;
        let bucket = |d: i64| if d.abs() <= near { d } else { d.signum() * (near + (d.abs() - near) / 2) };
        let row = |d: i64| (bucket(d) + half).clamp(0, 2 * half - 1) as u32;
        let tokens = lens.iter().sum::<usize>() + 4;
        let (cols, table) = (heads * size, 2 * half as usize);
        Case {
            heads,
            size,
            lens: lens.to_vec(),
            keys: Some(matrix(table, cols, seed)),
            queries: Some(matrix(table, cols, seed + 1)),
            index: (-far..=far).map(row).collect(),
            len_max,
            mix: None,
            content: Operands::Float,
            values: Values::Float,
            coded: [false; 2],
            q: matrix(tokens, cols, seed + 2),
            k: matrix(tokens, cols, seed + 3),
            v: matrix(tokens, cols, seed + 4),
        }
    }

    /// One token before the first sequence and one between each of the first three belong to none.
    fn spans(&self) -> Vec<Span> {
        let mut start = 1;
        let span = |(at, &len): (usize, &usize)| {
            let span = Span { start, len };
            start += len + usize::from(at < 2);
            span
        };
        self.lens.iter().enumerate().map(span).collect()
    }

    /// Scaled scores of query i of `span` in head `h`.
    fn scores(&self, span: Span, i: usize, h: usize) -> Vec<f32> {
        let cols = h * self.size..(h + 1) * self.size;
        let dot =
            |(a, a_grid): (&[f32], InputGrid), (b, b_grid): (&[f32], InputGrid), coded: bool| match coded {
                false => a.iter().zip(b).fold(0.0f32, |acc, (&a, &b)| a.mul_add(b, acc)),
                true => {
                    let [a, b] = [(a, a_grid), (b, b_grid)].map(|(row, grid)| codes(row, grid));
                    let sum: i32 = a.0.iter().zip(&b.0).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    (sum as f32).mul_add(a.1 * b.1, 0.0)
                }
            };
        let own = InputGrid::Row(RowGrid::Symmetric);
        let [query_grid, key_grid] = match &self.content {
            Operands::Int8Static(grids) => grids.grids().map(|g| InputGrid::Fixed(g[h])),
            _ => [own; 2],
        };
        let q = (&self.q.row(span.start + i)[cols.clone()], query_grid);
        let score = |j: usize| {
            let a = self.index[i + self.len_max - 1 - j] as usize;
            let k = (&self.k.row(span.start + j)[cols.clone()], key_grid);
            let mut s = dot(q, k, self.content.is_coded());
            if let Some(table) = &self.keys {
                s += dot(q, (&table.row(a)[cols.clone()], own), self.coded[0]);
            }
            if let Some(table) = &self.queries {
                s += dot(k, (&table.row(a)[cols.clone()], own), self.coded[1]);
            }
            s * 0.25
        };
        (0..span.len).map(score).collect()
    }

    /// The definition: query i of `span`, `[heads * size]`.
    fn reference(&self, span: Span, i: usize) -> Vec<f32> {
        let mixed = |m: &[f32], rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let out = |g: usize, j: usize| {
                (0..self.heads).fold(0.0, |acc, h| m[g * self.heads + h].mul_add(rows[h][j], acc))
            };
            (0..self.heads).map(|g| (0..span.len).map(|j| out(g, j)).collect()).collect()
        };
        let mut rows: Vec<Vec<f32>> = (0..self.heads).map(|h| self.scores(span, i, h)).collect();
        let mut rates = vec![1.0; self.heads];
        match &self.mix {
            Some((before, after)) => {
                rows = mixed(before, &rows);
                rows.iter_mut().for_each(|row| softmax_row(row));
                rows = mixed(after, &rows);
            }
            None => {
                for (row, rate) in rows.iter_mut().zip(&mut rates) {
                    *rate = Isa::Scalar.run(scores::Exp { row }); // 1 / sum; checked against f64 in `softmax`
                }
            }
        }
        let mut y = vec![0.0f32; self.heads * self.size];
        if self.values == Values::Int8 {
            for (c, y) in y.iter_mut().enumerate() {
                let column: Vec<f32> = (0..span.len).map(|j| self.v.row(span.start + j)[c]).collect();
                *y = coded_mean(&rows[c / self.size], &column);
            }
            return y;
        }
        for (c, y) in y.iter_mut().enumerate() {
            for j in 0..span.len {
                *y = rows[c / self.size][j].mul_add(self.v.row(span.start + j)[c], *y);
            }
            *y *= rates[c / self.size];
        }
        y
    }

    fn run(&self, cx: &Context, spans: &[Span], queries: Queries) -> Matrix {
        let [keys, queries_] = self.coded;
        let keys = self.keys.as_ref().map(|table| RelativeKeys::pack(cx.isa, table, self.heads, keys));
        let query_table =
            self.queries.as_ref().map(|t| RelativeKeys::pack_queries(cx.isa, t, self.heads, queries_));
        let spec = Attention {
            heads: self.heads,
            head_size: self.size,
            scale: 0.25,
            content: &self.content,
            values: self.values,
            key_positions: keys.as_ref(),
            query_positions: query_table.as_ref(),
            index: &self.index,
            len_max: self.len_max,
            mix: self.mix.as_ref().map(|(before, after)| (&before[..], &after[..])),
        };
        let first: Vec<f32> = spans.iter().flat_map(|s| self.q.row(s.start).to_vec()).collect();
        let first = Matrix::from_vec(spans.len(), self.q.cols(), first);
        let q = if queries == Queries::All { &self.q } else { &first };
        attend(cx, &spec, q, &self.k, &self.v, spans, queries)
    }

    /// Every row of every context against the definition (every `step`-th row of long sequences).
    fn check(&self, step: usize) {
        let spans = self.spans();
        let mut expected = Matrix::zeros(self.q.rows(), self.q.cols());
        for span in &spans {
            for i in (0..span.len).step_by(step) {
                expected.row_mut(span.start + i).copy_from_slice(&self.reference(*span, i));
            }
        }
        for cx in contexts() {
            let what = format!(
                "{} heads of {}, {:?} on {} {:?}",
                self.heads, self.size, self.lens, cx.isa, cx.threads
            );
            let all = self.run(&cx, &spans, Queries::All);
            let first = self.run(&cx, &spans, Queries::First);
            assert_same(all.row(0), expected.row(0), "a token of no sequence");
            for (s, span) in spans.iter().enumerate() {
                for i in (0..span.len).step_by(step) {
                    assert_same(
                        all.row(span.start + i),
                        expected.row(span.start + i),
                        &format!("{what}, query {i}"),
                    );
                }
                if span.len > 0 {
                    assert_same(first.row(s), all.row(span.start), &format!("first query, {what}"));
                }
            }
        }
    }
}

/// The mean of `values` with weights `e`, from codes, by the definition.
fn coded_mean(e: &[f32], values: &[f32]) -> f32 {
    if e.iter().chain(values).any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let lo = values.iter().copied().fold(f32::INFINITY, f32::min);
    let hi = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let middle = 0.5 * lo + 0.5 * hi;
    let step = (hi - middle).max(middle - lo) / 127.0;
    let step = if step < f32::MIN_POSITIVE { 1.0 } else { step };
    let code = |v: &f32| ((v - middle) * (1.0 / step)).round_ties_even().clamp(-127.0, 127.0) as i64;
    let weights: Vec<i64> = e.iter().map(|e| (e * 16_256.0).round_ties_even() as i64).collect();
    let sum = |part: fn(i64) -> i64| -> f32 {
        weights.iter().zip(values).map(|(p, v)| part(*p) * code(v)).sum::<i64>() as f32
    };
    let (upper, lower) = (sum(|p| p / 128), sum(|p| p % 128));
    let rate = 1.0 / weights.iter().sum::<i64>() as f32;
    upper.mul_add(128.0, lower).mul_add(rate * step, middle)
}

/// Codes and scale of a row by the definition.
fn codes(row: &[f32], grid: InputGrid) -> (Vec<i8>, f32) {
    match grid {
        InputGrid::Row(_) => {
            let (codes, scale) = quantize_weight_rows(row, 1, row.len());
            (codes, scale[0])
        }
        InputGrid::Fixed(_) if row.iter().any(|x| !x.is_finite()) => (vec![0; row.len()], f32::NAN),
        InputGrid::Fixed(grid) => {
            let code = |x: &f32| (x * (1.0 / grid.scale())).round_ties_even().clamp(-127.0, 127.0) as i8;
            (row.iter().map(code).collect(), grid.scale())
        }
    }
}

impl Case {
    /// What is coded: bit 0 the content, bit 1 the key table, bit 2 the query table, bit 4 the values. Bit 3: queries and
    /// keys on stored grids, which clip some of their values.
    fn coded(self, bits: usize) -> Case {
        let scales =
            |seed| values(self.heads, seed).iter().map(|v| 0.004 + 0.004 * v.abs()).collect::<Vec<_>>();
        let content = match (bits & 1 != 0, bits & 8 != 0) {
            (false, _) => Operands::Float,
            (true, false) => Operands::Int8,
            (true, true) => Operands::Int8Static(HeadGrids::new(&scales(3), &scales(4)).unwrap()),
        };
        let values = if bits & 16 != 0 { Values::Int8 } else { Values::Float };
        Case { content, values, coded: [bits & 2 != 0, bits & 4 != 0], ..self }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_batch_has_the_bits_of_the_definition(
        heads in 1usize..4, size in 1usize..40, lens in proptest::collection::vec(0usize..60, 1..4),
        terms in 0usize..4, coded in 0usize..32, mixes: bool, near in 1i64..50, seed in 1u64..1000,
    ) {
        let mut case = Case::new(heads, size, &lens, (near, 40), seed);
        case.keys = case.keys.filter(|_| terms & 1 != 0);
        case.queries = case.queries.filter(|_| terms & 2 != 0);
        case = case.coded(coded);
        let mixes = mixes && case.values == Values::Float;
        case.mix = mixes.then(|| (values(heads * heads, seed + 7), values(heads * heads, seed + 8)));
        case.check(1);
    }
}

#[test]
fn the_head_sizes_and_lengths_of_real_models_have_the_bits_of_the_definition() {
    for (size, lens) in [(12, [1, 2, 16]), (20, [17, 33, 5]), (64, [31, 32, 100]), (64, [129, 8, 47])] {
        for coded in [0, 7, 15, 16, 23] {
            for table in [(16, 24), (200, 256)] {
                Case::new(2, size, &lens, table, 5).coded(coded).check(1);
            }
        }
    }
}

#[test]
fn a_sequence_of_4096_tokens_has_the_bits_of_the_definition() {
    Case::new(1, 12, &[4096], (128, 256), 7).check(511);
}

#[test]
fn an_index_that_is_not_monotone_is_only_an_index() {
    let mut case = Case::new(1, 8, &[50, 40], (10, 30), 3);
    for (d, a) in case.index.iter_mut().enumerate() {
        *a = (d * d * 7 + d / 3) as u32 % 60;
    }
    case.check(1);
}

#[test]
fn neighbours_order_and_nan_of_one_sequence_do_not_reach_another() {
    for coded in [0, 7, 15, 16, 31] {
        neighbours_do_not_reach(coded);
    }
}

fn neighbours_do_not_reach(coded: usize) {
    let case = || Case::new(2, 16, &[20, 40, 33], (8, 20), 9).coded(coded);
    let spoilt = {
        let mut case = case();
        let spans = case.spans();
        case.k.row_mut(spans[1].start + 3)[5] = f32::NAN;
        case
    };
    let case = case();
    let spans = case.spans();
    for cx in contexts() {
        let all = case.run(&cx, &spans, Queries::All);
        let bad = spoilt.run(&cx, &spans, Queries::All);
        for (s, span) in spans.iter().enumerate() {
            let alone = case.run(&cx, &[*span], Queries::All);
            for row in span.start..span.start + span.len {
                assert_same(alone.row(row), all.row(row), "a sequence alone");
                if s == 1 {
                    assert!(bad.row(row)[..16].iter().all(|y| y.is_nan()), "a NaN key spoils its head");
                    assert_same(&bad.row(row)[16..], &all.row(row)[16..], "and no other head");
                } else {
                    assert_same(bad.row(row), all.row(row), "nor another sequence");
                }
            }
        }
    }
}

#[test]
fn coded_values_are_near_the_float_ones_and_keep_what_cannot_be_coded_apart() {
    let case = || Case::new(2, 20, &[1, 30, 100], (8, 20), 6);
    let (float, coded) = (case(), case().coded(16));
    let (mut spoilt, mut shifted) = (case().coded(16), case().coded(16));
    let spans = coded.spans();
    spoilt.v.row_mut(spans[1].start + 3)[5] = f32::NAN;
    spoilt.v.row_mut(spans[2].start + 7)[21] = f32::NEG_INFINITY;
    let far = 1000.0;
    shifted.v.as_mut_slice().iter_mut().for_each(|v| *v += far);
    for cx in contexts() {
        let values = &coded.v;
        let [float, coded, spoilt, shifted] =
            [&float, &coded, &spoilt, &shifted].map(|case| case.run(&cx, &spans, Queries::All));
        for (s, span) in spans.iter().enumerate() {
            for row in span.start..span.start + span.len {
                for c in 0..40 {
                    let (want, y) = (float.row(row)[c], coded.row(row)[c]);
                    // Half a step of a value, and half a step of each weight where all steps are at least 16 256.
                    let column = || (span.start..span.start + span.len).map(|row| values.row(row)[c]);
                    let reach = column().fold(f32::MIN, f32::max) - column().fold(f32::MAX, f32::min);
                    let bound = reach * (0.5 / 254.0 + span.len as f32 * 0.25 / 16_256.0) + 1e-6;
                    assert!((y - want).abs() <= bound, "{y} for {want}, +-{bound}");
                    let moved = shifted.row(row)[c] - far;
                    assert!((moved - want).abs() <= bound + 4e-4, "{moved} for {want}, moved");
                    let bad = (s, c) == (1, 5) || (s, c) == (2, 21);
                    assert_eq!(spoilt.row(row)[c].is_nan(), bad, "sequence {s}, column {c}");
                    assert!(bad || spoilt.row(row)[c].to_bits() == y.to_bits());
                }
            }
        }
        // One value is its own middle.
        assert_same(coded.row(spans[0].start), values.row(spans[0].start), "a token alone");
    }
}

#[test]
fn coded_values_at_the_ends_of_their_grids_do_not_saturate() {
    let mut case = Case::new(1, 20, &[300], (8, 20), 6).coded(16);
    (case.keys, case.queries) = (None, None);
    let rows = case.q.rows();
    // Equal weights: all upper codes are 127. Then weights of 127 / 16 256, whose lower codes are, but for the first.
    for low in [false, true] {
        (case.q, case.k) = (Matrix::zeros(rows, 20), Matrix::zeros(rows, 20));
        if low {
            (0..rows).for_each(|i| case.q.row_mut(i)[0] = 1.0);
            case.k.row_mut(1)[0] = 4.0 * (16_256.0f32 / 127.0).ln();
        }
        for i in 0..rows {
            case.v.row_mut(i).fill(if i < 150 { 1.0 } else { -1.0 });
        }
        case.check(1);
    }
}

#[test]
fn scores_and_values_at_the_ends_of_f32_have_the_bits_of_the_definition() {
    let mut case = Case::new(1, 20, &[20, 5, 1], (8, 20), 6).coded(16);
    (case.keys, case.queries) = (None, None);
    let (spans, rows) = (case.spans(), case.q.rows());
    case.q = Matrix::from_vec(rows, 20, vec![1.0; rows * 20]);
    case.k = Matrix::zeros(rows, 20);
    // One key scores infinity; all keys of the second sequence minus infinity.
    case.k.row_mut(spans[0].start + 3)[0] = f32::NEG_INFINITY;
    (0..5).for_each(|i| case.k.row_mut(spans[1].start + i)[0] = f32::NEG_INFINITY);
    for (c, [even, odd]) in [
        [f32::MAX, -f32::MAX],
        [f32::MAX, f32::MAX],
        [3.0 * f32::from_bits(1), 3.0 * f32::from_bits(1)],
        [f32::MIN_POSITIVE, 0.0],
        [0.3, 0.3],
        [-0.0, -0.0],
    ]
    .into_iter()
    .enumerate()
    {
        (0..rows).for_each(|i| case.v.row_mut(i)[c] = if i % 2 == 0 { even } else { odd });
    }
    case.check(1);
    let y = case.run(&contexts()[0], &spans, Queries::All);
    assert_eq!(y.row(spans[0].start)[4], 0.3, "what all weights multiply comes back");
    assert!(y.row(spans[1].start).iter().all(|y| y.is_nan()), "nothing but minus infinity");
    case.k.row_mut(spans[0].start + 3)[0] = f32::INFINITY;
    case.check(1);
    assert!(case.run(&contexts()[0], &spans, Queries::All).row(spans[0].start).iter().all(|y| y.is_nan()));
}

#[test]
fn either_position_term_can_point_at_the_token_before() {
    // Only the key at distance +1 scores, so the result is its value.
    let (len, size) = (40, 16);
    for content_to_position in [true, false] {
        let mut case = Case::new(1, size, &[len], (60, 64), 1);
        let rows = case.v.rows();
        let (ones, zeros) = (Matrix::from_vec(rows, size, vec![1.0; rows * size]), Matrix::zeros(rows, size));
        let mut table = Matrix::zeros(128, size);
        table.row_mut(64 + 1).fill(100.0);
        (case.q, case.k, case.keys, case.queries) = match content_to_position {
            true => (ones, zeros, Some(table), None),
            false => (zeros, ones, None, Some(table)),
        };
        let span = case.spans()[0];
        for cx in contexts() {
            let y = case.run(&cx, &[span], Queries::All);
            for i in 1..len {
                assert_eq!(y.row(span.start + i), case.v.row(span.start + i - 1), "query {i}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let case = Case::new(1, 8, &[10, 10], (4, 8), 1);
    let cx = &contexts()[0];
    let refused = |spans: &[Span]| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.run(cx, spans, Queries::All))).is_err()
    };
    let span = |start, len| Span { start, len };
    assert!(refused(&[span(0, 5), span(4, 2)]), "overlap");
    assert!(refused(&[span(21, 4)]), "past the end");
    assert!(refused(&[span(0, 13)]), "longer than len_max");
    assert!(refused(&[span(1, usize::MAX)]), "overflow");
    assert!(!refused(&[span(0, 5), span(5, 2)]));
}
