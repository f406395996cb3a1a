//! The range with the least squared error among those shrunk evenly: `k / 100` off both ends, `k` below 80
//! (the grid of Qualcomm's outlier suppression code and of compressed-tensors' MSE observer).

use super::{Bins, Range};

/// Hundredths by which the range shrinks at most, exclusive.
const GRID: usize = 80;

/// The best range for `bins` within `seen`.
pub fn range(bins: &Bins, seen: Range) -> Range {
    let shrunk = |k: usize| {
        let left = 1.0 - k as f64 / 100.0;
        Range { lo: seen.lo * left, hi: seen.hi * left }
    };
    let dense = bins.dense();
    // A bin's values stand in its middle, the outermost ones where the extremes are.
    let values: Vec<(f64, f64)> = dense
        .counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0.0)
        .map(|(i, count)| {
            let (from, to) = (dense.edge(i).max(seen.lo), dense.edge(i + 1).min(seen.hi));
            ((from + to) / 2.0, *count)
        })
        .collect();
    let error = |k: &usize| match shrunk(*k).grid() {
        Ok(grid) => {
            let (scale, zero) = (f64::from(grid.scale()), f64::from(grid.zero()));
            let rounded = |x: f64| (((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero) * scale;
            values.iter().map(|(x, count)| count * (x - rounded(*x)).powi(2)).sum()
        }
        Err(_) => f64::INFINITY,
    };
    let best = (0..GRID).map(|k| (k, error(&k))).reduce(|a, b| if b.1 < a.1 { b } else { a });
    shrunk(best.map_or(0, |(k, _)| k))
}
