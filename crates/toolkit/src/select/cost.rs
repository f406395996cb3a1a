//! What each choice costs here: time of every module inside the running network.
//!
//! A linear timed alone finds its weights in the cache and its input where it left it. Timed in place, by an
//! engine with a clock, it costs what it costs a user. Choices take turns, so that a machine that slows down slows
//! all of them, and of each the quarter that was disturbed least decides.

use super::choices::Palette;
use crate::mixed::Clocked;
use crate::quantize::Progress;
use qberta_kernels::Context;
use qberta_model::{Batch, Native, Result, Sequence, forward};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Times in seconds of one call: the mean over the inputs that were timed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// By unit and choice.
    pub units: BTreeMap<String, BTreeMap<String, f64>>,
    /// What no choice changes: attention, norms, head.
    pub rest: f64,
    /// Rounds timed.
    pub rounds: usize,
}

impl Costs {
    /// The time of an offer.
    pub fn of(&self, unit: &str, choice: &str) -> f64 {
        self.units.get(unit).and_then(|u| u.get(choice)).copied().unwrap_or(0.0)
    }
}

/// How long to measure.
const BUDGET: Duration = Duration::from_secs(8);
const LEAST: usize = 7;
const MOST: usize = 300;

/// Times every choice of every unit on `inputs`, each of them the sequences of one call.
///
/// Errors: an input that the model cannot take.
pub fn costs(
    palette: &Palette,
    inputs: &[Vec<Sequence>],
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Costs> {
    let arch = palette.architecture();
    let batches: Vec<Batch> = inputs.iter().map(|i| Batch::new(arch, i)).collect::<Result<_>>()?;
    let round = |seen: &mut Vec<Times>| {
        for (model, times) in palette.models.iter().zip(seen) {
            let mut sum = BTreeMap::new();
            let mut whole = Duration::ZERO;
            for batch in &batches {
                let mut engine = Clocked::new(Native::new(model, cx));
                let begin = Instant::now();
                forward(arch, &mut engine, batch);
                whole += begin.elapsed();
                for (site, time) in engine.times {
                    *sum.entry(site).or_insert(Duration::ZERO) += time;
                }
            }
            let of = |sites: &[_]| sites.iter().filter_map(|s| sum.get(s)).sum::<Duration>().as_secs_f64();
            let units: Vec<f64> = palette.units.iter().map(|u| of(&u.sites)).collect();
            times.rest.push(whole.as_secs_f64() - units.iter().sum::<f64>());
            units.iter().zip(&mut times.units).for_each(|(t, all)| all.push(*t));
        }
    };
    let empty = || Times { units: vec![Vec::new(); palette.units.len()], rest: Vec::new() };
    let all = || palette.models.iter().map(|_| empty()).collect::<Vec<_>>();
    let begin = Instant::now();
    round(&mut all()); // warms up, and says how long a round takes
    let one = begin.elapsed().as_secs_f64().max(1e-6);
    let rounds = ((BUDGET.as_secs_f64() / one) as usize).clamp(LEAST, MOST);
    progress.stage("timing every module with the kernels of this machine", rounds as u64);
    let mut seen = all();
    for _ in 0..rounds {
        round(&mut seen);
        progress.step();
    }
    let calls = batches.len().max(1) as f64;
    let mut costs = Costs { rounds, ..Costs::default() };
    for (u, unit) in palette.units.iter().enumerate() {
        for offer in &unit.offers {
            let time = undisturbed(&mut seen[offer.choice].units[u]) / calls;
            let name = palette.choices[offer.choice].name.to_owned();
            costs.units.entry(unit.name.clone()).or_default().insert(name, time);
        }
    }
    let mut rest: Vec<f64> = seen.iter_mut().map(|t| undisturbed(&mut t.rest) / calls).collect();
    rest.sort_by(f64::total_cmp);
    costs.rest = rest[rest.len() / 2];
    Ok(costs)
}

struct Times {
    units: Vec<Vec<f64>>,
    rest: Vec<f64>,
}

/// The first quartile.
fn undisturbed(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 4).copied().unwrap_or(0.0)
}

/// The time in seconds of one call of each of `models`, in turn on the same inputs: mean over inputs, first
/// quartile over rounds.
///
/// Errors: an input that the models cannot take.
pub fn latencies(
    models: &[&qberta_model::Model],
    inputs: &[Vec<Sequence>],
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    let mut seen = vec![Vec::new(); models.len()];
    let mut round = || -> Result<f64> {
        let mut all = 0.0;
        for (model, times) in models.iter().zip(&mut seen) {
            let mut sum = 0.0;
            for input in inputs {
                let batch = Batch::new(model.architecture(), input)?;
                let begin = Instant::now();
                forward(model.architecture(), &mut Native::new(model, cx), &batch);
                sum += begin.elapsed().as_secs_f64();
            }
            times.push(sum / inputs.len().max(1) as f64);
            all += sum;
        }
        Ok(all)
    };
    let one = round()?.max(1e-6);
    let rounds = ((0.5 * BUDGET.as_secs_f64() / one) as usize).clamp(LEAST, MOST);
    progress.stage("timing the chosen model", rounds as u64);
    for _ in 0..rounds {
        round()?;
        progress.step();
    }
    Ok(seen.iter_mut().map(|t| undisturbed(t)).collect())
}
