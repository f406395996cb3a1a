//! Two models in lock-step through the one forward: values are pairs, and at every place three errors are
//! taken. *Arriving*: the other run's input against the float run's. *Made there*: the other model's operation
//! on the float input against the float operation on it. *Accumulated*: what leaves.

use super::ledger::{Ledger, Place, Term};
use qberta_kernels::{Context, Matrix, activate};
use qberta_model::config::Activation;
use qberta_model::forward::{Positions, project_positions};
use qberta_model::scores::{Scores, probabilities, scores};
use qberta_model::{Batch, Engine, InputGrid, Linear, Model, Native, Rows, Site, Slot};
use std::collections::BTreeMap;

/// A value of the float run and of the other.
pub(super) struct Pair {
    pub float: Matrix,
    pub other: Matrix,
}

/// The projected relative tables of a layer in both models.
struct Tables {
    float: Positions<Matrix>,
    other: Positions<Matrix>,
}

/// The engine over both models. It runs one sequence at a time, so that a row is a token.
pub(super) struct Compare<'m> {
    float: Native<'m>,
    other: Native<'m>,
    models: [&'m Model; 2],
    cx: &'m Context,
    tables: BTreeMap<usize, Tables>,
    ledger: Ledger,
    /// Token ids of the sequence that runs.
    ids: Vec<u32>,
    example: usize,
}

impl<'m> Compare<'m> {
    pub fn new(float: &'m Model, other: &'m Model, cx: &'m Context) -> Compare<'m> {
        Compare {
            float: Native::new(float, cx),
            other: Native::new(other, cx),
            models: [float, other],
            cx,
            tables: BTreeMap::new(),
            ledger: Ledger::default(),
            ids: Vec::new(),
            example: 0,
        }
    }

    /// The sequence that runs next belongs to `example` and has these tokens.
    pub fn begin(&mut self, example: usize, ids: &[u32]) {
        self.example = example;
        self.ids = ids.to_vec();
    }

    pub fn into_ledger(self) -> Ledger {
        self.ledger
    }

    /// What the attention terms and weights of both models are, for one sequence.
    fn attention_terms(&mut self, layer: usize, q: &Pair, k: &Pair, batch: &Batch, rows: Rows) {
        let [float, other] = self.models;
        let (arch, cx) = (float.architecture(), self.cx);
        let tables = self.tables.entry(layer).or_insert_with(|| Tables {
            float: project_positions(arch, &mut Native::new(float, cx), layer),
            other: project_positions(arch, &mut Native::new(other, cx), layer),
        });
        let operands = self.models.map(|m| m.weights().scores(layer));
        let a = scores(arch, operands[0], &tables.float, (&q.float, rows), &k.float, batch, 0);
        let b = scores(arch, operands[1], &tables.other, (&q.other, rows), &k.other, batch, 0);
        // The other model's tables and codes with the float run's queries and keys: what they alone change.
        let made = scores(arch, operands[1], &tables.other, (&q.float, rows), &k.float, batch, 0);
        type Take = fn(&Scores) -> Option<&Matrix>;
        let terms: [(Term, Take); 3] = [
            (Term::ContentToContent, |s| Some(&s.c2c)),
            (Term::ContentToPosition, |s| s.c2p.as_ref()),
            (Term::PositionToContent, |s| s.p2c.as_ref()),
        ];
        for (term, take) in terms {
            for ((a, b), made) in a.iter().zip(&b).zip(&made) {
                if let (Some(a), Some(b), Some(made)) = (take(a), take(b), take(made)) {
                    let entry = self.ledger.at(Place::Term(layer as u16, term));
                    entry.output.see(a.as_slice(), b.as_slice());
                    entry.made.see(a.as_slice(), made.as_slice());
                }
            }
        }
        let entry = self.ledger.at(Place::Term(layer as u16, Term::Softmax));
        let weights = [(&a, float), (&b, other)].map(|(of, model)| probabilities(of, model.weights(), layer));
        for (a, b) in weights[0].iter().zip(&weights[1]) {
            entry.output.see(a.as_slice(), b.as_slice());
        }
    }

    /// Books the parts of the error made by the linear at `at` on the float input `x`.
    fn parts(&mut self, at: Site, x: &Matrix, y: &Matrix, made: &Matrix) {
        let weights = &self.models[1].weights().linears;
        let Some((input, split)) = weights.get(&at).and_then(Linear::input) else { return };
        let by_weights = weights[&at].forward_float_input(self.cx, x);
        let entry = self.ledger.at(Place::Site(at));
        entry.by_weights.see(y.as_slice(), by_weights.as_slice());
        let InputGrid::Fixed(grid) = input else { return };
        // A split channel reaches further: it is shared among its columns.
        let mut clipped = x.clone();
        let (lo, hi) = grid.range();
        let (mut outside, mut values) = (0, 0);
        for i in 0..x.rows() {
            let mut reach = vec![1.0f32; x.cols()];
            split.columns().iter().for_each(|&c| reach[c as usize] += 1.0);
            for ((v, reach), shared) in clipped.row_mut(i).iter_mut().zip(reach).zip(split.shared(x.row(i))) {
                outside += u64::from(grid.clips(shared));
                *v = v.clamp(lo * reach, hi * reach);
            }
            values += x.cols() as u64;
        }
        let after_clipping = self.float.linear(at, &clipped);
        let entry = self.ledger.at(Place::Site(at));
        entry.by_clipping.see(y.as_slice(), after_clipping.as_slice());
        entry.by_rounding.see(after_clipping.as_slice(), made.as_slice());
        entry.clipped += outside;
        entry.clippable += values;
    }
}

impl Engine for Compare<'_> {
    type Value = Pair;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> Pair {
        let pair = Pair { float: self.float.lookup(at, rows), other: self.other.lookup(at, rows) };
        let entry = self.ledger.at(Place::Site(at));
        entry.output.see(pair.float.as_slice(), pair.other.as_slice());
        entry.made.see(pair.float.as_slice(), pair.other.as_slice());
        if at == Site::WordTable {
            entry.tokens.see(&pair.float, &pair.other, &self.ids, self.example);
        }
        pair
    }

    fn linear(&mut self, at: Site, x: &Pair) -> Pair {
        let y = Pair { float: self.float.linear(at, &x.float), other: self.other.linear(at, &x.other) };
        let made = self.other.linear(at, &x.float);
        let entry = self.ledger.at(Place::Site(at));
        entry.arriving.see(x.float.as_slice(), x.other.as_slice());
        entry.made.see(y.float.as_slice(), made.as_slice());
        entry.output.see(y.float.as_slice(), y.other.as_slice());
        entry.channels.see(&x.float);
        entry.tokens.see(&y.float, &made, &self.ids, self.example);
        self.parts(at, &x.float, &y.float, &made);
        y
    }

    fn activate(&mut self, _at: Site, f: Activation, mut x: Pair) -> Pair {
        activate(self.cx, f, &mut x.float);
        activate(self.cx, f, &mut x.other);
        x
    }

    fn add(&mut self, x: Pair, y: &Pair) -> Pair {
        Pair { float: self.float.add(x.float, &y.float), other: self.other.add(x.other, &y.other) }
    }

    fn norm(&mut self, at: Site, x: Pair) -> Pair {
        let made = self.other.norm(at, x.float.clone());
        let entry = self.ledger.at(Place::Site(at));
        entry.arriving.see(x.float.as_slice(), x.other.as_slice());
        let y = Pair { float: self.float.norm(at, x.float), other: self.other.norm(at, x.other) };
        let entry = self.ledger.at(Place::Site(at));
        entry.made.see(y.float.as_slice(), made.as_slice());
        entry.output.see(y.float.as_slice(), y.other.as_slice());
        y
    }

    fn attend(&mut self, layer: usize, q: &Pair, k: &Pair, v: &Pair, batch: &Batch, rows: Rows) -> Pair {
        self.attention_terms(layer, q, k, batch, rows);
        let y = Pair {
            float: self.float.attend(layer, &q.float, &k.float, &v.float, batch, rows),
            other: self.other.attend(layer, &q.other, &k.other, &v.other, batch, rows),
        };
        let made = self.other.attend(layer, &q.float, &k.float, &v.float, batch, rows);
        let entry = self.ledger.at(Place::Term(layer as u16, Term::Context));
        for x in [q, k, v] {
            entry.arriving.see(x.float.as_slice(), x.other.as_slice());
        }
        entry.made.see(y.float.as_slice(), made.as_slice());
        entry.output.see(y.float.as_slice(), y.other.as_slice());
        y
    }

    fn windows(&mut self, x: &Pair, taps: usize, batch: &Batch) -> Pair {
        Pair {
            float: self.float.windows(&x.float, taps, batch),
            other: self.other.windows(&x.other, taps, batch),
        }
    }

    fn pick(&mut self, x: &Pair, rows: &[usize]) -> Pair {
        Pair { float: self.float.pick(&x.float, rows), other: self.other.pick(&x.other, rows) }
    }

    fn add_norm(&mut self, at: Site, x: Pair, residual: &Pair) -> Pair {
        let sum = self.add(x, residual);
        if let Site::Layer(layer, slot) = at {
            let term = if slot == Slot::AttentionNorm { Term::AttentionResidual } else { Term::FfnResidual };
            let entry = self.ledger.at(Place::Term(layer, term));
            entry.output.see(sum.float.as_slice(), sum.other.as_slice());
        }
        self.norm(at, sum)
    }
}
