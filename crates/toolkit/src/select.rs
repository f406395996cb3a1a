//! Selective precision: which modules to quantize how.
//!
//! Reading order: [`choices`] (what can be chosen, and the models that any selection is put together from),
//! [`sensitivity`] (what each choice does to the outputs, by `damage`), [`cost`] (what it costs on this
//! machine), [`knapsack`] (the best selection within bounds), [`state`] (what was measured, in a file). What a
//! drop in a task's figures is, and whether a selection holds on data it was not chosen on, is the caller's part: this
//! crate sees token ids only.

pub mod choices;
pub mod cost;
mod damage;
pub mod knapsack;
pub mod sensitivity;
pub mod state;

pub use choices::{CHOICES, Choice, Of, Offer, Palette, Selection, Unit};
pub use cost::{Costs, costs, latencies};
pub use knapsack::{Amounts, Axis, UNBOUNDED, curve, solve, total, within};
pub use sensitivity::{Damages, Search, measure};
pub use state::{Drop, State, Timed};

/// Seconds of a call that a byte is worth: of two selections as fast as each other the smaller one is better, and
/// a megabyte less is worth a microsecond.
const BYTE: f64 = 1e-12;

/// Damage, seconds (bytes priced in) and bytes of every offer of every unit, without what no choice changes.
pub fn amounts(palette: &Palette, damages: &Damages, costs: &Costs) -> Vec<Vec<Amounts>> {
    let offer = |unit: &Unit, o: &Offer| {
        let choice = palette.choices[o.choice].name;
        let damage = if o.choice == 0 { 0.0 } else { damages.score(&unit.name, choice) };
        [damage, costs.of(&unit.name, choice) + BYTE * o.bytes as f64, o.bytes as f64]
    };
    palette.units.iter().map(|u| u.offers.iter().map(|o| offer(u, o)).collect()).collect()
}

/// Spearman's correlation of two lists of equally many values; `None` where one of them is constant.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let n = a.len() as f64;
    let mean = (n + 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let both = (product(&a, &a) * product(&b, &b)).sqrt();
    (both > 0.0).then(|| product(&a, &b) / both)
}

/// Ranks from 1, equal values sharing their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: f64| values.iter().filter(|w| **w < v).count() as f64;
    let equal = |v: f64| values.iter().filter(|w| **w == v).count() as f64;
    values.iter().map(|v| below(*v) + (equal(*v) + 1.0) / 2.0).collect()
}

#[cfg(test)]
mod tests;
