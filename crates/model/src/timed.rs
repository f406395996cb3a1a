//! Where the time of a forward goes: an engine that runs another one and keeps a clock per stage.
//!
//! Every verb is handed on as it is asked, fused ones too, so the inner engine runs as it would alone: no
//! bit and no fusion changes. Guard: `every_verb_of_the_engine_is_handed_on`, `timing_changes_no_bit`.

use crate::batch::Batch;
use crate::config::Activation;
use crate::engine::{Engine, Rows};
use crate::site::{Site, Slot};
use std::time::{Duration, Instant};

/// A stage of the forward, as a reader of a profile would cut it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Table rows, their sum and LayerNorm, the size projection.
    Embedding,
    /// Query, key and value projections, and the rows that the last layer picks.
    Qkv,
    /// Scores, softmax, weighted values.
    Attention,
    /// The projection of the attention context, residual and LayerNorm.
    AttentionOutput,
    /// Both feed-forward linears with the activation between them, residual and LayerNorm.
    FeedForward,
    /// The convolution of v2 xlarge.
    Convolution,
    /// The task head.
    Head,
}

impl Stage {
    /// Every stage in order of computation.
    pub const ALL: [Stage; 7] = [
        Stage::Embedding,
        Stage::Qkv,
        Stage::Attention,
        Stage::AttentionOutput,
        Stage::FeedForward,
        Stage::Convolution,
        Stage::Head,
    ];

    /// The name printed to people and written to records.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Embedding => "embedding",
            Stage::Qkv => "query, key, value",
            Stage::Attention => "attention",
            Stage::AttentionOutput => "attention output, norm",
            Stage::FeedForward => "feed-forward, norm",
            Stage::Convolution => "convolution",
            Stage::Head => "head",
        }
    }

    /// The stage that `site` belongs to.
    pub fn of(site: Site) -> Stage {
        match site {
            Site::WordTable
            | Site::PositionTable
            | Site::TypeTable
            | Site::EmbeddingNorm
            | Site::EmbeddingProjection => Stage::Embedding,
            // Projected once at load; only an engine that trains asks for them in a forward.
            Site::RelativeTable | Site::RelativeNorm => Stage::Qkv,
            Site::Layer(_, slot) => match slot {
                Slot::Query | Slot::Key | Slot::Value | Slot::PositionKey | Slot::PositionQuery => Stage::Qkv,
                Slot::Scores | Slot::Context => Stage::Attention,
                Slot::AttentionOutput | Slot::AttentionNorm => Stage::AttentionOutput,
                Slot::FfnUp | Slot::FfnDown | Slot::FfnNorm => Stage::FeedForward,
            },
            Site::Conv | Site::ConvNorm => Stage::Convolution,
            Site::Head(_) => Stage::Head,
        }
    }
}

/// Time spent per stage.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct StageTimes([Duration; Stage::ALL.len()]);

impl StageTimes {
    /// Time spent in `stage`.
    pub fn of(&self, stage: Stage) -> Duration {
        self.0[stage as usize]
    }

    /// All stages together. What a forward took beyond it went to allocation and batch layout.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// Adds the times of another run.
    pub fn add(&mut self, other: &StageTimes) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }
}

/// Runs `E` and times each of its verbs.
#[derive(Debug)]
pub struct Timed<E> {
    inner: E,
    times: StageTimes,
}

impl<E> Timed<E> {
    /// An engine that times `inner`.
    pub fn new(inner: E) -> Timed<E> {
        Timed { inner, times: StageTimes::default() }
    }

    /// Time per stage of everything asked so far.
    pub fn times(&self) -> &StageTimes {
        &self.times
    }

    fn during<T>(&mut self, stage: Stage, work: impl FnOnce(&mut E) -> T) -> T {
        let begin = Instant::now();
        let value = work(&mut self.inner);
        self.times.0[stage as usize] += begin.elapsed();
        value
    }
}

impl<E: Engine> Engine for Timed<E> {
    type Value = E::Value;

    fn lookup(&mut self, at: Site, rows: &[u32]) -> E::Value {
        self.during(Stage::of(at), |e| e.lookup(at, rows))
    }

    fn linear(&mut self, at: Site, x: &E::Value) -> E::Value {
        self.during(Stage::of(at), |e| e.linear(at, x))
    }

    fn activate(&mut self, at: Site, f: Activation, x: E::Value) -> E::Value {
        self.during(Stage::of(at), |e| e.activate(at, f, x))
    }

    // The forward adds nothing but embeddings outside of `add_norm`.
    fn add(&mut self, x: E::Value, y: &E::Value) -> E::Value {
        self.during(Stage::Embedding, |e| e.add(x, y))
    }

    fn norm(&mut self, at: Site, x: E::Value) -> E::Value {
        self.during(Stage::of(at), |e| e.norm(at, x))
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
        self.during(Stage::Attention, |e| e.attend(layer, q, k, v, batch, rows))
    }

    fn windows(&mut self, x: &E::Value, taps: usize, batch: &Batch) -> E::Value {
        self.during(Stage::Convolution, |e| e.windows(x, taps, batch))
    }

    fn pick(&mut self, x: &E::Value, rows: &[usize]) -> E::Value {
        self.during(Stage::Qkv, |e| e.pick(x, rows))
    }

    fn add_norm(&mut self, at: Site, x: E::Value, residual: &E::Value) -> E::Value {
        self.during(Stage::of(at), |e| e.add_norm(at, x, residual))
    }

    fn linears<const N: usize>(&mut self, sites: [Site; N], x: &E::Value) -> [E::Value; N] {
        let stage = sites.first().map_or(Stage::Qkv, |at| Stage::of(*at));
        self.during(stage, |e| e.linears(sites, x))
    }

    fn linear_norm(&mut self, at: [Site; 2], x: &E::Value, residual: &E::Value) -> E::Value {
        self.during(Stage::of(at[0]), |e| e.linear_norm(at, x, residual))
    }

    fn feed_forward(&mut self, at: [Site; 3], f: Activation, x: &E::Value) -> E::Value {
        self.during(Stage::of(at[0]), |e| e.feed_forward(at, f, x))
    }

    fn linear_activate(&mut self, at: Site, f: Activation, x: &E::Value) -> E::Value {
        self.during(Stage::of(at), |e| e.linear_activate(at, f, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verb with a default body would still compute the right values here, and lose the inner engine's
    /// fusion without a word.
    #[test]
    fn every_verb_of_the_engine_is_handed_on() {
        let verbs = |text: &'static str| {
            let (_, body) = text.split_once("pub trait Engine {").unwrap_or(("", text));
            body.lines()
                .filter_map(|l| l.strip_prefix("    fn ")?.split(['(', '<']).next())
                .collect::<Vec<_>>()
        };
        let asked = verbs(include_str!("engine.rs"));
        let source = include_str!("timed.rs");
        assert!(asked.len() >= 10, "{asked:?}");
        for verb in asked {
            assert!(source.contains(&format!("|e| e.{verb}(")), "Timed does not hand on `{verb}`");
        }
    }

    #[test]
    fn every_stage_has_its_own_clock() {
        for (i, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, i, "{}", stage.name());
        }
        let mut times = StageTimes::default();
        times.0[2] = Duration::from_millis(3);
        times.add(&times.clone());
        assert_eq!(
            (times.of(Stage::Attention), times.total()),
            (Duration::from_millis(6), Duration::from_millis(6))
        );
    }
}
