//! QuantEase (Behdin et al. 2023, arXiv:2309.01885): cyclic coordinate descent on what rounding does to the outputs.
//!
//! AdaRound (Nagel et al. 2020, arXiv:2004.10568) minimises `(ŵ - w)ᵀ H (ŵ - w)` over rounding up or down by a
//! relaxation and gradients. Descent minimises the same over all codes directly: one code after the other
//! goes to the value that is best while all others stay. It never gets worse than where it starts, needs no rates or
//! schedules, and a row costs as much as its codes change.

use super::by_rows;
use super::hessian::Gram;
use crate::weights::Coded;
use qberta_store::manifest::Weight;

/// Passes over a row at most; it ends when one changes nothing.
const PASSES: usize = 24;

/// Moves the codes of `coded`, which stand for `values [rows, cols]` with its scales, to where the outputs on the data
/// change less.
pub(super) fn descend(
    values: &[f32],
    [rows, cols]: [usize; 2],
    weight: Weight,
    gram: &Gram,
    mut coded: Coded,
    threads: usize,
) -> Coded {
    let most = codes_most(weight);
    by_rows(&mut coded, values, [rows, cols], 1, threads, |values, codes, scale| {
        row(values, scale, gram, codes, most);
    });
    coded
}

/// The largest code.
fn codes_most(weight: Weight) -> f64 {
    if matches!(weight, Weight::Int4(_)) { 7.0 } else { 127.0 }
}

fn row(values: &[f32], scale: &[f32], gram: &Gram, codes: &mut [i8], most: f64) {
    let n = gram.n;
    let group = n / scale.len();
    let step = |j: usize| f64::from(scale[j / group]);
    // H e, kept up to date with every change of e = ŵ - w.
    let mut pull = vec![0.0; n];
    for j in 0..n {
        let error = f64::from(codes[j]) * step(j) - f64::from(values[j]);
        add(&mut pull, error, gram.line(j));
    }
    for _ in 0..PASSES {
        let mut changed = false;
        for j in 0..n {
            let own = gram.line(j)[j];
            let best = (f64::from(codes[j]) - pull[j] / (own * step(j))).round_ties_even().clamp(-most, most);
            let change = (best - f64::from(codes[j])) * step(j);
            // Of equals the one that is there, so that descent ends.
            if change != 0.0 && change * (2.0 * pull[j] + change * own) < 0.0 {
                codes[j] = best as i8;
                add(&mut pull, change, gram.line(j));
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
}

/// `a += factor * b`.
fn add(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

#[cfg(test)]
mod tests {
    use super::super::gptq::tests::{inputs, lost, number};
    use super::super::hessian::Hessian;
    use super::*;
    use crate::weights::nearest;
    use qberta_kernels::{Context, Isa};
    use qberta_store::manifest::Group;

    #[test]
    fn outputs_lose_less_than_where_descent_began_and_no_code_can_be_bettered() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        let (rows, n) = (19, 64);
        let values: Vec<f32> = (0..rows * n).map(|i| number(i + 5)).collect();
        let x = inputs(400, n);
        let mut h = Hessian::new(n);
        h.see(&x, &cx);
        let gram = h.clone().gram(&cx).unwrap();
        for weight in [Weight::Int4(Group::G32), Weight::Int8Channel] {
            let plain = nearest(&values, rows, n, weight).unwrap();
            let before = lost(&x, &values, &plain, rows);
            let one =
                descend(&values, [rows, n], weight, &gram, nearest(&values, rows, n, weight).unwrap(), 1);
            let after = lost(&x, &values, &one, rows);
            assert!(after < 0.5 * before, "{weight:?}: {after} of {before}");
            let two = descend(&values, [rows, n], weight, &gram, plain, 2);
            assert_eq!(one.codes, two.codes, "threads change nothing");
            let damped = |codes: &[i8]| -> f64 {
                let group = n * rows / one.scale.len();
                let e: Vec<f64> = (0..rows * n)
                    .map(|i| f64::from(f32::from(codes[i]) * one.scale[i / group]) - f64::from(values[i]))
                    .collect();
                e.chunks(n)
                    .map(|e| {
                        (0..n)
                            .map(|j| e[j] * (0..n).map(|k| e[k] * gram.line(j)[k]).sum::<f64>())
                            .sum::<f64>()
                    })
                    .sum()
            };
            let end = damped(&one.codes);
            for i in (0..rows * n).step_by(7) {
                for by in [-1, 1] {
                    let mut codes = one.codes.clone();
                    let moved = f64::from(codes[i]) + f64::from(by);
                    if moved.abs() > codes_most(weight) {
                        continue;
                    }
                    codes[i] = moved as i8;
                    assert!(damped(&codes) >= end * (1.0 - 1e-9), "{weight:?}: code {i} by {by}");
                }
            }
        }
    }
}
