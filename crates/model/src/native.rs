//! The engine that runs a model on this machine: whatever each site's weights are stored as.

use crate::batch::Batch;
use crate::config::Activation;
use crate::engine::{Engine, Rows};
use crate::linear::Linear;
use crate::model::Model;
use crate::relative;
use crate::site::{Site, Slot};
use qberta_kernels::{self as kernels, Attention, Context, Matrix, NormParameters, Queries};
use std::collections::BTreeMap;

/// Runs `model` with the kernels of `cx`.
pub struct Native<'m> {
    model: &'m Model,
    cx: &'m Context,
    /// Distance tables by longest sequence, so that a batch computes its table once for all layers.
    index: BTreeMap<usize, Vec<u32>>,
}

impl<'m> Native<'m> {
    /// An engine over `model`.
    pub fn new(model: &'m Model, cx: &'m Context) -> Native<'m> {
        Native { model, cx, index: BTreeMap::new() }
    }

    /// Attention of layer `layer` with the projected position keys of model `keys`, the position queries of model
    /// `queries` and the weighted sum as model `context` computes it, all of this architecture: what a comparison of
    /// models mixes.
    pub fn attend_with(
        &mut self,
        layer: usize,
        (q, rows): (&Matrix, Rows),
        k: &Matrix,
        v: &Matrix,
        batch: &Batch,
        [keys, queries, context]: [&Model; 3],
    ) -> Matrix {
        let arch = &self.model.arch;
        let longest = batch.longest();
        let index: &[u32] = match &arch.relative {
            Some(r) => self.index.entry(longest).or_insert_with(|| relative::index(longest, r)),
            None => &[],
        };
        let content = self.model.weights.scores(layer);
        let [keys, queries] = [keys, queries].map(|m| m.positions(layer, content.is_coded(), self.cx));
        let spec = Attention {
            heads: arch.heads,
            head_size: arch.head_size,
            scale: ((arch.head_size * arch.score_terms) as f32).sqrt().recip(),
            content,
            values: context.weights.context(layer),
            key_positions: keys.and_then(|p| p.key.as_ref()),
            query_positions: queries.and_then(|p| p.query.as_ref()),
            index,
            len_max: longest,
            mix: self.model.weights.talking.get(layer).map(|t| (t.logits.as_slice(), t.weights.as_slice())),
        };
        let queries = match rows {
            Rows::All => Queries::All,
            Rows::First => Queries::First,
        };
        kernels::attend(self.cx, &spec, q, k, v, batch.spans(), queries)
    }
}

impl<'m> Native<'m> {
    fn norm_at(&self, at: Site) -> NormParameters<'m> {
        let norm = &self.model.weights.norms[&at];
        NormParameters { weight: &norm.weight, bias: &norm.bias, eps: self.model.arch.eps }
    }
}

impl Engine for Native<'_> {
    type Value = Matrix;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> Matrix {
        let table = &self.model.weights.tables[&at];
        let mut x = Matrix::zeros(rows.len(), table.width());
        for (i, &row) in rows.iter().enumerate() {
            table.read(row as usize, x.row_mut(i));
        }
        x
    }

    fn linear(&mut self, at: Site, x: &Matrix) -> Matrix {
        let linears = &self.model.weights.linears;
        match at {
            Site::Layer(layer, slot @ (Slot::PositionKey | Slot::PositionQuery)) => {
                // Shared projections: the position sites use the weights of the content sites.
                let content = if slot == Slot::PositionKey { Slot::Key } else { Slot::Query };
                let linear = linears.get(&at).unwrap_or_else(|| &linears[&Site::Layer(layer, content)]);
                linear.forward_float_input(self.cx, x)
            }
            _ => linears[&at].forward(self.cx, x),
        }
    }

    fn linears<const N: usize>(&mut self, sites: [Site; N], x: &Matrix) -> [Matrix; N] {
        Linear::forward_all(self.cx, sites.map(|at| &self.model.weights.linears[&at]), x)
    }

    fn activate(&mut self, _at: Site, f: Activation, mut x: Matrix) -> Matrix {
        kernels::activate(self.cx, f, &mut x);
        x
    }

    fn add(&mut self, mut x: Matrix, y: &Matrix) -> Matrix {
        kernels::add(self.cx, &mut x, y);
        x
    }

    fn norm(&mut self, at: Site, mut x: Matrix) -> Matrix {
        let norm = &self.model.weights.norms[&at];
        kernels::layer_norm(self.cx, &mut x, &norm.weight, &norm.bias, self.model.arch.eps);
        x
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
        let model = self.model;
        self.attend_with(layer, (q, rows), k, v, batch, [model; 3])
    }

    fn windows(&mut self, x: &Matrix, taps: usize, batch: &Batch) -> Matrix {
        let width = x.cols();
        let reach = taps / 2;
        let mut y = Matrix::zeros(x.rows(), taps * width);
        for span in batch.spans() {
            for i in 0..span.len {
                for tap in 0..taps {
                    let Some(from) = (i + tap).checked_sub(reach).filter(|&j| j < span.len) else { continue };
                    let cells = tap * width..(tap + 1) * width;
                    y.row_mut(span.start + i)[cells].copy_from_slice(x.row(span.start + from));
                }
            }
        }
        y
    }

    fn pick(&mut self, x: &Matrix, rows: &[usize]) -> Matrix {
        let mut y = Matrix::zeros(rows.len(), x.cols());
        for (i, &row) in rows.iter().enumerate() {
            y.row_mut(i).copy_from_slice(x.row(row));
        }
        y
    }

    fn linear_norm(&mut self, [at, norm]: [Site; 2], x: &Matrix, residual: &Matrix) -> Matrix {
        match self.model.weights.linears[&at].forward_norm(self.cx, x, residual, self.norm_at(norm)) {
            Some(y) => y,
            None => {
                let y = self.linear(at, x);
                self.add_norm(norm, y, residual)
            }
        }
    }

    fn feed_forward(&mut self, [up, down, norm]: [Site; 3], f: Activation, x: &Matrix) -> Matrix {
        let linears = [up, down].map(|at| &self.model.weights.linears[&at]);
        match Linear::feed_forward(self.cx, linears, f, x, self.norm_at(norm)) {
            Some(y) => y,
            None => {
                let inner = self.linear_activate(up, f, x);
                self.linear_norm([down, norm], &inner, x)
            }
        }
    }

    fn add_norm(&mut self, at: Site, mut x: Matrix, residual: &Matrix) -> Matrix {
        let norm = &self.model.weights.norms[&at];
        kernels::add_layer_norm(self.cx, &mut x, residual, &norm.weight, &norm.bias, self.model.arch.eps);
        x
    }
}
