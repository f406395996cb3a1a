//! Lanes as arrays: runs on any machine, and is the meaning that the others are tested against.

use super::{Kernel, LANES, Registers, Simd};

/// Needs nothing, so it needs no detection.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip<T: Copy, U: Copy + Default>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    let mut y = [U::default(); LANES];
    for l in 0..LANES {
        y[l] = f(a[l], b[l]);
    }
    y
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const REGISTERS: Registers = Registers::Few;

    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        let mut y = [0.0; LANES];
        for l in 0..LANES {
            y[l] = f32::from_bits(u32::from(x[l]) << 16);
        }
        y
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut y = c;
        for l in 0..LANES {
            y[l] = a[l].mul_add(b[l], c[l]);
        }
        y
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn if_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let mut z = y;
        for l in 0..LANES {
            z[l] = if a[l] < b[l] { x[l] } else { y[l] };
        }
        z
    }
    #[inline(always)]
    fn choose(self, mask: Self::I, x: Self::F, y: Self::F) -> Self::F {
        let mut z = y;
        for l in 0..LANES {
            z[l] = if mask[l] != 0 { x[l] } else { y[l] };
        }
        z
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        x.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn of_bits(self, x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; LANES]) -> Self::I {
        *x
    }
    #[inline(always)]
    fn store_i(self, x: Self::I, to: &mut [i32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn min_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::min)
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I {
        a.map(|a| a.wrapping_shl(N))
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: Self::I) -> Self::I {
        a.map(|a| (a as u32).wrapping_shr(N) as i32)
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I, x: Self::I, w: Self::I) -> Self::I {
        let mut y = acc;
        for l in 0..LANES {
            let (x, w) = (x[l].to_ne_bytes(), w[l].to_ne_bytes());
            for b in 0..4 {
                y[l] = y[l].wrapping_add(i32::from(x[b]) * i32::from(w[b] as i8));
            }
        }
        y
    }
    #[inline(always)]
    fn widen4(self, w: Self::I) -> [Self::F; 4] {
        let mut y = [[0.0; LANES]; 4];
        for l in 0..LANES {
            let w = w[l].to_ne_bytes();
            for b in 0..4 {
                y[b][l] = f32::from(w[b] as i8);
            }
        }
        y
    }
}
