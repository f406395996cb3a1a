//! Engines over other engines: each site from one of several models, a part of the network alone, a clock
//! for each site.

use qberta_kernels::{Context, Matrix};
use qberta_model::config::Activation;
use qberta_model::{Batch, Engine, Model, Native, Rows, Site, Slot};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An engine in which each site is run by one of several models of the same architecture. The first of them
/// runs what is no site.
pub(crate) struct Mixed<'m, F> {
    models: Vec<&'m Model>,
    natives: Vec<Native<'m>>,
    from: F,
}

impl<'m, F: Fn(Site) -> usize> Mixed<'m, F> {
    /// `from` says which model runs a site. Attention takes its projected tables from the models that run
    /// the position sites, and the way it sums values from the one that runs [`Slot::Context`].
    pub fn new(models: impl IntoIterator<Item = &'m Model>, cx: &'m Context, from: F) -> Mixed<'m, F> {
        let models: Vec<&Model> = models.into_iter().collect();
        let natives = models.iter().map(|m| Native::new(m, cx)).collect();
        Mixed { models, natives, from }
    }

    fn who(&mut self, at: Site) -> &mut Native<'m> {
        let model = (self.from)(at);
        &mut self.natives[model]
    }
}

impl<F: Fn(Site) -> usize> Engine for Mixed<'_, F> {
    type Value = Matrix;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> Matrix {
        self.who(at).lookup(at, rows)
    }

    fn linear(&mut self, at: Site, x: &Matrix) -> Matrix {
        self.who(at).linear(at, x)
    }

    fn activate(&mut self, at: Site, f: Activation, x: Matrix) -> Matrix {
        self.natives[0].activate(at, f, x)
    }

    fn add(&mut self, x: Matrix, y: &Matrix) -> Matrix {
        self.natives[0].add(x, y)
    }

    fn norm(&mut self, at: Site, x: Matrix) -> Matrix {
        self.who(at).norm(at, x)
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
        let parts = [Slot::PositionKey, Slot::PositionQuery, Slot::Context]
            .map(|slot| self.models[(self.from)(Site::layer(layer, slot))]);
        self.who(Site::layer(layer, Slot::Scores)).attend_with(layer, (q, rows), k, v, batch, parts)
    }

    fn windows(&mut self, x: &Matrix, taps: usize, batch: &Batch) -> Matrix {
        self.natives[0].windows(x, taps, batch)
    }

    fn pick(&mut self, x: &Matrix, rows: &[usize]) -> Matrix {
        self.natives[0].pick(x, rows)
    }

    fn add_norm(&mut self, at: Site, x: Matrix, residual: &Matrix) -> Matrix {
        self.who(at).add_norm(at, x, residual)
    }

    fn linear_activate(&mut self, at: Site, f: Activation, x: &Matrix) -> Matrix {
        self.who(at).linear_activate(at, f, x)
    }
}

/// An engine that computes a part of the network: it sleeps (verbs give empty values at no cost) until the
/// site whose value is known, and again from the last site that is wanted.
pub(crate) struct Part<'v, E> {
    inner: E,
    awake: bool,
    /// Where the part begins: a site and the value it had.
    begin: Option<(Site, &'v Matrix)>,
    /// The last site that is computed; `None`: to the end.
    end: Option<Site>,
    /// Sites whose values are kept.
    keep: &'v [Site],
    kept: BTreeMap<Site, Matrix>,
}

impl<'v, E: Engine<Value = Matrix>> Part<'v, E> {
    /// `inner` from `begin` (the start if `None`) to `end`, with the values at `keep` kept.
    pub fn new(inner: E, begin: Option<(Site, &'v Matrix)>, end: Option<Site>, keep: &'v [Site]) -> Self {
        Part { inner, awake: begin.is_none(), begin, end, keep, kept: BTreeMap::new() }
    }

    /// The values kept.
    pub fn into_kept(self) -> BTreeMap<Site, Matrix> {
        self.kept
    }

    fn at(&mut self, site: Site, compute: impl FnOnce(&mut E) -> Matrix) -> Matrix {
        let value = match self.begin {
            Some((begin, known)) if begin == site => {
                self.awake = true;
                known.clone()
            }
            _ => self.run(compute),
        };
        if self.awake && self.keep.contains(&site) {
            self.kept.insert(site, value.clone());
        }
        self.awake &= self.end != Some(site);
        value
    }

    fn run(&mut self, compute: impl FnOnce(&mut E) -> Matrix) -> Matrix {
        if self.awake { compute(&mut self.inner) } else { Matrix::zeros(0, 0) }
    }
}

impl<E: Engine<Value = Matrix>> Engine for Part<'_, E> {
    type Value = Matrix;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> Matrix {
        self.at(at, |e| e.lookup(at, rows))
    }

    fn linear(&mut self, at: Site, x: &Matrix) -> Matrix {
        self.at(at, |e| e.linear(at, x))
    }

    fn activate(&mut self, at: Site, f: Activation, x: Matrix) -> Matrix {
        self.run(|e| e.activate(at, f, x))
    }

    fn add(&mut self, x: Matrix, y: &Matrix) -> Matrix {
        self.run(|e| e.add(x, y))
    }

    fn norm(&mut self, at: Site, x: Matrix) -> Matrix {
        self.at(at, |e| e.norm(at, x))
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
        self.run(|e| e.attend(layer, q, k, v, batch, rows))
    }

    fn windows(&mut self, x: &Matrix, taps: usize, batch: &Batch) -> Matrix {
        self.run(|e| e.windows(x, taps, batch))
    }

    fn pick(&mut self, x: &Matrix, rows: &[usize]) -> Matrix {
        self.run(|e| e.pick(x, rows))
    }

    fn add_norm(&mut self, at: Site, x: Matrix, residual: &Matrix) -> Matrix {
        self.at(at, |e| e.add_norm(at, x, residual))
    }

    fn linear_activate(&mut self, at: Site, f: Activation, x: &Matrix) -> Matrix {
        self.at(at, |e| e.linear_activate(at, f, x))
    }
}

/// An engine with a clock for each linear, table and attention.
pub(crate) struct Clocked<E> {
    inner: E,
    /// Time by site.
    pub times: BTreeMap<Site, Duration>,
}

impl<E> Clocked<E> {
    pub fn new(inner: E) -> Clocked<E> {
        Clocked { inner, times: BTreeMap::new() }
    }

    fn clock<V>(&mut self, at: Site, compute: impl FnOnce(&mut E) -> V) -> V {
        let begin = Instant::now();
        let y = compute(&mut self.inner);
        *self.times.entry(at).or_default() += begin.elapsed();
        y
    }
}

impl<E: Engine> Engine for Clocked<E> {
    type Value = E::Value;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> E::Value {
        self.clock(at, |e| e.lookup(at, rows))
    }

    fn linear(&mut self, at: Site, x: &E::Value) -> E::Value {
        self.clock(at, |e| e.linear(at, x))
    }

    fn activate(&mut self, at: Site, f: Activation, x: E::Value) -> E::Value {
        self.inner.activate(at, f, x)
    }

    fn add(&mut self, x: E::Value, y: &E::Value) -> E::Value {
        self.inner.add(x, y)
    }

    fn norm(&mut self, at: Site, x: E::Value) -> E::Value {
        self.inner.norm(at, x)
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &E::Value,
        k: &E::Value,
        v: &E::Value,
        batch: &Batch,
        rows: Rows,
    ) -> E::Value {
        self.clock(Site::layer(layer, Slot::Scores), |e| e.attend(layer, q, k, v, batch, rows))
    }

    fn windows(&mut self, x: &E::Value, taps: usize, batch: &Batch) -> E::Value {
        self.inner.windows(x, taps, batch)
    }

    fn pick(&mut self, x: &E::Value, rows: &[usize]) -> E::Value {
        self.inner.pick(x, rows)
    }

    fn add_norm(&mut self, at: Site, x: E::Value, residual: &E::Value) -> E::Value {
        self.inner.add_norm(at, x, residual)
    }

    fn linear_activate(&mut self, at: Site, f: Activation, x: &E::Value) -> E::Value {
        self.clock(at, |e| e.linear_activate(at, f, x))
    }
}
