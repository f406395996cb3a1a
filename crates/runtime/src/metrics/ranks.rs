//! Figures of order: area under the ROC curve, correlations.

use super::Figure;

/// Rows by ascending value, cut into groups of equal values.
#[derive(Clone, Debug)]
struct Ties {
    order: Vec<u32>,
    /// One past the last position of each group.
    ends: Vec<u32>,
}

impl Ties {
    fn new(values: &[f64]) -> Ties {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
        let mut ends: Vec<u32> = Vec::new();
        for i in 1..=order.len() {
            if i == order.len() || values[order[i] as usize] != values[order[i - 1] as usize] {
                ends.push(i as u32);
            }
        }
        Ties { order, ends }
    }

    fn groups(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(a, &b)| &self.order[a as usize..b as usize])
    }
}

/// Area under the ROC curve: the share of pairs of a positive and a negative row in which the positive has
/// the higher score, ties counting half.
#[derive(Clone, Debug)]
pub struct Area {
    ties: Ties,
    positive: Vec<bool>,
}

impl Area {
    /// Over scores and whether the row is positive.
    pub fn new(scores: &[f64], positive: Vec<bool>) -> Area {
        Area { ties: Ties::new(scores), positive }
    }
}

impl Figure for Area {
    fn at(&self, weights: &[u32]) -> f64 {
        let (mut below, mut positives, mut wins) = (0.0f64, 0.0f64, 0.0f64);
        for group in self.ties.groups() {
            let (mut p, mut n) = (0.0, 0.0);
            for &i in group {
                let w = f64::from(weights[i as usize]);
                if self.positive[i as usize] { p += w } else { n += w }
            }
            wins += p * (below + 0.5 * n);
            below += n;
            positives += p;
        }
        wins / (positives * below)
    }
}

/// Pearson's correlation.
#[derive(Clone, Debug)]
pub struct Pearson {
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Pearson {
    /// Between `x` and `y`.
    pub fn new(x: Vec<f64>, y: Vec<f64>) -> Pearson {
        Pearson { x, y }
    }
}

impl Figure for Pearson {
    fn at(&self, weights: &[u32]) -> f64 {
        correlation(&self.x, &self.y, weights)
    }
}

fn correlation(x: &[f64], y: &[f64], weights: &[u32]) -> f64 {
    let rows: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mean = |v: &[f64]| v.iter().zip(weights).map(|(v, &w)| f64::from(w) * v).sum::<f64>() / rows;
    let (mx, my) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for ((x, y), &w) in x.iter().zip(y).zip(weights) {
        let (w, dx, dy) = (f64::from(w), x - mx, y - my);
        xy += w * dx * dy;
        xx += w * dx * dx;
        yy += w * dy * dy;
    }
    if xx > 0.0 && yy > 0.0 { xy / (xx.sqrt() * yy.sqrt()) } else { f64::NAN }
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
#[derive(Clone, Debug)]
pub struct Spearman {
    x: Ties,
    y: Ties,
}

impl Spearman {
    /// Between `x` and `y`.
    pub fn new(x: &[f64], y: &[f64]) -> Spearman {
        Spearman { x: Ties::new(x), y: Ties::new(y) }
    }
}

impl Figure for Spearman {
    fn at(&self, weights: &[u32]) -> f64 {
        correlation(&ranks(&self.x, weights), &ranks(&self.y, weights), weights)
    }
}

/// The mean rank of each row when row `i` stands there `weights[i]` times.
fn ranks(ties: &Ties, weights: &[u32]) -> Vec<f64> {
    let mut ranks = vec![0.0; ties.order.len()];
    let mut before = 0.0;
    for group in ties.groups() {
        let size: f64 = group.iter().map(|&i| f64::from(weights[i as usize])).sum();
        for &i in group {
            ranks[i as usize] = before + 0.5 * (size + 1.0);
        }
        before += size;
    }
    ranks
}
