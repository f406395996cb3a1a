//! exp, tanh, erf and sigmoid as fixed sequences of IEEE operations over 16 lanes.
//!
//! The polynomials were fitted by `tools/fit.py`; the bounds are those of the f32 programs below, measured
//! against f64 on dense grids by the tests. A NaN gives a NaN: every selection keeps the computed value when
//! its comparison is unordered.

use crate::lanes::Simd;

/// `c[0] + x c[1] + x^2 c[2] + ..`, by fma from the highest power down.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, c: &[f32; N]) -> S::F {
    let mut y = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        y = s.fma(y, x, s.splat(c[i]));
    }
    y
}

#[inline(always)]
fn magnitude<S: Simd>(s: S, x: S::F) -> S::F {
    s.of_bits(s.and_i(s.bits(x), s.splat_i(i32::MAX)))
}

/// `x` >= +0.0 with the sign of `of`.
#[inline(always)]
fn with_sign<S: Simd>(s: S, x: S::F, of: S::F) -> S::F {
    s.of_bits(s.or_i(s.bits(x), s.and_i(s.bits(of), s.splat_i(i32::MIN))))
}

/// e^x for x <= 0, within 1.1 ulp; +0.0 below -87.336, where e^x nears the smallest normal number.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^x = 2^n (1 + r + r^2 q(r)).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const Q: [f32; 5] = [0.5, 0.166_665_21, 0.041_666_39, 0.008_368_679, 0.001_394_187_8];
    const LEAST: f32 = -87.336; // ln(2^-126) = -87.3365: from here on 2^n times the rest is normal
    const TO_INTEGER: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
    const LN_2_HIGH: f32 = std::f32::consts::LN_2; // ln 2 rounded to f32
    const LN_2_LOW: f32 = -1.904_654_3e-9; // and what is left of it

    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(TO_INTEGER));
    let n = s.sub(shifted, s.splat(TO_INTEGER));
    let r = s.fma(n, s.splat(-LN_2_HIGH), x);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    let tail = s.fma(polynomial(s, r, &Q), s.mul(r, r), r);
    let near_one = s.add(s.splat(1.0), tail);
    // 2^n by its bits: the exponent field is n + 127. Multiplying, unlike adding to the field, keeps a NaN.
    let exponent = s.add_i(s.bits(shifted), s.splat_i(127 - TO_INTEGER.to_bits() as i32));
    let y = s.mul(near_one, s.of_bits(s.shl_i::<23>(exponent)));
    s.if_less(x, s.splat(LEAST), s.splat(0.0), y)
}

/// tanh x, absolute error <= 1.2e-7: an odd polynomial below 0.625, else (1 - e) / (1 + e) with e = e^(-2|x|).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const T: [f32; 5] = [-0.333_332_84, 0.133_314_85, -0.053_743_005, 0.020_649_103, -0.005_715_499];
    let a = magnitude(s, x);
    let u = s.mul(a, a);
    let small = s.fma(s.mul(a, u), polynomial(s, u, &T), a);
    let e = exp(s, s.mul(a, s.splat(-2.0)));
    let large = s.div(s.sub(s.splat(1.0), e), s.add(s.splat(1.0), e));
    with_sign(s, s.if_less(a, s.splat(0.625), small, large), x)
}

/// erf x, absolute error <= 1.2e-7: x times a polynomial in x^2 below 1, else 1 - e^(-c(x)) up to 4, where
/// it is 1 in f32.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    const E: [f32; 7] = [
        f32::from_bits(0x3f90_6eba), // 1.1283791, a step below 2 / sqrt(pi): the others were fitted to it
        -0.376_124_56,
        0.112_822_026,
        -0.026_805_732,
        0.005_107_267,
        -0.000_735_549_66,
        5.823_197_4e-5,
    ];
    const C: [f32; 8] = [
        -0.000_188_040_23,
        1.129_578_5,
        0.633_219_7,
        0.108_418_84,
        -0.025_208_455,
        0.004_204_642,
        -0.000_441_352_55,
        2.168_810_4e-5,
    ];
    let a = magnitude(s, x);
    let small = s.mul(a, polynomial(s, s.mul(a, a), &E));
    let c = polynomial(s, s.min(s.splat(4.0), a), &C);
    let large = s.sub(s.splat(1.0), exp(s, s.sub(s.splat(0.0), c)));
    with_sign(s, s.if_less(a, s.splat(1.0), small, large), x)
}

/// 1 / (1 + e^-x), absolute error <= 1.2e-7: with e = e^-|x|, 1 / (1 + e) for x >= 0 and e / (1 + e) below.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), magnitude(s, x)));
    let top = s.if_less(x, s.splat(0.0), e, s.splat(1.0));
    s.div(top, s.add(s.splat(1.0), e))
}

#[cfg(test)]
pub(crate) mod tests;
