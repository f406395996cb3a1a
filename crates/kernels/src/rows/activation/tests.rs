use super::*;
use crate::rows::math::tests::erf_f64;
use crate::testing::{assert_same, contexts, matrix};

fn exact(f: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let root = (2.0 / std::f64::consts::PI).sqrt();
    match f {
        Activation::Gelu => x / 2.0 * (1.0 + erf_f64(x / 2f64.sqrt())),
        Activation::GeluTanh => x / 2.0 * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::GeluFast => x / 2.0 * (1.0 + (x * 0.7978845608 * (1.0 + 0.044715 * x * x)).tanh()),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
        Activation::Mish => x * x.exp().ln_1p().tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Linear => x,
    }
}

#[test]
fn every_activation_is_close_to_its_formula_and_the_same_everywhere() {
    const MAX_ERROR: f64 = 2.5e-7; // relative to max(|x|, 1): half an x times the error of erf or tanh
    let count = 20_000;
    let x: Vec<f32> = (0..count).map(|i| (i as f32 / count as f32 - 0.5) * 24.0).collect();
    for f in Activation::ALL {
        let x = Matrix::from_vec(1, count, x.clone());
        let mut first: Option<Matrix> = None;
        for cx in contexts() {
            let mut y = x.clone();
            activate(&cx, f, &mut y);
            let expected = first.get_or_insert_with(|| y.clone());
            assert_same(y.as_slice(), expected.as_slice(), &format!("{f:?} on {} {:?}", cx.isa, cx.threads));
        }
        let y = first.unwrap();
        let error = |(&x, &y): (&f32, &f32)| {
            (f64::from(y) - exact(f, f64::from(x))).abs() / f64::from(x.abs().max(1.0))
        };
        let worst = x.as_slice().iter().zip(y.as_slice()).map(error).fold(0.0, f64::max);
        println!("{f:?}: worst error {worst:.3e}");
        assert!(worst <= MAX_ERROR, "{f:?}: {worst:e}");
    }
}

#[test]
fn no_activation_hides_a_nan_or_depends_on_the_length() {
    for f in Activation::ALL {
        for cx in contexts() {
            for len in [1, 15, 16, 17, 33] {
                let x = matrix(1, len, 3);
                let mut all = Matrix::from_vec(1, len + 16, [x.as_slice(), &[1.0; 16]].concat());
                let mut y = x.clone();
                activate(&cx, f, &mut y);
                activate(&cx, f, &mut all);
                assert_same(y.as_slice(), &all.as_slice()[..len], &format!("{f:?} of {len} values"));
            }
            let mut y = Matrix::from_vec(1, 3, vec![f32::NAN, -f32::NAN, f32::INFINITY]);
            activate(&cx, f, &mut y);
            assert!(y.row(0)[0].is_nan() && y.row(0)[1].is_nan(), "{f:?}");
            let bounded = [Activation::Tanh, Activation::Sigmoid].contains(&f);
            assert_eq!(y.row(0)[2], if bounded { 1.0 } else { f32::INFINITY }, "{f:?}");
        }
    }
}

#[test]
fn addition_is_plain_addition() {
    for cx in contexts() {
        let (x, y) = (matrix(41, 500, 1), matrix(41, 500, 2));
        let expected: Vec<f32> = x.as_slice().iter().zip(y.as_slice()).map(|(x, y)| x + y).collect();
        let mut sum = x.clone();
        add(&cx, &mut sum, &y);
        assert_same(sum.as_slice(), &expected, "add");
    }
}
