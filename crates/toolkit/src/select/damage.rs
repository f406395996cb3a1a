//! How much outputs moved, as one number an example.
//!
//! Where outputs are read as probabilities: the Kullback-Leibler divergence to second order,
//! `(sum p dz^2 - (sum p dz)^2) / 2` with `p` of the float model. It is the Fisher information of the outputs
//! applied to their error, needs no gradient and no logarithm of tiny numbers, and ignores what a softmax
//! ignores. Elsewhere `dz^2 / 2`.

use qberta_kernels::Matrix;
use qberta_model::{Architecture, Reading, Task};
use std::ops::Range;

/// The damage to one example, whose outputs are the given rows. A mean over its decisions.
pub(super) fn damage(arch: &Architecture, float: &Matrix, other: &Matrix, rows: Range<usize>) -> f64 {
    let column = |m: &Matrix, c: usize| rows.clone().map(|r| f64::from(m.row(r)[c])).collect::<Vec<_>>();
    let row = |m: &Matrix, r: usize| m.row(r).iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let by_row = |f: fn(&[f64], &[f64]) -> f64| {
        let n = rows.len().max(1) as f64;
        rows.clone().map(|r| f(&row(float, r), &row(other, r))).sum::<f64>() / n
    };
    match (arch.head.task, arch.reading) {
        (Task::MultipleChoice, _) => softmax(&column(float, 0), &column(other, 0)),
        (Task::QuestionAnswering, _) => {
            (0..float.cols()).map(|c| softmax(&column(float, c), &column(other, c))).sum::<f64>()
                / float.cols().max(1) as f64
        }
        (Task::Features, _) | (Task::SequenceClassification, Reading::Regression) => by_row(plain),
        (Task::SequenceClassification, Reading::Independent) => by_row(sigmoid),
        (Task::SequenceClassification | Task::TokenClassification | Task::FillMask, _) => by_row(softmax),
    }
}

fn softmax(z: &[f64], other: &[f64]) -> f64 {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = z.iter().map(|v| (v - most).exp()).sum();
    let (mut mean, mut square) = (0.0, 0.0);
    for (a, b) in z.iter().zip(other) {
        let (p, d) = ((a - most).exp() / total, b - a);
        mean += p * d;
        square += p * d * d;
    }
    0.5 * (square - mean * mean).max(0.0)
}

fn sigmoid(z: &[f64], other: &[f64]) -> f64 {
    let one = |(a, b): (&f64, &f64)| {
        let p = 1.0 / (1.0 + (-a).exp());
        0.5 * p * (1.0 - p) * (b - a).powi(2)
    };
    z.iter().zip(other).map(one).sum()
}

fn plain(z: &[f64], other: &[f64]) -> f64 {
    0.5 * z.iter().zip(other).map(|(a, b)| (b - a).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_errors_give_the_divergence_of_the_probabilities() {
        let z = [1.0, -0.5, 0.25];
        let d = [1e-3, -2e-3, 5e-4];
        let other: Vec<f64> = z.iter().zip(d).map(|(z, d)| z + d).collect();
        let p = |z: &[f64]| {
            let total: f64 = z.iter().map(|v| v.exp()).sum();
            z.iter().map(|v| v.exp() / total).collect::<Vec<_>>()
        };
        let kl: f64 = p(&z).iter().zip(p(&other)).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((softmax(&z, &other) / kl - 1.0).abs() < 1e-2, "{} {kl}", softmax(&z, &other));
        // What moves every logit alike changes no probability.
        assert!(softmax(&z, &z.map(|v| v + 3.0)) < 1e-12);
        assert_eq!(plain(&[1.0], &[3.0]), 2.0);
        assert!((sigmoid(&[0.0], &[0.1]) - 0.5 * 0.25 * 0.01).abs() < 1e-12);
    }
}
