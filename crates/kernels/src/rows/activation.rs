//! Activation functions and addition, element by element.

use crate::lanes::{Kernel, LANES, Simd};
use crate::rows::math::{erf, exp, sigmoid, tanh};
use crate::{Context, Matrix};

/// A function of one number, applied to each element. The names are those of model configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `h = x/2; fma(h, erf(x / sqrt 2), h)`.
    Gelu,
    /// `h = x/2; fma(h, tanh(sqrt(2/pi) (x + 0.044715 x^3)), h)`: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `h = x/2; fma(h, tanh(x 0.7978845608 (1 + 0.044715 x^2)), h)`: `gelu_fast`.
    GeluFast,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
    /// `x tanh(ln(1 + e^x))`.
    Mish,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x`.
    Linear,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Activation; 10] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::GeluFast,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Mish,
        Activation::Sigmoid,
        Activation::Linear,
    ];
}

const LEAST_VALUES: usize = 8192; // for a thread of its own

/// Replaces each element of `x [rows, cols]` by `f` of it.
pub fn activate(cx: &Context, f: Activation, x: &mut Matrix) {
    cx.threads
        .for_each_rows(x.as_mut_slice(), 1, LEAST_VALUES, |_, values| cx.isa.run(Activate { f, values }));
}

/// `x += y`, both `[rows, cols]`. Panics on unequal shapes.
pub fn add(cx: &Context, x: &mut Matrix, y: &Matrix) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of add");
    cx.threads.for_each_rows(x.as_mut_slice(), 1, LEAST_VALUES, |first, x| {
        let y = &y.as_slice()[first..first + x.len()];
        cx.isa.run(Add { x, y });
    });
}

/// One activation over lanes.
trait Curve {
    fn y<S: Simd>(s: S, x: S::F) -> S::F;
}

/// `x/2 (1 + gate)` with one rounding after the halving.
#[inline(always)]
fn half_gated<S: Simd>(s: S, x: S::F, gate: S::F) -> S::F {
    let half = s.mul(s.splat(0.5), x);
    s.fma(half, gate, half)
}

macro_rules! curves {
    ($($name:ident: |$s:ident, $x:ident| $y:expr;)*) => {$(
        struct $name;
        impl Curve for $name {
            #[inline(always)]
            fn y<S: Simd>($s: S, $x: S::F) -> S::F {
                $y
            }
        }
    )*};
}

curves! {
    Gelu: |s, x| half_gated(s, x, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))));
    GeluTanh: |s, x| {
        let cube = s.mul(s.mul(x, x), x);
        let inner = s.fma(s.splat(0.044_715), cube, x);
        half_gated(s, x, tanh(s, s.mul(s.splat(0.797_884_6), inner))) // sqrt(2 / pi)
    };
    GeluFast: |s, x| {
        let line = s.mul(x, s.splat(0.797_884_6));
        let inner = s.fma(s.splat(0.044_715), s.mul(x, x), s.splat(1.0));
        half_gated(s, x, tanh(s, s.mul(line, inner)))
    };
    QuickGelu: |s, x| s.mul(x, sigmoid(s, s.mul(s.splat(1.702), x)));
    // max(0, x) and not max(x, 0): a NaN in x is the second operand and stays.
    Relu: |s, x| s.max(s.splat(0.0), x);
    Silu: |s, x| s.mul(x, sigmoid(s, x));
    Tanh: |s, x| tanh(s, x);
    Mish: |s, x| mish(s, x);
    Sigmoid: |s, x| sigmoid(s, x);
    Linear: |_s, x| x;
}

/// tanh(ln(1 + e^x)) = m / (m + 2) with m = e^x (e^x + 2); for x >= 0 both are multiplied by e^-2x.
#[inline(always)]
fn mish<S: Simd>(s: S, x: S::F) -> S::F {
    let (one, two, zero) = (s.splat(1.0), s.splat(2.0), s.splat(0.0));
    let e = exp(s, s.min(x, s.sub(zero, x))); // e^-|x|; a NaN x is the second operand, negated
    let square = s.mul(e, e);
    let below = s.mul(e, s.add(e, two));
    let above = s.fma(two, e, one);
    let top = s.if_less(x, zero, below, above);
    let bottom = s.add(top, s.if_less(x, zero, two, s.mul(two, square)));
    s.mul(x, s.div(top, bottom))
}

pub(crate) struct Activate<'a> {
    pub f: Activation,
    pub values: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.f {
            Activation::Gelu => map::<S, Gelu>(s, self.values),
            Activation::GeluTanh => map::<S, GeluTanh>(s, self.values),
            Activation::GeluFast => map::<S, GeluFast>(s, self.values),
            Activation::QuickGelu => map::<S, QuickGelu>(s, self.values),
            Activation::Relu => map::<S, Relu>(s, self.values),
            Activation::Silu => map::<S, Silu>(s, self.values),
            Activation::Tanh => map::<S, Tanh>(s, self.values),
            Activation::Mish => map::<S, Mish>(s, self.values),
            Activation::Sigmoid => map::<S, Sigmoid>(s, self.values),
            Activation::Linear => map::<S, Linear>(s, self.values),
        }
    }
}

#[inline(always)]
fn map<S: Simd, C: Curve>(s: S, values: &mut [f32]) {
    let (full, rest) = values.as_chunks_mut::<LANES>();
    for chunk in full {
        s.store(C::y(s, s.load(chunk)), chunk);
    }
    let y = C::y(s, s.load_any(rest));
    s.store_any(y, rest);
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        add_row(s, self.x, self.y);
    }
}

/// `x += y` over one run of equal length.
#[inline(always)]
pub(crate) fn add_row<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks_mut::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter_mut().zip(y) {
        s.store(s.add(s.load(x), s.load(y)), x);
    }
    let sum = s.add(s.load_any(x_rest), s.load_any(y_rest));
    s.store_any(sum, x_rest);
}

#[cfg(test)]
mod tests;
