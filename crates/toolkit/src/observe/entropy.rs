//! The symmetric range whose quantized distribution diverges least from that of the values (Migacz,
//! "8-bit inference with TensorRT", 2017), as ONNX Runtime's entropy calibrator computes it.
//!
//! For every threshold `t` of a histogram around zero: P is the part inside, what lies outside added to its
//! ends; Q is P merged into 128 levels and spread evenly again over the bins that are not empty; the
//! threshold with the least KL(P || Q) wins. Known to clip heavy tails hard (37.4 F1 for BERT-large on SQuAD
//! in arXiv:2004.09602).

use super::{Bins, Dense, Range};

/// Levels that Q has.
pub const LEVELS: usize = 128;

/// Most bins of the histogram around zero, as TensorRT has.
const MOST: usize = 2048;

/// Added to empty bins so that the divergence is finite.
const SMOOTHING: f64 = 1e-4;

/// The range for `bins`.
pub fn range(bins: &Bins) -> Range {
    threshold(&bins.symmetric(MOST))
}

/// The same for a histogram with as many bins below zero as above.
pub fn threshold(bins: &Dense) -> Range {
    let counts = &bins.counts;
    let zero = counts.len() / 2;
    let whole = Range { lo: bins.edge(0), hi: bins.edge(counts.len()) };
    let (mut best, mut chosen) = (f64::INFINITY, None);
    for half in LEVELS / 2..=zero {
        let (start, end) = (zero - half, (zero + half + 1).min(counts.len()));
        let divergence = divergence(counts, start, end);
        // The first of equals. Where no threshold has a divergence the whole range stands (there, the smallest).
        if divergence < best {
            (best, chosen) = (divergence, Some(Range { lo: bins.edge(start), hi: bins.edge(end) }));
        }
    }
    chosen.unwrap_or(whole)
}

fn divergence(counts: &[f64], start: usize, end: usize) -> f64 {
    let inside = &counts[start..end];
    let mut p = inside.to_vec();
    p[0] += counts[..start].iter().sum::<f64>();
    *p.last_mut().expect("a threshold spans at least one bin") += counts[end..].iter().sum::<f64>();

    let merged = inside.len() / LEVELS;
    let mut q = vec![0.0; p.len()];
    for level in 0..LEVELS {
        let bins = level * merged..(level + 1) * merged;
        let mut sum: f64 = inside[bins.clone()].iter().sum();
        if level + 1 == LEVELS {
            sum += inside[LEVELS * merged..].iter().sum::<f64>();
        }
        let used = p[bins.clone()].iter().filter(|c| **c != 0.0).count();
        if used > 0 {
            q[bins].fill((sum / used as f64).trunc()); // whole counts there, so whole counts here
        }
    }
    match (smooth(p), smooth(q)) {
        (Some(p), Some(q)) => kullback_leibler(&p, &q),
        _ => f64::INFINITY,
    }
}

/// Moves a little of every full bin into the empty ones; `None` if there is too little to move.
fn smooth(mut p: Vec<f64>) -> Option<Vec<f64>> {
    let empty = p.iter().filter(|c| **c == 0.0).count();
    let full = p.len() - empty;
    if full == 0 {
        return None;
    }
    let taken = SMOOTHING * empty as f64 / full as f64;
    if taken >= 1.0 {
        return None;
    }
    for c in &mut p {
        *c += if *c == 0.0 { SMOOTHING } else { -taken };
    }
    p.iter().all(|c| *c > 0.0).then_some(p)
}

fn kullback_leibler(p: &[f64], q: &[f64]) -> f64 {
    let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
    p.iter().zip(q).map(|(p, q)| (p / sum_p) * ((p / sum_p) / (q / sum_q)).ln()).sum()
}
