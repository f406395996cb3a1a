//! Sixteen lanes of f32 and i32: the vocabulary that every kernel is written in, once.
//!
//! A lanes type is a capability token: it can be made only on a machine that has the instructions, so its
//! methods need no further check. Each method is one IEEE (or two's complement) operation per lane with the
//! same result on every implementation; a kernel built from them therefore has the same bits everywhere.

mod scalar;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

use crate::gemm_i8::Panel;

/// Lanes of one vector. Part of the numeric contract: row reductions are defined over 16 partial sums.
pub(crate) const LANES: usize = 16;

/// A computation written once over [`Simd`] and run through [`crate::Isa::run`].
pub(crate) trait Kernel {
    type Output;
    /// Implementations are `#[inline(always)]`, as is all they call: only then is the code compiled for the
    /// instruction set that the token stands for.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// How many vector registers a matrix kernel may count on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registers {
    /// Room for 8 panels of 16 columns: 16 registers of 8 lanes, or 32 of 4.
    Few,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    /// Room for 32 panels: 32 registers of 16 lanes.
    Many,
}

/// Sixteen lanes of f32 (`F`) and of i32 (`I`).
///
/// To implement it for a new instruction set: a token that only `detect` makes, and the
/// methods below with exactly the stated lane results.
pub(crate) trait Simd: Copy {
    type F: Copy;
    type I: Copy;
    const REGISTERS: Registers;

    /// Runs `kernel` in a function of its own that is compiled for these instructions.
    fn enter<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// bfloat16 bits, which are the upper halves of the values.
    fn load_half(self, x: &[u16; LANES]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { x } else { y }`: `y` when either is NaN.
    fn if_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// `if mask { x } else { y }`, where each lane of `mask` is 0 or -1.
    fn choose(self, mask: Self::I, x: Self::F, y: Self::F) -> Self::F;
    fn bits(self, x: Self::F) -> Self::I;
    fn of_bits(self, x: Self::I) -> Self::F;
    /// Nearest integer, ties to even. Only for |x| < 2^31: other values differ between machines.
    fn round(self, x: Self::F) -> Self::I;
    /// To f32, rounded to nearest, ties to even.
    fn float(self, x: Self::I) -> Self::F;

    fn splat_i(self, x: i32) -> Self::I;
    fn load_i(self, x: &[i32; LANES]) -> Self::I;
    fn store_i(self, x: Self::I, to: &mut [i32; LANES]);
    /// Wraps.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wraps.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Low 32 bits.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn min_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Zeros come in at the top.
    fn shr_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// `acc + x0*w0 + x1*w1 + x2*w2 + x3*w3` per lane, where the four bytes of a lane of `x` are u8 and those
    /// of `w` are i8. Exact modulo 2^32: nothing saturates, so every order of additions is the same.
    fn dot4(self, acc: Self::I, x: Self::I, w: Self::I) -> Self::I;
    /// Whether [`Simd::dots`] is there, which it must not be asked for otherwise.
    const DOTS: bool = false;
    /// [`Simd::dot4`] from 0 over all lines of a panel, for `R` rows: an own way of this instruction set.
    #[inline(always)]
    fn dots<const R: usize>(self, _x: &[&[i32]; R], _panel: &Panel) -> [[i32; LANES]; R] {
        unreachable!("DOTS is false")
    }
    /// Byte 0, 1, 2 and 3 (in memory order) of each lane as i8, converted to f32 (exact).
    fn widen4(self, w: Self::I) -> [Self::F; 4];

    /// Eight lanes from each place.
    #[inline(always)]
    fn pair(self, low: &[f32; 8], high: &[f32; 8]) -> Self::F {
        let mut all = [0.0; LANES];
        all[..8].copy_from_slice(low);
        all[8..].copy_from_slice(high);
        self.load(&all)
    }

    /// The same with lane l of a half being its element `turn[l]`, all below 8.
    #[inline(always)]
    fn pair_turned(self, low: &[f32; 8], high: &[f32; 8], turns: [&[u8; 8]; 2]) -> Self::F {
        let mut all = [0.0; LANES];
        for l in 0..8 {
            all[l] = low[usize::from(turns[0][l])];
            all[8 + l] = high[usize::from(turns[1][l])];
        }
        self.load(&all)
    }

    /// Element j of half h of row i becomes element i of half h of row j.
    #[inline(always)]
    fn transpose_halves(self, rows: [Self::F; 8]) -> [Self::F; 8] {
        let (mut from, mut to) = ([[0.0; LANES]; 8], rows);
        for i in 0..8 {
            self.store(rows[i], &mut from[i]);
        }
        for j in 0..8 {
            let mut row = [0.0; LANES];
            for i in 0..8 {
                row[i] = from[i][j];
                row[8 + i] = from[i][8 + j];
            }
            to[j] = self.load(&row);
        }
        to
    }

    /// Words that may be added by [`Simd::dot4_short`] before [`Simd::close_short`].
    const SHORT: usize = 32;
    /// What [`Simd::nibbles`] must be multiplied by to be the codes.
    const NIBBLE: f32 = 1.0;

    /// The signed 4-bit codes in the low halves and in the high halves of the bytes, as i8 times `1 / NIBBLE`.
    #[inline(always)]
    fn nibbles(self, w: Self::I) -> [Self::I; 2] {
        let mut words = [0; LANES];
        self.store_i(w, &mut words);
        let (mut low, mut high) = (words, words);
        for l in 0..LANES {
            let bytes = words[l].to_ne_bytes();
            low[l] = i32::from_ne_bytes(bytes.map(|b| ((b << 4) as i8 >> 4) as u8));
            high[l] = i32::from_ne_bytes(bytes.map(|b| (b as i8 >> 4) as u8));
        }
        [self.load_i(&low), self.load_i(&high)]
    }
    /// [`Simd::dot4`] for weights from [`Simd::nibbles`], added in whatever form [`Simd::close_short`] makes a sum
    /// of: at most [`Simd::SHORT`] times from 0, exact.
    #[inline(always)]
    fn dot4_short(self, acc: Self::I, x: Self::I, w: Self::I) -> Self::I {
        self.dot4(acc, x, w)
    }
    /// The sum of products of u8 and 4-bit codes that [`Simd::dot4_short`] added.
    #[inline(always)]
    fn close_short(self, acc: Self::I) -> Self::I {
        acc
    }

    /// The first `n` <= 16 lanes of `new`, the others of `old`.
    #[inline(always)]
    fn first(self, n: usize, new: Self::F, old: Self::F) -> Self::F {
        let mut mask = [0; LANES];
        for (l, m) in mask.iter_mut().enumerate() {
            *m = if l < n { -1 } else { 0 };
        }
        self.choose(self.load_i(&mask), new, old)
    }

    /// At most 16 values, the missing ones +0.0.
    #[inline(always)]
    fn load_any(self, x: &[f32]) -> Self::F {
        if let Ok(all) = x.try_into() {
            return self.load(all);
        }
        let mut all = [0.0; LANES];
        for (to, from) in all.iter_mut().zip(x) {
            *to = *from;
        }
        self.load(&all)
    }

    /// At most 16 values, the missing ones 0.
    #[inline(always)]
    fn load_any_i(self, x: &[i32]) -> Self::I {
        let mut all = [0; LANES];
        for (to, from) in all.iter_mut().zip(x) {
            *to = *from;
        }
        self.load_i(&all)
    }

    /// The first `to.len()` <= 16 lanes.
    #[inline(always)]
    fn store_any(self, x: Self::F, to: &mut [f32]) {
        if let Ok(all) = to.try_into() {
            return self.store(x, all);
        }
        let mut all = [0.0; LANES];
        self.store(x, &mut all);
        for (to, from) in to.iter_mut().zip(&all) {
            *to = *from;
        }
    }

    /// The sum of the lanes by the fixed tree: lane i += lane i+8, then +4, +2, +1.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut a = [0.0; LANES];
        self.store(x, &mut a);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }

    /// The largest lane, by the same tree; `max` as above.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        let mut a = [0.0; LANES];
        self.store(x, &mut a);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] = if a[i] > a[i + half] { a[i] } else { a[i + half] };
            }
        }
        a[0]
    }

    /// The largest integer lane.
    #[inline(always)]
    fn largest_i(self, x: Self::I) -> i32 {
        let mut a = [0; LANES];
        self.store_i(x, &mut a);
        let mut most = a[0];
        for &v in &a {
            most = if v > most { v } else { most };
        }
        most
    }

    /// Lanes in 0..=255 as bytes.
    #[inline(always)]
    fn store_bytes(self, x: Self::I, to: &mut [u8; LANES]) {
        let mut a = [0; LANES];
        self.store_i(x, &mut a);
        for (to, from) in to.iter_mut().zip(&a) {
            *to = *from as u8;
        }
    }
}

#[cfg(test)]
mod tests;
