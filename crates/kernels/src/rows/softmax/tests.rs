use super::*;
use crate::Isa;
use crate::testing::{assert_same, values};

struct Probabilities<'a>(&'a mut [f32]);

impl Kernel for Probabilities<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        exp_sum(s, self.0)
    }
}

#[test]
fn softmax_is_the_same_everywhere_and_close_to_its_formula() {
    for len in (0..70).chain([129, 1000]) {
        let row = values(len, len as u64 + 1);
        let mut expected = row.clone();
        softmax_row(&mut expected);
        for isa in Isa::available() {
            let mut found = row.clone();
            let rate = 1.0 / isa.run(Probabilities(&mut found));
            found.iter_mut().for_each(|e| *e *= rate);
            assert_same(&found, &expected, &format!("{len} values on {isa}"));
        }
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
        for (x, p) in row.iter().zip(&expected) {
            let exact = f64::from(x - max).exp() / sum;
            assert!((f64::from(*p) - exact).abs() <= exact * 1e-6 + 1e-37, "{x} {p} {exact}");
        }
    }
}

#[test]
fn a_bad_value_makes_the_row_nan_and_minus_infinity_is_a_zero() {
    for at in 0..20 {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = values(20, 3);
            row[at] = bad;
            softmax_row(&mut row);
            assert!(row.iter().all(|p| p.is_nan()), "{bad} at {at}");
        }
        let mut row = values(20, 3);
        row[at] = f32::NEG_INFINITY;
        softmax_row(&mut row);
        assert_eq!(row[at], 0.0);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
