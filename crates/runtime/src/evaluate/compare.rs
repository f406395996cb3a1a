//! Figures of one trial, and two trials row by row.

use super::figures::Kind;
use super::{Exam, Metric, Output, Problem, Trial};
use crate::metrics::Figure;
use crate::metrics::statistics::{McNemar, bootstrap, mcnemar, percentiles, resolution, tango, wilson};
use crate::tasks::softmax;
use serde::Serialize;

/// How intervals are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Where their random numbers begin.
    pub seed: u64,
    /// Threads to use; no figure depends on it.
    pub threads: usize,
}

impl Plan {
    /// Ten thousand resamples.
    pub fn standard(threads: usize) -> Plan {
        Plan { resamples: 10_000, seed: 0, threads }
    }
}

/// A figure in points with its 95 % interval.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Estimate {
    /// The figure; `None` where it is undefined.
    pub value: Option<f64>,
    /// 95 %, two-sided.
    pub interval: Option<[f64; 2]>,
}

impl Estimate {
    fn new(value: f64, interval: Option<[f64; 2]>) -> Estimate {
        let interval = interval.filter(|_| value.is_finite()).map(|[a, b]| [100.0 * a, 100.0 * b]);
        Estimate { value: Some(100.0 * value).filter(|v| v.is_finite()), interval }
    }
}

/// A count out of a total, in points.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Share {
    /// How many.
    pub hits: usize,
    /// Of how many.
    pub rows: usize,
    /// In points.
    pub value: f64,
    /// Wilson's 95 % interval.
    pub interval: [f64; 2],
}

impl Share {
    fn new(hits: usize, rows: usize) -> Share {
        let interval = wilson(hits, rows).map(|p| 100.0 * p);
        Share { hits, rows, value: 100.0 * hits as f64 / rows as f64, interval }
    }
}

/// Everything about one or two trials.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each figure with one estimate a trial.
    pub figures: Vec<(Metric, Vec<Estimate>)>,
    /// The second trial against the first.
    pub comparison: Option<Comparison>,
}

/// One figure of the second trial less that of the first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Difference {
    /// The figure.
    pub metric: Metric,
    /// Second less first.
    pub estimate: Estimate,
}

/// Two trials, row by row.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// One for each figure.
    pub differences: Vec<Difference>,
    /// Rows right in both, in the first only, in the second only, in neither; for decisions.
    pub counts: Option<[usize; 4]>,
    /// How likely so uneven a split is by chance; for decisions.
    pub mcnemar: Option<McNemar>,
    /// Rows with the same decision.
    pub agreement: Option<Share>,
    /// Largest difference of a row's scores: mean over rows, worst row.
    pub scores: Option<[f64; 2]>,
    /// Kullback-Leibler divergence of the second's probabilities from the first's: mean over rows, worst row.
    pub divergence: Option<[f64; 2]>,
    /// Rows with different decisions: those the second model lost, then those it gained, then the rest.
    pub flips: Vec<usize>,
}

/// Figures of `trials` (one or two) with intervals.
pub fn report(exam: &Exam, trials: &[&Trial], plan: &Plan) -> Report {
    let metrics = exam.metrics();
    let rows = exam.rows();
    let ones = vec![1; rows];
    let figures: Vec<Vec<Box<dyn Figure + '_>>> =
        trials.iter().map(|t| metrics.iter().map(|m| exam.figure(m.kind, t)).collect()).collect();
    let values: Vec<Vec<f64>> = figures.iter().map(|all| all.iter().map(|f| f.at(&ones)).collect()).collect();
    // Shares have intervals of their own; the others are resampled, all on the same rows.
    let resampled: Vec<usize> = (0..metrics.len()).filter(|&m| metrics[m].kind != Kind::Share).collect();
    let asked: Vec<&dyn Figure> =
        figures.iter().flat_map(|all| resampled.iter().map(|&m| &*all[m])).collect();
    let draws = bootstrap(&asked, rows, if rows > 1 { plan.resamples } else { 0 }, plan.seed, plan.threads);
    let draws_of = |trial: usize, m: usize| -> Option<&Vec<f64>> {
        let place = resampled.iter().position(|&r| r == m)?;
        draws.get(trial * resampled.len() + place)
    };
    let right: Vec<Vec<bool>> = trials.iter().map(|t| exam.right(t)).collect();

    let estimates = metrics.iter().enumerate().map(|(m, metric)| {
        let one = |t: usize| {
            let interval = match draws_of(t, m) {
                Some(draws) => percentiles(draws.clone()),
                None => Some(wilson(right[t].iter().filter(|r| **r).count(), rows)),
            };
            Estimate::new(values[t][m], interval)
        };
        (*metric, (0..trials.len()).map(one).collect())
    });
    let figures = estimates.collect();
    let [first, second] = trials else { return Report { figures, comparison: None } };

    let count = |a: bool, b: bool| (0..rows).filter(|&i| right[0][i] == a && right[1][i] == b).count();
    let [both, lost, gained, neither] =
        [(true, true), (true, false), (false, true), (false, false)].map(|(a, b)| count(a, b));
    let differences = metrics.iter().enumerate().map(|(m, metric)| {
        let difference = values[1][m] - values[0][m];
        let interval = match (draws_of(0, m), draws_of(1, m)) {
            (Some(a), Some(b)) => {
                let open = if metric.kind.is_decided() { resolution(rows) } else { 0.0 };
                percentiles(a.iter().zip(b).map(|(a, b)| b - a).collect())
                    .map(|[low, high]| [low.min(difference - open), high.max(difference + open)])
            }
            _ => Some(tango(gained, lost, rows)),
        };
        Difference { metric: *metric, estimate: Estimate::new(difference, interval) }
    });
    let differences = differences.collect();
    let decides = exam.decides();
    let differs = |i: &usize| !exam.is_same(&first.outputs[*i], &second.outputs[*i]);
    let mut flips: Vec<usize> = if decides { (0..rows).filter(differs).collect() } else { Vec::new() };
    let same = rows - flips.len();
    flips.sort_by_key(|&i| match (right[0][i], right[1][i]) {
        (true, false) => 0,
        (false, true) => 1,
        _ => 2,
    });
    let comparison = Comparison {
        differences,
        counts: decides.then_some([both, lost, gained, neither]),
        mcnemar: decides.then(|| mcnemar(gained, lost)),
        agreement: decides.then(|| Share::new(same, rows)),
        scores: spread(first, second, &largest_difference),
        divergence: match exam.problem {
            Problem::Classes | Problem::Choices => spread(first, second, &divergence),
            _ => None,
        },
        flips,
    };
    Report { figures, comparison: Some(comparison) }
}

/// Mean and maximum over rows of what `f` says about two outputs.
fn spread(first: &Trial, second: &Trial, f: &dyn Fn(&Output, &Output) -> Option<f64>) -> Option<[f64; 2]> {
    let pairs = first.outputs.iter().zip(&second.outputs);
    let all: Vec<f64> = pairs.filter_map(|(a, b)| f(a, b)).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| [mean, all.iter().copied().fold(0.0, f64::max)])
}

fn largest_difference(a: &Output, b: &Output) -> Option<f64> {
    let largest = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).fold(0.0, f64::max)
    };
    match (a, b) {
        (Output::Logits(a), Output::Logits(b)) => Some(largest(a, b)),
        (Output::Tags(a), Output::Tags(b)) => {
            Some(a.iter().zip(b).map(|(a, b)| largest(&a.1, &b.1)).fold(0.0, f64::max))
        }
        _ => None,
    }
}

fn divergence(a: &Output, b: &Output) -> Option<f64> {
    let (Output::Logits(a), Output::Logits(b)) = (a, b) else { return None };
    let (p, q) = (softmax(a), softmax(b));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p), f64::from(*q).max(f64::from(f32::MIN_POSITIVE)));
        if p > 0.0 { p * (p / q).ln() } else { 0.0 }
    };
    // Rounding of the probabilities may leave a hair below zero.
    Some(p.iter().zip(&q).map(term).sum::<f64>().max(0.0))
}
