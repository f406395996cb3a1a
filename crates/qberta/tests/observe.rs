//! Looking at a model while it runs changes nothing, and what is shown is what the kernels use.

mod common;

use common::*;
use qberta::kernels::{Matrix, Values};
use qberta::model::{
    Batch, Engine, Model, Native, Observe, Observed, Operand, Sequence, Site, Slot, Tap, forward,
};
use qberta::store::Source;
use qberta::toolkit::Method;
use qberta::{Request, quantize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Keeps everything it sees.
#[derive(Default)]
struct Keep(BTreeMap<Tap, Vec<Matrix>>);

impl Observe for Keep {
    fn wants(&self, _tap: Tap) -> bool {
        true
    }

    fn see(&mut self, tap: Tap, x: &Matrix) {
        self.0.entry(tap).or_default().push(x.clone());
    }
}

/// The golden checkpoint `case` and its token rows as sequences.
fn open(case: &str, record: &serde_json::Value) -> (Model, Vec<Sequence>) {
    let source = Source::open(&golden(case), Some(task(record))).unwrap();
    let model = source.load(&context()).unwrap().model;
    (model, sequences(case))
}

fn run<E: Engine<Value = Matrix>>(model: &Model, engine: &mut E, sequences: &[Sequence]) -> Matrix {
    let arch = model.architecture();
    forward(arch, engine, &Batch::new(arch, sequences).unwrap())
}

#[test]
fn observing_changes_no_bit() {
    let cx = context();
    for (case, record) in golden_cases() {
        let (model, sequences) = open(&case, &record);
        let plain = run(&model, &mut Native::new(&model, &cx), &sequences);
        let mut engine = Observed::new(&model, &cx, Keep::default());
        let observed = run(&model, &mut engine, &sequences);
        assert_eq!(bits(plain.as_slice()), bits(observed.as_slice()), "{case}");
        // Every linear that ran was seen once, and so were the operands of every layer's attention.
        let seen = engine.into_observer().0;
        for site in model.weights().linears.keys() {
            let times = seen.get(&Tap::Input(*site)).map_or(0, Vec::len);
            let positions = matches!(site, Site::Layer(_, Slot::PositionKey | Slot::PositionQuery));
            assert_eq!(times, usize::from(!positions), "{case}: {site}");
        }
        for layer in 0..model.architecture().layers as u16 {
            for operand in [Operand::Query, Operand::Key, Operand::Value] {
                assert_eq!(seen[&Tap::Operand(layer, operand)].len(), 1, "{case} layer {layer}");
            }
        }
    }
}

/// The context of layer `layer` from the probabilities and values that were shown.
fn context_of(seen: &BTreeMap<Tap, Vec<Matrix>>, layer: u16, model: &Model, spans: usize) -> Vec<Vec<f32>> {
    let arch = model.architecture();
    let values = &seen[&Tap::Operand(layer, Operand::Value)][0];
    let heads = &seen[&Tap::Operand(layer, Operand::Probabilities)];
    assert_eq!(heads.len(), spans * arch.heads);
    let (mut rows, mut start) = (Vec::new(), 0);
    for sequence in heads.chunks_exact(arch.heads) {
        let (queries, keys) = (sequence[0].rows(), sequence[0].cols());
        let values = match model.weights().context(usize::from(layer)) {
            Values::Float => values.clone(),
            Values::Int8 => coded(values, start..start + keys),
        };
        for i in 0..queries {
            let mut row = vec![0.0f32; values.cols()];
            for (h, p) in sequence.iter().enumerate() {
                for j in 0..keys {
                    let cells = h * arch.head_size..(h + 1) * arch.head_size;
                    let value = &values.row(start + j)[cells.clone()];
                    row[cells].iter_mut().zip(value).for_each(|(y, v)| *y += p.row(i)[j] * v);
                }
            }
            rows.push(row);
        }
        start += keys;
    }
    rows
}

/// What the codes of the channels of rows `rows` stand for.
fn coded(values: &Matrix, rows: Range<usize>) -> Matrix {
    let mut coded = values.clone();
    for c in 0..values.cols() {
        let channel = || rows.clone().map(|row| values.row(row)[c]);
        let (lo, hi) = (channel().fold(f32::INFINITY, f32::min), channel().fold(f32::NEG_INFINITY, f32::max));
        let middle = (lo + hi) / 2.0;
        let step = ((hi - lo) / 254.0).max(f32::MIN_POSITIVE);
        for row in rows.clone() {
            let value = &mut coded.row_mut(row)[c];
            *value = middle + ((*value - middle) / step).round() * step;
        }
    }
    coded
}

#[test]
fn probabilities_shown_are_those_of_the_kernels() {
    let cx = context();
    let mut layers = 0;
    let dir = tempfile::tempdir().unwrap();
    for (number, (case, record)) in golden_cases().into_iter().enumerate() {
        let (mut model, sequences) = open(&case, &record);
        if number % 4 == 0 {
            // What the products multiply is part of what is shown.
            let out = dir.path().join(&case);
            if number % 8 == 0 {
                let (golden, recipe) = (golden(&case), attention(&case, ATTENTIONS[number / 8 % 3]));
                let request =
                    Request { model: &golden, out: &out, recipe: &recipe, task: Some(task(&record)) };
                quantize(&request, &cx, &()).unwrap();
            } else {
                calibrated_by("static-attention", &case, &out, Method::MinMax, &sequences).unwrap();
            }
            model = Source::open(&out, Some(task(&record))).unwrap().load(&cx).unwrap().model;
        }
        let mut engine = Observed::new(&model, &cx, Keep::default());
        run(&model, &mut engine, &sequences);
        let seen = engine.into_observer().0;
        for layer in 0..model.architecture().layers as u16 {
            let context = &seen[&Tap::Input(Site::Layer(layer, Slot::AttentionOutput))][0];
            let rows = context_of(&seen, layer, &model, sequences.len());
            assert_eq!(rows.len(), context.rows(), "{case}");
            let largest = context.as_slice().iter().fold(1.0f32, |m, v| m.max(v.abs()));
            // A code next to a tie may fall on the other side, since the kernels code other roundings of the same numbers.
            let coded = model.weights().context(usize::from(layer)) == Values::Int8;
            let bound = if coded { 1e-4 } else { 1e-5 };
            for (i, row) in rows.iter().enumerate() {
                let difference = largest_difference(row, context.row(i)) / largest;
                assert!(difference < bound, "{case} layer {layer} row {i}: {difference}");
            }
            layers += 1;
        }
    }
    assert!(layers >= 140, "{layers} layers compared");
}
