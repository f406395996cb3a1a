//! Lanes as one 512-bit register, with the VNNI byte dot product.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Registers, Simd};

/// Proof that this machine has AVX-512 F, BW, VL, DQ and VNNI: only [`Avx512::detect`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx512 {
    _made_by_detect: (),
}

impl Avx512 {
    #[inline]
    pub fn detect() -> Option<Avx512> {
        Avx512::needs().iter().all(|(_, has)| *has).then_some(Avx512 { _made_by_detect: () })
    }

    /// The features that code of this token is compiled with, and whether the machine has them.
    #[inline]
    pub fn needs() -> [(&'static str, bool); 7] {
        [
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
        ]
    }
}

/// A register operation on values, allowed because `$self` is a token.
macro_rules! op {
    ($self:ident, $e:expr) => {{
        let _token: Avx512 = $self;
        // SAFETY: a token exists, so `detect` found the features of this register-only instruction.
        unsafe { $e }
    }};
}

/// Two rows, their values in turn: `a0 b0 a1 b1`, `a2 b2 a3 b3` in each quarter.
#[inline(always)]
fn twos(token: Avx512, a: __m512, b: __m512) -> [__m512d; 2] {
    op!(token, [_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b))])
}

/// Two pairs of rows: values 0, 1, 2 and 3 of each quarter of all four.
#[inline(always)]
fn fours(token: Avx512, [a, b]: [__m512d; 2], [c, d]: [__m512d; 2]) -> [__m512d; 4] {
    op!(
        token,
        [
            _mm512_unpacklo_pd(a, c),
            _mm512_unpackhi_pd(a, c),
            _mm512_unpacklo_pd(b, d),
            _mm512_unpackhi_pd(b, d),
        ]
    )
}

/// Eight rows to eight columns in each half: pairs, then pairs of pairs, then quarters.
#[inline(always)]
fn transpose_halves(token: Avx512, r: [__m512; 8]) -> [__m512; 8] {
    let (a, b) = (twos(token, r[0], r[1]), twos(token, r[2], r[3]));
    let (c, d) = (twos(token, r[4], r[5]), twos(token, r[6], r[7]));
    let (top, bottom) = (fours(token, a, b), fours(token, c, d));
    let mut out = r;
    for i in 0..4 {
        // Quarters 0 and 2 of both, then 1 and 3.
        let (even, odd) = op!(
            token,
            (
                _mm512_permutex2var_pd(top[i], _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), bottom[i]),
                _mm512_permutex2var_pd(top[i], _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), bottom[i])
            )
        );
        (out[i], out[4 + i]) = op!(token, (_mm512_castpd_ps(even), _mm512_castpd_ps(odd)));
    }
    out
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const REGISTERS: Registers = Registers::Many;

    #[inline]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
        fn inside<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists, so `detect` found every feature that `inside` enables.
        unsafe { inside(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(self, _mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: the reference covers the 64 bytes read, unaligned loads are allowed, and `self` proves AVX-512.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> __m512 {
        // SAFETY: the reference covers the 32 bytes read, unaligned loads are allowed, and `self` proves AVX-512.
        let half = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        op!(self, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))))
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        // SAFETY: the reference covers the 64 bytes written, and `self` proves AVX-512.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(self, _mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn if_less(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        op!(self, _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn choose(self, mask: __m512i, x: __m512, y: __m512) -> __m512 {
        op!(self, _mm512_mask_blend_ps(_mm512_movepi32_mask(mask), y, x))
    }
    #[inline(always)]
    fn bits(self, x: __m512) -> __m512i {
        op!(self, _mm512_castps_si512(x))
    }
    #[inline(always)]
    fn of_bits(self, x: __m512i) -> __m512 {
        op!(self, _mm512_castsi512_ps(x))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        op!(self, _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        op!(self, _mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        op!(self, _mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; LANES]) -> __m512i {
        // SAFETY: the reference covers the 64 bytes read, unaligned loads are allowed, and `self` proves AVX-512.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_i(self, x: __m512i, to: &mut [i32; LANES]) {
        // SAFETY: the reference covers the 64 bytes written, and `self` proves AVX-512.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn min_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_min_epi32(a, b))
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m512i) -> __m512i {
        op!(self, _mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m512i) -> __m512i {
        op!(self, _mm512_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn dot4(self, acc: __m512i, x: __m512i, w: __m512i) -> __m512i {
        op!(self, _mm512_dpbusd_epi32(acc, x, w))
    }
    // Codes stay in the high half of their byte: 16 times too large, which costs no instruction per product.
    const NIBBLE: f32 = 1.0 / 16.0;
    #[inline(always)]
    fn nibbles(self, w: __m512i) -> [__m512i; 2] {
        op!(self, {
            let high = _mm512_set1_epi8(-16);
            [_mm512_and_si512(_mm512_slli_epi16::<4>(w), high), _mm512_and_si512(w, high)]
        })
    }
    #[inline(always)]
    fn close_short(self, acc: __m512i) -> __m512i {
        op!(self, _mm512_srai_epi32::<4>(acc))
    }
    #[inline(always)]
    fn widen4(self, w: __m512i) -> [__m512; 4] {
        op!(
            self,
            [
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(w))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(w))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(w))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(w)),
            ]
        )
    }
    #[inline(always)]
    fn pair(self, low: &[f32; 8], high: &[f32; 8]) -> __m512 {
        // SAFETY: both references cover the 32 bytes read, unaligned loads are allowed, `self` proves AVX-512.
        let [low, high] = unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] };
        op!(self, _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high))
    }
    #[inline(always)]
    fn pair_turned(self, low: &[f32; 8], high: &[f32; 8], turns: [&[u8; 8]; 2]) -> __m512 {
        let turn = turns.map(|turn| i64::from_le_bytes(*turn));
        // Lanes of the upper half are eight further on.
        op!(
            self,
            _mm512_permutexvar_ps(
                _mm512_cvtepu8_epi32(_mm_set_epi64x(turn[1] + 0x0808_0808_0808_0808, turn[0])),
                self.pair(low, high)
            )
        )
    }
    #[inline(always)]
    fn transpose_halves(self, rows: [__m512; 8]) -> [__m512; 8] {
        transpose_halves(self, rows)
    }
    #[inline(always)]
    fn store_bytes(self, x: __m512i, to: &mut [u8; LANES]) {
        // SAFETY: the reference covers the 16 bytes written, and `self` proves AVX-512.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)) }
    }
}
