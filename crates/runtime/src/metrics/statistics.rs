//! What a sample proves: intervals and paired tests. Everything is deterministic.
//!
//! All intervals are two-sided and hold 95 %, so each end alone holds 97.5 %.

use super::Figure;
use statrs::distribution::{Binomial, Discrete, DiscreteCDF};

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's score interval (1927) for `hits` of `n`.
pub fn wilson(hits: usize, n: usize) -> [f64; 2] {
    let (n, p) = (n as f64, hits as f64 / n as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    [((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0)]
}

/// Tango's score interval (1998, Statistics in Medicine 17:891) for the difference of two shares on the same
/// `n` rows: `gained` rows right with the second only, `lost` with the first only; the difference is
/// `(gained - lost) / n`.
///
/// Unlike the usual `± 1.96 standard errors` it does not shrink to a point when no row changed: then it is
/// `± z² / (n + z²)`, because ten rows without a change prove little.
pub fn tango(gained: usize, lost: usize, n: usize) -> [f64; 2] {
    let (b, c, n) = (gained as f64, lost as f64, n as f64);
    // The score statistic of the hypothesis that the difference is `d`; it falls as `d` grows.
    let score = |d: f64| {
        let (qa, qb, qc) = (2.0 * n, -b - c + (2.0 * n - b + c) * d, -c * d * (1.0 - d));
        let q = ((qb * qb - 4.0 * qa * qc).max(0.0).sqrt() - qb) / (2.0 * qa);
        let variance = n * (2.0 * q + d * (1.0 - d));
        (b - c - n * d) / variance.max(f64::MIN_POSITIVE).sqrt()
    };
    let estimate = (b - c) / n;
    // Bisection: sixty halvings of at most 2 leave nothing of an f64.
    let solve = |wanted: f64, mut low: f64, mut high: f64| {
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if score(middle) > wanted { low = middle } else { high = middle }
        }
        0.5 * (low + high)
    };
    let low = if estimate <= -1.0 { -1.0 } else { solve(Z, -1.0, estimate) };
    let high = if estimate >= 1.0 { 1.0 } else { solve(-Z, estimate, 1.0) };
    [low, high]
}

/// McNemar's test: how likely a split at least as uneven as `gained` against `lost` is if neither model is
/// better.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct McNemar {
    /// Two-sided exact probability.
    pub exact: f64,
    /// Mid-p: the probability of the observed split counts half. Less conservative.
    pub mid: f64,
}

/// McNemar's test for rows right with one model only.
pub fn mcnemar(gained: usize, lost: usize) -> McNemar {
    let (k, n) = (gained.min(lost) as u64, (gained + lost) as u64);
    match Binomial::new(0.5, n) {
        Ok(split) if n > 0 => {
            let (tail, point) = (split.cdf(k), split.pmf(k));
            McNemar { exact: (2.0 * tail).min(1.0), mid: (2.0 * tail - point).min(1.0) }
        }
        _ => McNemar { exact: 1.0, mid: 1.0 },
    }
}

/// Figures on bootstrap resamples of `rows` rows: `result[f][r]` is figure `f` on resample `r`. All figures
/// see the same resamples, so their differences are paired. Equal arguments give equal results whatever
/// `threads` is.
pub fn bootstrap(
    figures: &[&dyn Figure],
    rows: usize,
    resamples: usize,
    seed: u64,
    threads: usize,
) -> Vec<Vec<f64>> {
    let mut draws = vec![vec![0.0; figures.len()]; resamples];
    let share = resamples.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (part, draws) in draws.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let mut weights = vec![0u32; rows];
                for (i, draw) in draws.iter_mut().enumerate() {
                    resample(&mut weights, seed, (part * share + i) as u64);
                    for (value, figure) in draw.iter_mut().zip(figures) {
                        *value = figure.at(&weights);
                    }
                }
            });
        }
    });
    (0..figures.len()).map(|f| draws.iter().map(|d| d[f]).collect()).collect()
}

/// How often each row is drawn in resample `number`.
fn resample(weights: &mut [u32], seed: u64, number: u64) {
    weights.fill(0);
    let rows = weights.len() as u128;
    // Vigna's splitmix64, begun at a place of its own for each resample.
    let mut state = mix(seed ^ mix(number.wrapping_add(1)));
    for _ in 0..weights.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        weights[((u128::from(mix(state)) * rows) >> 64) as usize] += 1;
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The middle 95 % of `draws` (linear interpolation between order statistics); `None` if too few of them are
/// numbers to say.
pub fn percentiles(mut draws: Vec<f64>) -> Option<[f64; 2]> {
    let all = draws.len();
    draws.retain(|d| d.is_finite());
    // A figure that is undefined on many resamples has no interval worth printing.
    if draws.is_empty() || draws.len() * 20 < all * 19 {
        return None;
    }
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (draws.len() - 1) as f64;
        let (low, part) = (place.floor() as usize, place.fract());
        let high = (low + 1).min(draws.len() - 1);
        draws[low] + part * (draws[high] - draws[low])
    };
    Some([at(0.025), at(0.975)])
}

/// What `n` rows without a single change still leave open: the half width of [`tango`]'s interval for no
/// changes. A bootstrap of differences is never reported narrower than this where a row is right or wrong.
pub fn resolution(n: usize) -> f64 {
    Z * Z / (n as f64 + Z * Z)
}
