//! An engine that lets someone look at the numbers while they pass: [`Native`] with an observer.
//!
//! Batches are ragged: there is no padding, so nothing has to be excluded and no statistic can depend on
//! it. Every verb is answered by `Native` itself, fused ones included, so looking changes no bit.

use crate::batch::Batch;
use crate::config::Activation;
use crate::engine::{Engine, Rows};
use crate::forward::{Positions, project_positions};
use crate::model::Model;
use crate::native::Native;
use crate::scores::{probabilities, scores};
use crate::site::Site;
use qberta_kernels::{Context, Matrix};
use std::collections::BTreeMap;
use std::fmt;

/// A place where numbers can be looked at. `Ord` follows the order of computation within a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tap {
    /// What goes into the linear at a site, `[rows, in]`.
    Input(Site),
    /// What comes out of the LayerNorm at a site, `[rows, width]`.
    Normed(Site),
    /// An operand of the attention of a layer.
    Operand(u16, Operand),
}

/// An operand of attention's two products.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operand {
    /// Queries, `[rows, heads * head_size]`.
    Query,
    /// Keys, `[tokens, heads * head_size]`.
    Key,
    /// Values, `[tokens, heads * head_size]`.
    Value,
    /// Attention weights of one head in one sequence, `[queries, keys]`.
    Probabilities,
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tap::Input(site) => write!(f, "{site} input"),
            Tap::Normed(site) => write!(f, "{site} output"),
            Tap::Operand(layer, operand) => {
                let name = match operand {
                    Operand::Query => "queries",
                    Operand::Key => "keys",
                    Operand::Value => "values",
                    Operand::Probabilities => "probabilities",
                };
                write!(f, "layer.{layer}.attention {name}")
            }
        }
    }
}

/// Someone who looks.
pub trait Observe {
    /// Whether this tap is of interest; what nobody wants is not computed for the sake of showing it.
    fn wants(&self, tap: Tap) -> bool;
    /// The numbers at `tap`, once per call of the verb ([`Operand::Probabilities`]: once per head and
    /// sequence).
    fn see(&mut self, tap: Tap, x: &Matrix);
}

/// [`Native`] with an observer.
pub struct Observed<'m, O> {
    model: &'m Model,
    cx: &'m Context,
    native: Native<'m>,
    observer: O,
    tables: BTreeMap<usize, Positions<Matrix>>,
}

impl<'m, O: Observe> Observed<'m, O> {
    /// An engine over `model` that shows what passes to `observer`.
    pub fn new(model: &'m Model, cx: &'m Context, observer: O) -> Observed<'m, O> {
        Observed { model, cx, native: Native::new(model, cx), observer, tables: BTreeMap::new() }
    }

    /// The observer, once the engine is no longer needed.
    pub fn into_observer(self) -> O {
        self.observer
    }

    fn show(&mut self, tap: Tap, x: &Matrix) {
        if self.observer.wants(tap) {
            self.observer.see(tap, x);
        }
    }

    fn show_probabilities(&mut self, layer: usize, q: (&Matrix, Rows), k: &Matrix, batch: &Batch) {
        let tap = Tap::Operand(layer as u16, Operand::Probabilities);
        if !self.observer.wants(tap) {
            return;
        }
        let arch = &self.model.arch;
        let tables = self
            .tables
            .entry(layer)
            .or_insert_with(|| project_positions(arch, &mut Native::new(self.model, self.cx), layer));
        for number in 0..batch.spans().len() {
            let operands = self.model.weights.scores(layer);
            let scores = scores(arch, operands, tables, q, k, batch, number);
            for head in probabilities(&scores, &self.model.weights, layer) {
                self.observer.see(tap, &head);
            }
        }
    }
}

impl<O: Observe> Engine for Observed<'_, O> {
    type Value = Matrix;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> Matrix {
        self.native.lookup(at, rows)
    }

    fn linear(&mut self, at: Site, x: &Matrix) -> Matrix {
        self.show(Tap::Input(at), x);
        self.native.linear(at, x)
    }

    fn activate(&mut self, at: Site, f: Activation, x: Matrix) -> Matrix {
        self.native.activate(at, f, x)
    }

    fn add(&mut self, x: Matrix, y: &Matrix) -> Matrix {
        self.native.add(x, y)
    }

    fn norm(&mut self, at: Site, x: Matrix) -> Matrix {
        let y = self.native.norm(at, x);
        self.show(Tap::Normed(at), &y);
        y
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        batch: &Batch,
        rows: Rows,
    ) -> Matrix {
        for (operand, x) in [(Operand::Query, q), (Operand::Key, k), (Operand::Value, v)] {
            self.show(Tap::Operand(layer as u16, operand), x);
        }
        self.show_probabilities(layer, (q, rows), k, batch);
        self.native.attend(layer, q, k, v, batch, rows)
    }

    fn windows(&mut self, x: &Matrix, taps: usize, batch: &Batch) -> Matrix {
        self.native.windows(x, taps, batch)
    }

    fn pick(&mut self, x: &Matrix, rows: &[usize]) -> Matrix {
        self.native.pick(x, rows)
    }

    fn add_norm(&mut self, at: Site, x: Matrix, residual: &Matrix) -> Matrix {
        let y = self.native.add_norm(at, x, residual);
        self.show(Tap::Normed(at), &y);
        y
    }

    fn linear_activate(&mut self, at: Site, f: Activation, x: &Matrix) -> Matrix {
        self.show(Tap::Input(at), x);
        self.native.linear_activate(at, f, x)
    }
}
