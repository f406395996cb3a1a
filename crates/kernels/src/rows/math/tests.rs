//! Accuracy against f64 on dense grids, on every instruction set, and equality between them.

use super::*;
use crate::Isa;
use crate::lanes::{Kernel, LANES};
use crate::testing::assert_same;

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    Tanh,
    Erf,
    Sigmoid,
}

struct Map<'a>(Function, &'a mut [f32]);

impl Kernel for Map<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (chunks, rest) = self.1.as_chunks_mut::<LANES>();
        assert!(rest.is_empty());
        for chunk in chunks {
            let x = s.load(chunk);
            let y = match self.0 {
                Function::Exp => exp(s, x),
                Function::Tanh => tanh(s, x),
                Function::Erf => erf(s, x),
                Function::Sigmoid => sigmoid(s, x),
            };
            s.store(y, chunk);
        }
    }
}

/// The values on the best instruction set, after checking that all have the same.
fn map(f: Function, x: &[f32]) -> Vec<f32> {
    let run = |isa: Isa| {
        let mut y = x.to_vec();
        isa.run(Map(f, &mut y));
        y
    };
    let best = run(Isa::best());
    for isa in Isa::available() {
        // Software fma is slow: plain lanes see every 16th run of 16.
        let step = if isa == Isa::Scalar { 16 * LANES } else { LANES };
        let some = |y: &[f32]| y.chunks(LANES).step_by(step / LANES).flatten().copied().collect::<Vec<_>>();
        let mut y = some(x);
        isa.run(Map(f, &mut y));
        assert_same(&y, &some(&best), &format!("{f:?} on {isa}"));
    }
    best
}

fn grid(lo: f32, hi: f32, count: usize) -> Vec<f32> {
    let step = (f64::from(hi) - f64::from(lo)) / (count - 1) as f64;
    let mut x: Vec<f32> = (0..count).map(|i| (f64::from(lo) + i as f64 * step) as f32).collect();
    x.resize(count.next_multiple_of(LANES), 0.0);
    x
}

/// erf by its Taylor series in f64 up to 3, and 1 - erfc by a continued fraction beyond.
pub(crate) fn erf_f64(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..120 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(a, |f, k| a + k as f64 / 2.0 / f);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    y.copysign(x)
}

fn ulps(found: f32, exact: f64) -> f64 {
    let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
    (f64::from(found) - exact).abs() / ulp
}

#[test]
fn exp_is_within_its_bound_and_flushes_to_zero() {
    const MAX_ULPS: f64 = 1.1;
    let mut x = grid(-87.336, 0.0, 4_000_000);
    x.extend(grid(-1.0, 0.0, 2_000_000));
    let y = map(Function::Exp, &x);
    let worst = x.iter().zip(&y).map(|(&x, &y)| ulps(y, f64::from(x).exp())).fold(0.0, f64::max);
    println!("exp: worst error {worst:.3} ulp");
    assert!(worst <= MAX_ULPS, "{worst}");
    let mut edge = [0.0; LANES];
    edge[..8].copy_from_slice(&[-0.0, 0.0, -87.337, -1e30, f32::NEG_INFINITY, f32::NAN, -f32::NAN, -1e-45]);
    let y = map(Function::Exp, &edge);
    assert_same(&y[..8], &[1.0, 1.0, 0.0, 0.0, 0.0, f32::NAN, f32::NAN, 1.0], "edges of exp");
}

#[test]
fn tanh_erf_and_sigmoid_are_within_their_bounds() {
    type Exact = fn(f64) -> f64;
    let cases: [(Function, Exact, f32); 3] = [
        (Function::Tanh, f64::tanh, 10.0),
        (Function::Erf, erf_f64, 5.0),
        (Function::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 20.0),
    ];
    const MAX_ERROR: f64 = 1.2e-7;
    for (f, exact, range) in cases {
        let mut x = grid(-range, range, 2_000_000);
        x.extend(grid(-1.1, 1.1, 1_000_000));
        let y = map(f, &x);
        let worst =
            x.iter().zip(&y).map(|(&x, &y)| (f64::from(y) - exact(f64::from(x))).abs()).fold(0.0, f64::max);
        println!("{f:?}: worst absolute error {worst:.3e}");
        assert!(worst <= MAX_ERROR, "{f:?}: {worst:e}");
        let mut edge = [0.0; LANES];
        edge[..5].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38, -3e38]);
        let y = map(f, &edge);
        let low = if matches!(f, Function::Sigmoid) { 0.0 } else { -1.0 };
        assert_same(&y[..5], &[1.0, low, f32::NAN, 1.0, low], &format!("edges of {f:?}"));
    }
    for f in [Function::Tanh, Function::Erf] {
        let x: Vec<f32> =
            (0..160).map(|i| 10.0f32.powi(-(i % 38)) * if i > 80 { -0.3 } else { 0.3 }).collect();
        for (x, y) in x.iter().zip(map(f, &x)) {
            let x64 = f64::from(*x);
            let exact = if matches!(f, Function::Tanh) { x64.tanh() } else { erf_f64(x64) };
            assert!(
                (f64::from(y) - exact).abs() <= exact.abs() * 3e-7,
                "{f:?} keeps small values: {x:e} {y:e}"
            );
        }
    }
}
