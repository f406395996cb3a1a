//! What a forward asks of whoever executes it.
//!
//! Two questions stay apart: how a weight is stored (`Linear`, a property of the model) and what
//! happens while the network runs (the engine). Float, int8 and mixed models are one engine, `Native`,
//! over different weights. An observer or a fake quantizer wraps an engine; a comparison runs two in
//! lock-step with pairs as values; a training tape records the same verbs.

use crate::batch::Batch;
use crate::config::Activation;
use crate::site::Site;

/// Which rows a computation has to produce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// One row per token.
    All,
    /// One row per sequence, that of its first token. The bits equal those rows of [`Rows::All`].
    First,
}

/// The verbs of the network. Values are matrices of f32 rows, or whatever stands for them.
pub trait Engine {
    /// Rows of activations: `[tokens, width]`.
    type Value;

    /// Rows of the table at `at`, one per entry of `rows`.
    fn lookup(&mut self, at: Site, rows: &[u32]) -> Self::Value;

    /// `x Wᵀ + b` with the weights at `at`: `[rows, in]` to `[rows, out]`.
    fn linear(&mut self, at: Site, x: &Self::Value) -> Self::Value;

    /// `f(x)` elementwise; `at` is the linear whose output is activated.
    fn activate(&mut self, at: Site, f: Activation, x: Self::Value) -> Self::Value;

    /// `x + y` elementwise.
    fn add(&mut self, x: Self::Value, y: &Self::Value) -> Self::Value;

    /// LayerNorm over the last axis with the parameters at `at`.
    fn norm(&mut self, at: Site, x: Self::Value) -> Self::Value;

    /// Attention of layer `layer` within each sequence, disentangled if the architecture says so:
    /// `q [rows, heads * head_size]`, `k` and `v` one row per token. `rows` tells which rows `q` holds.
    fn attend(
        &mut self,
        layer: usize,
        q: &Self::Value,
        k: &Self::Value,
        v: &Self::Value,
        batch: &Batch,
        rows: Rows,
    ) -> Self::Value;

    /// For every token, its `taps` neighbours side by side (zero outside the sequence), tap-major:
    /// `[tokens, width]` to `[tokens, taps * width]`.
    fn windows(&mut self, x: &Self::Value, taps: usize, batch: &Batch) -> Self::Value;

    /// The given rows of `x`, in order.
    fn pick(&mut self, x: &Self::Value, rows: &[usize]) -> Self::Value;

    /// `norm(x + residual)`. Engines may fuse it; the result must not change.
    fn add_norm(&mut self, at: Site, x: Self::Value, residual: &Self::Value) -> Self::Value {
        let sum = self.add(x, residual);
        self.norm(at, sum)
    }

    /// `norm(linear(x) + residual)`, the linear at `at`, the norm at `norm`. Engines may fuse it; the result must
    /// not change.
    fn linear_norm(&mut self, [at, norm]: [Site; 2], x: &Self::Value, residual: &Self::Value) -> Self::Value {
        let y = self.linear(at, x);
        self.add_norm(norm, y, residual)
    }

    /// `norm(linear(f(linear(x))) + x)` with the linears at `up` and `down`. Engines may fuse it; the result must
    /// not change.
    fn feed_forward(&mut self, [up, down, norm]: [Site; 3], f: Activation, x: &Self::Value) -> Self::Value {
        let inner = self.linear_activate(up, f, x);
        self.linear_norm([down, norm], &inner, x)
    }

    /// [`Engine::linear`] at each of `sites` on one input. Engines may share what the input costs; the results
    /// must not change.
    fn linears<const N: usize>(&mut self, sites: [Site; N], x: &Self::Value) -> [Self::Value; N] {
        sites.map(|at| self.linear(at, x))
    }

    /// `f(linear(x))`. Engines may fuse it; the result must not change.
    fn linear_activate(&mut self, at: Site, f: Activation, x: &Self::Value) -> Self::Value {
        let y = self.linear(at, x);
        self.activate(at, f, y)
    }
}
