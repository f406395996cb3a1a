//! Lanes as two 256-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Registers, Simd};
use crate::gemm_i8::{Panel, Runs};

/// Proof that this machine has AVX2 and FMA: only [`Avx2::detect`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx2 {
    _made_by_detect: (),
}

impl Avx2 {
    #[inline]
    pub fn detect() -> Option<Avx2> {
        Avx2::needs().iter().all(|(_, has)| *has).then_some(Avx2 { _made_by_detect: () })
    }

    /// The features that code of this token is compiled with, and whether the machine has them.
    #[inline]
    pub fn needs() -> [(&'static str, bool); 2] {
        [("avx2", is_x86_feature_detected!("avx2")), ("fma", is_x86_feature_detected!("fma"))]
    }
}

/// A register operation on values, allowed because `$self` is a token.
macro_rules! op {
    ($self:ident, $e:expr) => {{
        let _token: Avx2 = $self;
        // SAFETY: a token exists, so `detect` found the features of this register-only instruction.
        unsafe { $e }
    }};
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// `acc + x . w` over the four bytes of each lane, x u8 and w i8.
///
/// `vpmaddubsw` would saturate, so the bytes are widened to 16 bits first: the even bytes of a lane (0 and 2)
/// and the odd ones (1 and 3) each make one `vpmaddwd`. 2 * 255 * 128 fits i32 easily.
#[inline(always)]
fn dot4_half(token: Avx2, acc: __m256i, x: __m256i, w: __m256i) -> __m256i {
    op!(token, {
        let x_even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
        let x_odd = _mm256_srli_epi16::<8>(x);
        let w_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
        let w_odd = _mm256_srai_epi16::<8>(w);
        let even = _mm256_madd_epi16(x_even, w_even);
        let odd = _mm256_madd_epi16(x_odd, w_odd);
        _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
    })
}

/// The same where each pair of products fits 16 bits, so that `vpmaddubsw` is exact: half the instructions.
#[inline(always)]
fn dot4_narrow(token: Avx2, acc: __m256i, x: __m256i, w: __m256i) -> __m256i {
    op!(token, {
        let pairs = _mm256_maddubs_epi16(x, w);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    })
}

/// Sums of the first or last 8 columns of a panel, each run of its lines by the quickest product that is exact.
#[inline(always)]
fn half_dots<const R: usize>(token: Avx2, x: &[&[i32]; R], panel: &Panel, half: usize) -> [__m256i; R] {
    let Runs { narrow, wide, start, turns } = panel.runs(half);
    let mut acc = [eight(token, start); R];
    for &g in narrow[0] {
        let w = half_line(token, panel, g, half);
        for r in 0..R {
            acc[r] = dot4_narrow(token, acc[r], word(token, x[r], g), w);
        }
    }
    for form in 1..turns.len() {
        let (flip, sign) = (eight(token, &turns[form].flip), eight(token, &turns[form].sign));
        for &g in narrow[form] {
            let w = op!(token, _mm256_sign_epi8(half_line(token, panel, g, half), sign));
            for r in 0..R {
                let x = op!(token, _mm256_xor_si256(word(token, x[r], g), flip));
                acc[r] = dot4_narrow(token, acc[r], x, w);
            }
        }
    }
    for &g in wide {
        let w = half_line(token, panel, g, half);
        for r in 0..R {
            acc[r] = dot4_half(token, acc[r], word(token, x[r], g), w);
        }
    }
    acc
}

/// A register of 8 words.
#[inline(always)]
fn eight<T: bytemuck::Pod>(_token: Avx2, words: &[T; 8]) -> __m256i {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: the reference covers the 32 bytes read, unaligned loads are allowed, and the token proves AVX2.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

/// Word `g` of a row in every lane.
#[inline(always)]
fn word(token: Avx2, x: &[i32], g: u16) -> __m256i {
    debug_assert!(usize::from(g) < x.len());
    // SAFETY: groups of a panel are below its number of groups, which is the length of `x` (`I8::dots`).
    let word = unsafe { *x.get_unchecked(usize::from(g)) };
    op!(token, _mm256_set1_epi32(word))
}

/// The first or last 8 columns of line `g`.
#[inline(always)]
fn half_line(_token: Avx2, panel: &Panel, g: u16, half: usize) -> __m256i {
    let lines = panel.lines();
    debug_assert!(usize::from(g) < lines.len() && half < 2);
    // SAFETY: as in `word`; a line has two halves of 32 bytes, unaligned loads are allowed, and the token
    // proves AVX2.
    unsafe { _mm256_loadu_si256(lines.as_ptr().add(usize::from(g)).cast::<__m256i>().add(half)) }
}

/// Two rows, their values in turn: `a0 b0 a1 b1`, `a2 b2 a3 b3` in each quarter.
#[inline(always)]
fn twos(token: Avx2, a: __m256, b: __m256) -> [__m256d; 2] {
    op!(token, [_mm256_castps_pd(_mm256_unpacklo_ps(a, b)), _mm256_castps_pd(_mm256_unpackhi_ps(a, b))])
}

/// Two pairs of rows: values 0, 1, 2 and 3 of each quarter of all four.
#[inline(always)]
fn fours(token: Avx2, [a, b]: [__m256d; 2], [c, d]: [__m256d; 2]) -> [__m256; 4] {
    op!(
        token,
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(a, c)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(a, c)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(b, d)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(b, d)),
        ]
    )
}

/// Eight rows of eight values to eight columns: pairs, then pairs of pairs, then halves.
#[inline(always)]
fn transpose(token: Avx2, r: [__m256; 8]) -> [__m256; 8] {
    let (a, b) = (twos(token, r[0], r[1]), twos(token, r[2], r[3]));
    let (c, d) = (twos(token, r[4], r[5]), twos(token, r[6], r[7]));
    let (top, bottom) = (fours(token, a, b), fours(token, c, d));
    let mut out = r;
    for i in 0..4 {
        out[i] = op!(token, _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]));
        out[4 + i] = op!(token, _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]));
    }
    out
}

/// The byte of each lane that a left shift by `LEFT` brings to the top, as f32.
#[inline(always)]
fn widen<const LEFT: i32>(token: Avx2, w: I) -> F {
    let w = op!(token, [_mm256_slli_epi32::<LEFT>(w[0]), _mm256_slli_epi32::<LEFT>(w[1])]);
    let w = op!(token, [_mm256_srai_epi32::<24>(w[0]), _mm256_srai_epi32::<24>(w[1])]);
    op!(token, [_mm256_cvtepi32_ps(w[0]), _mm256_cvtepi32_ps(w[1])])
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    const REGISTERS: Registers = Registers::Few;

    #[inline]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        fn inside<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists, so `detect` found every feature that `inside` enables.
        unsafe { inside(self, kernel) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        // SAFETY: the reference covers both 32-byte halves, unaligned loads are allowed, `self` proves AVX2.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> F {
        // SAFETY: the reference covers both 16-byte halves, unaligned loads are allowed, `self` proves AVX2.
        let [low, high] =
            unsafe { [_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(x.as_ptr().add(8).cast())] };
        op!(
            self,
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high))),
            ]
        )
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        // SAFETY: the reference covers both 32-byte halves written, and `self` proves AVX2.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; LANES]) -> I {
        // SAFETY: the reference covers both 32-byte halves, unaligned loads are allowed, `self` proves AVX2.
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())] }
    }
    #[inline(always)]
    fn store_i(self, x: I, to: &mut [i32; LANES]) {
        // SAFETY: the reference covers both 32-byte halves written, and `self` proves AVX2.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), x[1]);
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        op!(self, [_mm256_set1_ps(x), _mm256_set1_ps(x)])
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        op!(self, [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        op!(self, [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        op!(self, [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        op!(self, [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        op!(self, [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        op!(self, [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        op!(self, [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn if_less(self, a: F, b: F, x: F, y: F) -> F {
        op!(
            self,
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]))
            ]
        )
    }
    #[inline(always)]
    fn choose(self, mask: I, x: F, y: F) -> F {
        op!(
            self,
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_castsi256_ps(mask[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_castsi256_ps(mask[1]))
            ]
        )
    }
    #[inline(always)]
    fn bits(self, x: F) -> I {
        op!(self, [_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1])])
    }
    #[inline(always)]
    fn of_bits(self, x: I) -> F {
        op!(self, [_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1])])
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        // vcvtps2dq rounds by MXCSR, so the rounding is done by an instruction that names its mode.
        const EVEN: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let x = op!(self, [_mm256_round_ps::<EVEN>(x[0]), _mm256_round_ps::<EVEN>(x[1])]);
        op!(self, [_mm256_cvttps_epi32(x[0]), _mm256_cvttps_epi32(x[1])])
    }
    #[inline(always)]
    fn float(self, x: I) -> F {
        op!(self, [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])])
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        op!(self, [_mm256_set1_epi32(x), _mm256_set1_epi32(x)])
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn min_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_min_epi32(a[0], b[0]), _mm256_min_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn or_i(self, a: I, b: I) -> I {
        op!(self, [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: I) -> I {
        let count = op!(self, _mm_cvtsi32_si128(N as i32));
        op!(self, [_mm256_sll_epi32(a[0], count), _mm256_sll_epi32(a[1], count)])
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: I) -> I {
        let count = op!(self, _mm_cvtsi32_si128(N as i32));
        op!(self, [_mm256_srl_epi32(a[0], count), _mm256_srl_epi32(a[1], count)])
    }
    #[inline(always)]
    fn dot4(self, acc: I, x: I, w: I) -> I {
        [dot4_half(self, acc[0], x[0], w[0]), dot4_half(self, acc[1], x[1], w[1])]
    }
    const DOTS: bool = true;
    #[inline(always)]
    fn dots<const R: usize>(self, x: &[&[i32]; R], panel: &Panel) -> [[i32; LANES]; R] {
        let mut dots = [[0; LANES]; R];
        for half in 0..2 {
            let sums = half_dots(self, x, panel, half);
            for r in 0..R {
                let to = &mut dots[r].as_chunks_mut::<8>().0[half];
                // SAFETY: the reference covers the 32 bytes written, and `self` proves AVX2.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), sums[r]) }
            }
        }
        dots
    }
    // 4-bit weights do not saturate vpmaddubsw: 8 words of them add up to at most 8 * 2 * 255 * 8 in 16 bits.
    const SHORT: usize = 8;
    #[inline(always)]
    fn nibbles(self, w: I) -> [I; 2] {
        op!(self, {
            let low = _mm256_set1_epi8(15);
            let signed = _mm256_setr_epi8(
                0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1, //
                0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1,
            );
            let high = [_mm256_srli_epi16::<4>(w[0]), _mm256_srli_epi16::<4>(w[1])];
            [
                [
                    _mm256_shuffle_epi8(signed, _mm256_and_si256(w[0], low)),
                    _mm256_shuffle_epi8(signed, _mm256_and_si256(w[1], low)),
                ],
                [
                    _mm256_shuffle_epi8(signed, _mm256_and_si256(high[0], low)),
                    _mm256_shuffle_epi8(signed, _mm256_and_si256(high[1], low)),
                ],
            ]
        })
    }
    #[inline(always)]
    fn dot4_short(self, acc: I, x: I, w: I) -> I {
        op!(
            self,
            [
                _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(x[0], w[0])),
                _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(x[1], w[1]))
            ]
        )
    }
    #[inline(always)]
    fn close_short(self, acc: I) -> I {
        let ones = op!(self, _mm256_set1_epi16(1));
        op!(self, [_mm256_madd_epi16(acc[0], ones), _mm256_madd_epi16(acc[1], ones)])
    }
    #[inline(always)]
    fn widen4(self, w: I) -> [F; 4] {
        [widen::<24>(self, w), widen::<16>(self, w), widen::<8>(self, w), widen::<0>(self, w)]
    }
    #[inline(always)]
    fn pair(self, low: &[f32; 8], high: &[f32; 8]) -> F {
        // SAFETY: both references cover the 32 bytes read, unaligned loads are allowed, `self` proves AVX2.
        unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] }
    }
    #[inline(always)]
    fn pair_turned(self, low: &[f32; 8], high: &[f32; 8], turns: [&[u8; 8]; 2]) -> F {
        let x = self.pair(low, high);
        let turn = turns.map(|turn| i64::from_le_bytes(*turn));
        op!(
            self,
            [
                _mm256_permutevar8x32_ps(x[0], _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(turn[0]))),
                _mm256_permutevar8x32_ps(x[1], _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(turn[1])))
            ]
        )
    }
    #[inline(always)]
    fn transpose_halves(self, rows: [F; 8]) -> [F; 8] {
        let mut out = rows;
        for half in 0..2 {
            let mut column = [rows[0][half]; 8];
            for i in 0..8 {
                column[i] = rows[i][half];
            }
            let column = transpose(self, column);
            for i in 0..8 {
                out[i][half] = column[i];
            }
        }
        out
    }
    #[inline(always)]
    fn store_bytes(self, x: I, to: &mut [u8; LANES]) {
        // Packing works within 128-bit lanes; 0xd8 puts the four quarters back in order.
        let words = op!(self, _mm256_permute4x64_epi64::<0xd8>(_mm256_packus_epi32(x[0], x[1])));
        let halves = op!(self, [_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)]);
        // SAFETY: the reference covers the 16 bytes written, and `self` proves AVX2.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi16(halves[0], halves[1])) }
    }
}
