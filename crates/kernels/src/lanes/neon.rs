//! Lanes as four 128-bit registers. Three kinds of machine differ in the byte dot product alone.

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected as has;

use super::{Kernel, LANES, Registers, Simd};

/// Bytes are widened to 16 bits: every 64-bit ARM.
pub(crate) const WIDENED: u8 = 0;
/// `sdot`, which multiplies signed bytes: codes are shifted by 128 and the shift is taken back.
pub(crate) const SIGNED: u8 = 1;
/// `usdot`, which multiplies unsigned by signed bytes.
pub(crate) const MIXED: u8 = 2;

/// Proof that this machine has NEON and the dot product `DOT`: only [`Neon::detect`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: u8> {
    _made_by_detect: (),
}

impl<const DOT: u8> Neon<DOT> {
    #[inline]
    pub fn detect() -> Option<Neon<DOT>> {
        let dot = match DOT {
            MIXED => has!("dotprod") && has!("i8mm"),
            SIGNED => has!("dotprod"),
            _ => true,
        };
        (has!("neon") && dot).then_some(Neon { _made_by_detect: () })
    }
}

/// Runs `kernel` on the best that this machine has; `None` without NEON.
#[inline]
pub(crate) fn enter_best<K: Kernel>(kernel: K) -> Option<K::Output> {
    if let Some(token) = Neon::<MIXED>::detect() {
        return Some(token.enter(kernel));
    }
    if let Some(token) = Neon::<SIGNED>::detect() {
        return Some(token.enter(kernel));
    }
    Neon::<WIDENED>::detect().map(|token| token.enter(kernel))
}

/// A register operation for each of the four quarters `$q`, allowed because `$self` is a token.
macro_rules! four {
    ($self:ident, $q:ident => $e:expr) => {{
        let _token: Neon<DOT> = $self;
        // SAFETY: a token exists, so `detect` found the features of these register-only instructions.
        #[allow(unused_unsafe)] // NEON is part of most targets, where such intrinsics are safe
        unsafe {
            [
                {
                    const $q: usize = 0;
                    $e
                },
                {
                    const $q: usize = 1;
                    $e
                },
                {
                    const $q: usize = 2;
                    $e
                },
                {
                    const $q: usize = 3;
                    $e
                },
            ]
        }
    }};
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];

/// Stable Rust has no name for this instruction yet, but its assembler has.
macro_rules! dot {
    ($instruction:literal, $acc:expr, $x:expr, $w:expr) => {{
        let mut acc: int32x4_t = $acc;
        asm!(
            concat!($instruction, " {acc:v}.4s, {x:v}.16b, {w:v}.16b"),
            acc = inout(vreg) acc, x = in(vreg) $x, w = in(vreg) $w,
            options(pure, nomem, nostack, preserves_flags),
        );
        acc
    }};
}

/// `acc + x . w` over the four bytes of each lane, x u8 and w i8, by products of 16 bits.
#[inline(always)]
fn dot4_widened<const DOT: u8>(token: Neon<DOT>, acc: I, x: I, w: I) -> I {
    four!(token, Q => {
        let (x, w) = (vreinterpretq_u8_s32(x[Q]), vreinterpretq_s8_s32(w[Q]));
        let x = [vmovl_u8(vget_low_u8(x)), vmovl_u8(vget_high_u8(x))];
        let x = [vreinterpretq_s16_u16(x[0]), vreinterpretq_s16_u16(x[1])];
        let w = [vmovl_s8(vget_low_s8(w)), vmovl_s8(vget_high_s8(w))];
        let low = vpaddq_s32(
            vmull_s16(vget_low_s16(x[0]), vget_low_s16(w[0])),
            vmull_high_s16(x[0], w[0]),
        );
        let high = vpaddq_s32(
            vmull_s16(vget_low_s16(x[1]), vget_low_s16(w[1])),
            vmull_high_s16(x[1], w[1]),
        );
        vaddq_s32(acc[Q], vpaddq_s32(low, high))
    })
}

/// The byte of each lane that a left shift by `LEFT` brings to the top, as f32.
#[inline(always)]
fn widen<const DOT: u8, const LEFT: i32>(token: Neon<DOT>, w: I) -> F {
    four!(token, Q => vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<LEFT>(w[Q]))))
}

impl<const DOT: u8> Simd for Neon<DOT> {
    type F = F;
    type I = I;
    const REGISTERS: Registers = Registers::Few;

    #[inline]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        fn widened<K: Kernel, const DOT: u8>(token: Neon<DOT>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[inline(never)]
        #[target_feature(enable = "neon,dotprod")]
        fn signed<K: Kernel, const DOT: u8>(token: Neon<DOT>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[inline(never)]
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn mixed<K: Kernel, const DOT: u8>(token: Neon<DOT>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists, so `detect` found every feature that the function of this `DOT` enables.
        #[allow(unused_unsafe)] // NEON is part of most targets
        unsafe {
            match DOT {
                MIXED => mixed(self, kernel),
                SIGNED => signed(self, kernel),
                _ => widened(self, kernel),
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        four!(self, _Q => vdupq_n_f32(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        let (quarters, _) = x.as_chunks::<4>();
        // Each load reads the 16 bytes of a quarter.
        four!(self, Q => vld1q_f32(quarters[Q].as_ptr()))
    }
    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> F {
        let (quarters, _) = x.as_chunks::<4>();
        // Each load reads the 8 bytes of a quarter.
        four!(self, Q => vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(quarters[Q].as_ptr())))))
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        let (quarters, _) = to.as_chunks_mut::<4>();
        // Each store writes the 16 bytes of a quarter.
        four!(self, Q => vst1q_f32(quarters[Q].as_mut_ptr(), x[Q]));
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        four!(self, Q => vaddq_f32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        four!(self, Q => vsubq_f32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        four!(self, Q => vmulq_f32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        four!(self, Q => vdivq_f32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        four!(self, Q => vfmaq_f32(c[Q], a[Q], b[Q]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // Not `fmax`, which returns a NaN wherever there is one.
        four!(self, Q => vbslq_f32(vcgtq_f32(a[Q], b[Q]), a[Q], b[Q]))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        four!(self, Q => vbslq_f32(vcltq_f32(a[Q], b[Q]), a[Q], b[Q]))
    }
    #[inline(always)]
    fn if_less(self, a: F, b: F, x: F, y: F) -> F {
        four!(self, Q => vbslq_f32(vcltq_f32(a[Q], b[Q]), x[Q], y[Q]))
    }
    #[inline(always)]
    fn choose(self, mask: I, x: F, y: F) -> F {
        four!(self, Q => vbslq_f32(vreinterpretq_u32_s32(mask[Q]), x[Q], y[Q]))
    }
    #[inline(always)]
    fn bits(self, x: F) -> I {
        four!(self, Q => vreinterpretq_s32_f32(x[Q]))
    }
    #[inline(always)]
    fn of_bits(self, x: I) -> F {
        four!(self, Q => vreinterpretq_f32_s32(x[Q]))
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        four!(self, Q => vcvtnq_s32_f32(x[Q]))
    }
    #[inline(always)]
    fn float(self, x: I) -> F {
        four!(self, Q => vcvtq_f32_s32(x[Q]))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        four!(self, _Q => vdupq_n_s32(x))
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; LANES]) -> I {
        let (quarters, _) = x.as_chunks::<4>();
        // Each load reads the 16 bytes of a quarter.
        four!(self, Q => vld1q_s32(quarters[Q].as_ptr()))
    }
    #[inline(always)]
    fn store_i(self, x: I, to: &mut [i32; LANES]) {
        let (quarters, _) = to.as_chunks_mut::<4>();
        // Each store writes the 16 bytes of a quarter.
        four!(self, Q => vst1q_s32(quarters[Q].as_mut_ptr(), x[Q]));
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        four!(self, Q => vaddq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        four!(self, Q => vsubq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn mul_i(self, a: I, b: I) -> I {
        four!(self, Q => vmulq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        four!(self, Q => vmaxq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn min_i(self, a: I, b: I) -> I {
        four!(self, Q => vminq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        four!(self, Q => vandq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn or_i(self, a: I, b: I) -> I {
        four!(self, Q => vorrq_s32(a[Q], b[Q]))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: I) -> I {
        four!(self, Q => vshlq_s32(a[Q], vdupq_n_s32(N as i32)))
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: I) -> I {
        four!(self, Q => vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[Q]), vdupq_n_s32(-(N as i32)))))
    }
    #[inline(always)]
    fn dot4(self, acc: I, x: I, w: I) -> I {
        match DOT {
            MIXED => four!(self, Q => dot!("usdot", acc[Q], x[Q], w[Q])),
            SIGNED => {
                // x . w = (x - 128) . w - (-128) . w; the last depends on the weights alone.
                let least = four!(self, _Q => vreinterpretq_s32_u8(vdupq_n_u8(128)));
                let shift = four!(self, Q => dot!("sdot", vdupq_n_s32(0), least[Q], w[Q]));
                let signed = four!(self, Q => veorq_s32(x[Q], least[Q]));
                let sum = four!(self, Q => dot!("sdot", acc[Q], signed[Q], w[Q]));
                four!(self, Q => vsubq_s32(sum[Q], shift[Q]))
            }
            _ => dot4_widened(self, acc, x, w),
        }
    }
    #[inline(always)]
    fn widen4(self, w: I) -> [F; 4] {
        [
            widen::<DOT, 24>(self, w),
            widen::<DOT, 16>(self, w),
            widen::<DOT, 8>(self, w),
            widen::<DOT, 0>(self, w),
        ]
    }
    #[inline(always)]
    fn store_bytes(self, x: I, to: &mut [u8; LANES]) {
        let halves = four!(self, Q => vmovn_s32(x[Q]));
        // SAFETY: the reference covers the 16 bytes written, and `self` proves NEON.
        #[allow(unused_unsafe)]
        unsafe {
            let low = vmovn_s16(vcombine_s16(halves[0], halves[1]));
            let high = vmovn_s16(vcombine_s16(halves[2], halves[3]));
            vst1q_s8(to.as_mut_ptr().cast(), vcombine_s8(low, high));
        }
    }
}
