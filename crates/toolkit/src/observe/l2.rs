//! The range with the least squared quantization error, found as PyTorch's HistogramObserver finds it
//! (`_non_linear_param_search`, from Caffe2's NormMinimization).
//!
//! From both ends, the bound that leaves out more bins for the same 0.001 % of the values moves in, as long
//! as the estimated error falls. Sums are f64 here and f32 there.

use super::{Dense, Range};

/// Levels of the grid.
const LEVELS: f64 = 256.0;

/// Share of the values by which a bound moves.
const STEP: f64 = 1e-5;

/// The range for `bins`.
pub fn range(bins: &Dense) -> Range {
    let last = bins.counts.len() - 1;
    let mut total = 0.0;
    let sums: Vec<f64> = bins
        .counts
        .iter()
        .map(|c| {
            total += c;
            total
        })
        .collect();
    let (mut alpha, mut beta) = (0.0, 1.0);
    let (mut start, mut end) = (0, last);
    let mut least = f64::INFINITY;
    while alpha < beta {
        let (next_alpha, next_beta) = (alpha + STEP, beta - STEP);
        let (mut left, mut right) = (start, end);
        while left < end && sums[left] < next_alpha * total {
            left += 1;
        }
        while right > start && sums[right] > next_beta * total {
            right -= 1;
        }
        let (mut next_start, mut next_end) = (start, end);
        if left - start > end - right {
            next_start = left;
            alpha = next_alpha;
        } else {
            next_end = right;
            beta = next_beta;
        }
        if (next_start, next_end) == (start, end) {
            continue;
        }
        let error = error(bins, next_start, next_end);
        if error > least {
            break;
        }
        (least, start, end) = (error, next_start, next_end);
    }
    Range { lo: bins.edge(start), hi: bins.edge(end + 1) }
}

/// The squared error of all values on a grid over bins `start..=end`, values being spread evenly in
/// their bins and rounded to the middle of a level.
fn error(bins: &Dense, start: usize, end: usize) -> f64 {
    let level = bins.width * (end - start + 1) as f64 / LEVELS;
    let cube = |from: f64, to: f64| (to.powi(3) - from.powi(3)) / 3.0;
    let level_of = |x: f64| (x / level).floor().clamp(0.0, LEVELS - 1.0);
    bins.counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0.0)
        .map(|(i, count)| {
            let from = (i as f64 - start as f64) * bins.width;
            let to = from + bins.width;
            let (first, last) = (level_of(from), level_of(to));
            let parts = cube(from - (first + 0.5) * level, level / 2.0)
                + (last - first - 1.0) * cube(-level / 2.0, level / 2.0)
                + cube(-level / 2.0, to - (last * level + level / 2.0));
            count / bins.width * parts
        })
        .sum()
}
