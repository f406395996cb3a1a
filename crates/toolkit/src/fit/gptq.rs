//! GPTQ (Frantar et al. 2022, arXiv:2210.17323): the inputs of a linear are rounded one after the other, and what
//! rounding one does to the outputs on the data is made up for by those still to come.

use super::by_rows;
use super::hessian::Factor;
use crate::weights::{Coded, code, nearest, step};
use qberta_store::manifest::{Group, Weight};

/// Rows of a weight that go through the factor together.
const BLOCK: usize = 8;

/// Codes and scales of `values [rows, cols]` for inputs with this factor; `None` for a float weight.
///
/// The scales of int8 weights are those of rounding to nearest. A 4-bit group takes its scale when its first input
/// is rounded, from what the weights have become by then, or from the start if the order is not that of the columns.
pub(super) fn gptq(
    values: &[f32],
    [rows, cols]: [usize; 2],
    weight: Weight,
    factor: &Factor,
    threads: usize,
) -> Option<Coded> {
    let mut coded = nearest(values, rows, cols, weight)?;
    by_rows(&mut coded, values, [rows, cols], BLOCK, threads, |values, codes, scale| {
        block(values, weight, factor, codes, scale);
    });
    Some(coded)
}

/// A few rows: `codes` and `scale` hold what rounding to nearest gives, and then the result.
fn block(values: &[f32], weight: Weight, factor: &Factor, codes: &mut [i8], scale: &mut [f32]) {
    let n = factor.n;
    let (rows, groups) = (values.len() / n, scale.len() * n / values.len());
    let columns = factor.order.is_sorted();
    let mut rest: Vec<f64> =
        values.chunks_exact(n).flat_map(|row| factor.order.iter().map(|&c| f64::from(row[c]))).collect();
    for place in 0..n {
        let column = factor.order[place];
        let line = &factor.upper[place * n..(place + 1) * n];
        for r in 0..rows {
            let row = &mut rest[r * n..(r + 1) * n];
            let scale = match weight {
                Weight::Int4(group) => {
                    let scale = &mut scale[r * groups + column / group.inputs()];
                    if columns && place % group.inputs() == 0 {
                        *scale = fresh(&row[place..], place, group, factor);
                    }
                    *scale
                }
                _ => scale[r],
            };
            let w = row[place] as f32;
            let found = match weight {
                Weight::Int4(_) => code(w, scale),
                _ => (w * (1.0 / scale)).round_ties_even().clamp(-127.0, 127.0) as i8,
            };
            codes[r * n + column] = found;
            let error = (row[place] - f64::from(f32::from(found) * scale)) / line[place];
            row[place + 1..].iter_mut().zip(&line[place + 1..]).for_each(|(w, u)| *w -= error * u);
        }
    }
}

/// The scale of the group that starts at `place`, where `rest` begins.
fn fresh(rest: &[f64], place: usize, group: Group, factor: &Factor) -> f32 {
    let now: Vec<f32> = rest[..group.inputs()].iter().map(|w| *w as f32).collect();
    step(&now, |k| factor.importance[place + k])
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::hessian::Hessian;
    use super::*;
    use qberta_kernels::{Context, Isa, Matrix};

    pub fn number(i: usize) -> f32 {
        ((i * 7919 % 10_007) as f32 * 0.731).sin()
    }

    /// Inputs whose channels lean on each other, as those of a network do.
    pub fn inputs(rows: usize, n: usize) -> Matrix {
        let mut x = Matrix::zeros(rows, n);
        for r in 0..rows {
            let shared = [number(r * 3), number(r * 5 + 1), number(r * 11 + 2)];
            for (c, y) in x.row_mut(r).iter_mut().enumerate() {
                *y = shared[c % 3] + 0.3 * number(r * n + c);
            }
        }
        x
    }

    /// The squared error of the outputs on `x`.
    pub fn lost(x: &Matrix, values: &[f32], coded: &Coded, rows: usize) -> f64 {
        let n = x.cols();
        let group = n * rows / coded.scale.len();
        let error: Vec<f64> = (0..rows * n)
            .map(|i| f64::from(f32::from(coded.codes[i]) * coded.scale[i / group]) - f64::from(values[i]))
            .collect();
        let outputs = (0..x.rows()).flat_map(|t| error.chunks_exact(n).map(move |e| (t, e)));
        outputs
            .map(|(t, e)| e.iter().zip(x.row(t)).map(|(e, x)| e * f64::from(*x)).sum::<f64>().powi(2))
            .sum()
    }

    #[test]
    fn outputs_on_the_data_lose_less_than_by_rounding_to_nearest() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        let (rows, n) = (19, 64);
        let values: Vec<f32> = (0..rows * n).map(|i| number(i + 5)).collect();
        let x = inputs(400, n);
        let mut h = Hessian::new(n);
        h.see(&x, &cx);
        for sorted in [false, true] {
            let factor = h.clone().factor(sorted, &cx).unwrap();
            for weight in [Weight::Int4(Group::G32), Weight::Int4(Group::G64), Weight::Int8Channel] {
                let plain = lost(&x, &values, &nearest(&values, rows, n, weight).unwrap(), rows);
                let one = gptq(&values, [rows, n], weight, &factor, 1).unwrap();
                let fitted = lost(&x, &values, &one, rows);
                assert!(fitted < 0.5 * plain, "{weight:?} {sorted}: {fitted} of {plain}");
                let two = gptq(&values, [rows, n], weight, &factor, 2).unwrap();
                assert_eq!((one.codes, one.scale), (two.codes, two.scale), "threads change nothing");
            }
            assert!(gptq(&values, [rows, n], Weight::Float, &factor, 1).is_none());
        }
    }

    #[test]
    fn weights_on_a_grid_stay_there() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        let codes: Vec<i8> = (0..128).map(|i| (i * 37 % 15) as i8 - 7).collect();
        let values: Vec<f32> = codes.iter().map(|&c| f32::from(c) * 0.25).collect();
        let mut h = Hessian::new(64);
        h.see(&inputs(200, 64), &cx);
        for sorted in [false, true] {
            let factor = h.clone().factor(sorted, &cx).unwrap();
            let found = gptq(&values, [2, 64], Weight::Int4(Group::G32), &factor, 1).unwrap();
            assert_eq!(found.codes, codes);
            let found = gptq(&values, [2, 64], Weight::Int8Channel, &factor, 1).unwrap();
            assert_eq!(found.codes, codes);
        }
    }
}
