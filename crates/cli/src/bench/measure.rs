//! Times a session, and counts what its linears had to compute.

use super::shape::Shape;
use crate::screen::Screen;
use qberta_kernels::Matrix;
use qberta_model::{Error, Linear, Model, Result, Sequence, Site, Slot, Stage, Task};
use qberta_runtime::Session;
use qberta_toolkit::Progress;
use std::time::Instant;

/// How long to measure.
pub struct Plan {
    pub repeats: Option<u32>,
    pub seconds: f64,
    pub stages: bool,
}

/// Times of one shape in milliseconds.
pub struct Timing {
    /// Ascending.
    ms: Vec<f64>,
    /// Median per stage, and of what lies outside the stages; empty if stages were not asked for.
    pub stages: Vec<(&'static str, f64)>,
}

/// Repeats of a measurement that is bounded by time.
const LEAST: usize = 5;
const MOST: usize = 10_000;
const WARM_UPS: usize = 2;

impl Timing {
    pub fn repeats(&self) -> usize {
        self.ms.len()
    }

    /// The value below which a share `q` of the repeats lies, interpolated.
    pub fn quantile(&self, q: f64) -> f64 {
        quantile(&self.ms, q)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// `sorted` ascends and is not empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

fn bits(outputs: &[Matrix]) -> Vec<u32> {
    outputs.iter().flat_map(|y| y.as_slice()).map(|v| v.to_bits()).collect()
}

/// Runs `sequences` as [`Session::run`] does for a user, again and again.
///
/// Errors: what the session refuses; a repeat that gives other bits.
pub fn time(
    session: &Session,
    sequences: &[Sequence],
    plan: &Plan,
    name: &str,
    screen: &Screen,
) -> Result<Timing> {
    let first = bits(&session.run(sequences)?);
    let same = |outputs: &[Matrix]| match bits(outputs) == first {
        true => Ok(()),
        false => Err(Error::mismatch("a repeat gave other bits than the first run")
            .hint("results must not depend on when they are computed; please report this")),
    };
    let mut one = 0.0f64;
    for _ in 0..WARM_UPS {
        let begin = Instant::now();
        same(&session.run(sequences)?)?;
        one = begin.elapsed().as_secs_f64();
    }
    let repeats = match plan.repeats {
        Some(n) => n as usize,
        None => ((plan.seconds / one.max(1e-9)) as usize).clamp(LEAST, MOST),
    };
    screen.stage(name, (repeats * (1 + usize::from(plan.stages))) as u64);
    let mut ms = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let begin = Instant::now();
        let outputs = session.run(sequences)?;
        ms.push(1e3 * begin.elapsed().as_secs_f64());
        same(&outputs)?;
        screen.step();
    }
    ms.sort_by(f64::total_cmp);
    let stages = if plan.stages { stages(session, sequences, repeats, &same, screen)? } else { Vec::new() };
    screen.finish();
    Ok(Timing { ms, stages })
}

/// Repeats of their own, so that the clocks of the stages do not touch the medians above.
fn stages(
    session: &Session,
    sequences: &[Sequence],
    repeats: usize,
    same: &dyn Fn(&[Matrix]) -> Result<()>,
    screen: &Screen,
) -> Result<Vec<(&'static str, f64)>> {
    let mut runs = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let begin = Instant::now();
        let (outputs, times) = session.run_timed(sequences)?;
        let whole = begin.elapsed();
        same(&outputs)?;
        runs.push((times, whole));
        screen.step();
    }
    let convolves = session.architecture().convolution.is_some();
    let medians = Stage::ALL.into_iter().filter(|s| *s != Stage::Convolution || convolves).map(|stage| {
        (stage.name(), median_of(runs.iter().map(|(t, _)| 1e3 * t.of(stage).as_secs_f64()).collect()))
    });
    let outside = runs.iter().map(|(t, whole)| 1e3 * whole.saturating_sub(t.total()).as_secs_f64()).collect();
    Ok(medians.chain([("batch layout, copies", median_of(outside))]).collect())
}

/// What the linears of one forward have to do.
pub struct Work {
    /// Multiplications and additions with int8 operands.
    pub int8_ops: f64,
    /// The same in f32, by linears that stay float or read float activations.
    pub f32_ops: f64,
    /// Bytes of their weights, each read at least once.
    pub weight_bytes: f64,
}

/// Counts rows that are computed: where the head reads one row per sequence, the last layer computes keys and
/// values for every token and the rest for that row alone.
pub fn work(model: &Model, shape: &Shape) -> Work {
    let arch = model.architecture();
    let (tokens, batch) = (shape.tokens() as f64, shape.batch as f64);
    let per_sequence = matches!(arch.head.task, Task::SequenceClassification | Task::MultipleChoice);
    let cut = |layer: u16| {
        let layer = usize::from(layer);
        per_sequence && layer + 1 == arch.layers && !(layer == 0 && arch.convolution.is_some())
    };
    let mut work = Work { int8_ops: 0.0, f32_ops: 0.0, weight_bytes: 0.0 };
    for (site, linear) in &model.weights().linears {
        let rows = match *site {
            Site::Layer(_, Slot::PositionKey | Slot::PositionQuery) => continue, // projected at load
            Site::Layer(_, Slot::Key | Slot::Value) => tokens,
            Site::Layer(layer, _) if cut(layer) => batch,
            Site::Head(_) if per_sequence => batch,
            _ => tokens,
        };
        let (out, inp) = linear.shape();
        let cells = (out * inp) as f64;
        let ops = 2.0 * rows * cells;
        match linear {
            Linear::Int8 { .. } | Linear::Int4 { .. } => work.int8_ops += ops,
            _ => work.f32_ops += ops,
        }
        work.weight_bytes += linear.weight_bytes() as f64;
    }
    work
}

#[cfg(test)]
mod tests {
    use super::*;
    use qberta_kernels::{Context, Isa};
    use qberta_toolkit::{Recipe, Shape as Named, quantize_in_memory};

    #[test]
    fn quantiles_interpolate() {
        let timing = Timing { ms: vec![1.0, 2.0, 3.0, 5.0], stages: Vec::new() };
        assert_eq!((timing.median(), timing.quantile(0.0), timing.quantile(1.0)), (2.5, 1.0, 5.0));
        assert_eq!(median_of(vec![7.0]), 7.0);
    }

    #[test]
    fn work_counts_what_the_forward_multiplies() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        let source = Named::named("v3-toy").unwrap().random(0, &()).unwrap();
        let recipe = Recipe::new("dynamic", &[]).unwrap();
        let model = quantize_in_memory(source, &recipe, &cx, &()).unwrap().load(&cx).unwrap().model;
        let work = work(&model, &Shape::parse("2x10").unwrap());
        let (h, tokens, batch) = (64.0f64, 20.0, 2.0);
        let whole = 12.0 * h * h; // four attention matrices and two of four times the size
        let last = 2.0 * h * h; // keys and values
        assert_eq!(work.int8_ops, 2.0 * (tokens * (whole + last) + batch * (whole - last)));
        assert_eq!(work.f32_ops, 2.0 * batch * (h * h + 3.0 * h));
        assert_eq!(work.weight_bytes, 2.0 * whole + 4.0 * (h * h + 3.0 * h));
    }

    #[test]
    fn timing_changes_no_bit() {
        let cx = Context::new(Isa::best(), 2).unwrap();
        let source = Named::named("v3-toy").unwrap().random(0, &()).unwrap();
        let session = Session::new(&source, None, cx).unwrap();
        let sequences = Shape::parse("ragged:5x3..40").unwrap().sequences(session.architecture());
        let (timed, times) = session.run_timed(&sequences).unwrap();
        assert_eq!(bits(&timed), bits(&session.run(&sequences).unwrap()));
        for stage in Stage::ALL.into_iter().filter(|s| *s != Stage::Convolution) {
            assert!(times.of(stage).as_nanos() > 0, "{}", stage.name());
        }
    }
}
