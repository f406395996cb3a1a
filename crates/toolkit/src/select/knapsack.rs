//! The multiple-choice knapsack: one offer for each unit, costs that add up.
//!
//! Dynamic programming over lists of partial selections, of which those that another one beats in everything are
//! dropped (Nemhauser and Ullmann 1969). Sums are the real ones, never rounded, so a bound is never broken. With one
//! bound the answer is the best there is, as long as a list has at most `LONGEST` entries; with two, and in
//! longer lists, of partial selections that cost the same to one part in `FINE` or `COARSE` only the best
//! goes on. Encoders have tens to hundreds of units with a handful of offers: milliseconds. A Lagrangian would leave
//! the gap of one unit, which is what a user sees on a small model.

use super::choices::Selection;
use serde::Serialize;

/// What a selection costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Damage to the outputs.
    Damage,
    /// Seconds of a call.
    Latency,
    /// Bytes.
    Size,
}

impl Axis {
    /// Every axis.
    pub const ALL: [Axis; 3] = [Axis::Damage, Axis::Latency, Axis::Size];
}

/// Damage, latency and size of something, or bounds on them.
pub type Amounts = [f64; 3];

/// Bounds on nothing.
pub const UNBOUNDED: Amounts = [f64::INFINITY; 3];

const LONGEST: usize = 20_000;
const FINE: f64 = 10_000.0;
const COARSE: f64 = 150.0;

/// A partial selection.
#[derive(Clone, Copy)]
struct Partial {
    sums: Amounts,
    before: u32,
    offer: u32,
}

/// The sums of a selection.
pub fn total(units: &[Vec<Amounts>], selection: &[usize]) -> Amounts {
    let mut sums = [0.0; 3];
    for (unit, &offer) in units.iter().zip(selection) {
        (0..3).for_each(|a| sums[a] += unit[offer][a]);
    }
    sums
}

/// Whether sums are within bounds, but for rounding of the last bits.
pub fn within(sums: &Amounts, bounds: &Amounts) -> bool {
    sums.iter().zip(bounds).all(|(s, b)| *s <= b + 1e-9 * b.abs())
}

/// The selection with the least of `objective` within `bounds`; `None` if there is none.
pub fn solve(units: &[Vec<Amounts>], objective: Axis, bounds: &Amounts) -> Option<Selection> {
    let aim = objective as usize;
    let bounded: Vec<usize> = (0..3).filter(|&a| a != aim && bounds[a].is_finite()).collect();
    let least = |unit: &Vec<Amounts>, a: usize| unit.iter().map(|o| o[a]).fold(f64::INFINITY, f64::min);
    // What the units still to come cost at least.
    let mut ahead: Amounts = [0.0; 3];
    for unit in units {
        bounded.iter().for_each(|&a| ahead[a] += least(unit, a));
    }
    let room: Vec<f64> = bounded.iter().map(|&a| bounds[a] - ahead[a]).collect();
    let mut layers: Vec<Vec<Partial>> = Vec::with_capacity(units.len());
    let mut list = vec![Partial { sums: [0.0; 3], before: 0, offer: 0 }];
    for unit in units {
        bounded.iter().for_each(|&a| ahead[a] -= least(unit, a));
        let mut next = Vec::with_capacity(list.len() * unit.len());
        for (before, partial) in list.iter().enumerate() {
            for (offer, amounts) in unit.iter().enumerate() {
                let mut sums = partial.sums;
                (0..3).for_each(|a| sums[a] += amounts[a]);
                let fits = |&a: &usize| sums[a] + ahead[a] <= bounds[a] + 1e-9 * bounds[a].abs();
                if bounded.iter().all(fits) {
                    next.push(Partial { sums, before: before as u32, offer: offer as u32 });
                }
            }
        }
        list = undominated(next, aim, &bounded, &room);
        layers.push(list.clone());
    }
    let best = (0..list.len()).min_by(|&a, &b| list[a].sums[aim].total_cmp(&list[b].sums[aim]))?;
    if list[best].sums[aim] > bounds[aim] + 1e-9 * bounds[aim].abs() {
        return None;
    }
    let mut selection = vec![0; units.len()];
    let mut at = best;
    for (slot, layer) in selection.iter_mut().zip(&layers).rev() {
        *slot = layer[at].offer as usize;
        at = layer[at].before as usize;
    }
    Some(selection)
}

/// The partial selections that may still become the best one.
fn undominated(mut list: Vec<Partial>, aim: usize, bounded: &[usize], room: &[f64]) -> Vec<Partial> {
    let key = |p: &Partial, i: usize, parts: f64| match room[i] > 0.0 {
        true => (p.sums[bounded[i]] / room[i] * parts) as u64,
        false => 0,
    };
    // Cheapest first; of equal cost the best first.
    let order = |a: &Partial, b: &Partial| {
        let costs = bounded.iter().map(|&c| a.sums[c].total_cmp(&b.sums[c]));
        costs.fold(std::cmp::Ordering::Equal, |o, c| o.then(c)).then(a.sums[aim].total_cmp(&b.sums[aim]))
    };
    list.sort_by(order);
    if bounded.len() < 2 {
        let mut best = f64::INFINITY;
        list.retain(|p| {
            p.sums[aim] < best && {
                best = p.sums[aim];
                true
            }
        });
        if bounded.is_empty() {
            return list.pop().into_iter().collect();
        }
        if list.len() > LONGEST {
            // The last of a cell is its best.
            list.reverse();
            list.dedup_by_key(|p| key(p, 0, FINE));
        }
        return list;
    }
    list.sort_by(|a, b| {
        let cell = |p: &Partial| (key(p, 0, COARSE), key(p, 1, COARSE));
        cell(a).cmp(&cell(b)).then(a.sums[aim].total_cmp(&b.sums[aim]))
    });
    list.dedup_by_key(|p| (key(p, 0, COARSE), key(p, 1, COARSE)));
    list
}

/// Selections with the least damage for at most `points` amounts of `axis`, spread evenly from the least there is
/// to what the least damage costs; within `bounds`, cheapest first, none twice.
pub fn curve(units: &[Vec<Amounts>], axis: Axis, bounds: &Amounts, points: usize) -> Vec<Selection> {
    let a = axis as usize;
    let Some(cheapest) = solve(units, axis, bounds) else { return Vec::new() };
    let Some(best) = solve(units, Axis::Damage, bounds) else { return Vec::new() };
    let (low, high) = (total(units, &cheapest)[a], total(units, &best)[a]);
    let mut found: Vec<Selection> = Vec::new();
    for i in 0..points.max(2) {
        let part = i as f64 / (points.max(2) - 1) as f64;
        let mut bounds = *bounds;
        bounds[a] = bounds[a].min(low + (high - low) * part);
        if let Some(selection) = solve(units, Axis::Damage, &bounds)
            && !found.contains(&selection)
        {
            found.push(selection);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every selection, the best within bounds.
    fn brute(units: &[Vec<Amounts>], objective: Axis, bounds: &Amounts) -> Option<f64> {
        let mut all: Vec<Selection> = vec![Vec::new()];
        for unit in units {
            all = all.iter().flat_map(|s| (0..unit.len()).map(|o| [&s[..], &[o]].concat())).collect();
        }
        let fits = all.iter().map(|s| total(units, s)).filter(|t| within(t, bounds));
        fits.map(|t| t[objective as usize]).reduce(f64::min)
    }

    fn units() -> impl Strategy<Value = Vec<Vec<Amounts>>> {
        let amount = || 0.0..1.0f64;
        let offer = (amount(), amount(), amount()).prop_map(|(a, b, c)| [a, b, c]);
        prop::collection::vec(prop::collection::vec(offer, 1..4), 1..7)
    }

    proptest! {
        #[test]
        fn one_bound_is_solved_exactly(units in units(), bound in 0.0..4.0f64, objective in 0usize..3, on in 0usize..3) {
            prop_assume!(objective != on);
            let mut bounds = UNBOUNDED;
            bounds[on] = bound;
            let found = solve(&units, Axis::ALL[objective], &bounds);
            let best = brute(&units, Axis::ALL[objective], &bounds);
            prop_assert_eq!(found.is_some(), best.is_some());
            if let (Some(found), Some(best)) = (found, best) {
                let sums = total(&units, &found);
                prop_assert!(within(&sums, &bounds));
                prop_assert!((sums[objective] - best).abs() < 1e-9, "{} {best}", sums[objective]);
            }
        }

        #[test]
        fn two_bounds_are_kept(units in units(), a in 0.5..3.0f64, b in 0.5..3.0f64) {
            let bounds = [f64::INFINITY, a, b];
            if let Some(found) = solve(&units, Axis::Damage, &bounds) {
                let sums = total(&units, &found);
                prop_assert!(within(&sums, &bounds));
                let best = brute(&units, Axis::Damage, &bounds).unwrap();
                prop_assert!(sums[0] <= best + 0.1, "{} {best}", sums[0]);
            }
        }
    }

    #[test]
    fn a_bound_on_the_objective_and_a_bound_too_tight_leave_nothing() {
        let units = vec![vec![[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]]; 3];
        assert_eq!(solve(&units, Axis::Damage, &[f64::INFINITY, 2.9, f64::INFINITY]), None);
        assert_eq!(solve(&units, Axis::Damage, &[2.5, 3.0, f64::INFINITY]), None);
        assert_eq!(solve(&units, Axis::Damage, &[3.0, 3.0, 3.0]), Some(vec![1; 3]));
        assert_eq!(solve(&units, Axis::Damage, &UNBOUNDED), Some(vec![0; 3]));
        assert_eq!(curve(&units, Axis::Size, &UNBOUNDED, 4).len(), 4);
    }

    #[test]
    fn a_large_model_takes_no_time() {
        let random = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f64 / 1e6;
        let offers = |u: usize| {
            (0..4).map(move |o| {
                let i = 4 * u + o;
                [random(3 * i), random(3 * i + 1), random(3 * i + 2)]
            })
        };
        let units: Vec<Vec<Amounts>> = (0..150).map(|u| offers(u).collect()).collect();
        let all = total(&units, &vec![0; 150]);
        let found = solve(&units, Axis::Damage, &[f64::INFINITY, 0.6 * all[1], 0.8 * all[2]]).unwrap();
        assert!(within(&total(&units, &found), &[f64::INFINITY, 0.6 * all[1], 0.8 * all[2]]));
        assert!(solve(&units, Axis::Latency, &[0.3 * all[0], f64::INFINITY, f64::INFINITY]).is_some());
    }
}
