//! `y = x wᵀ + b` with a weight kept as bfloat16: the bits of [`gemm_f32()`](crate::gemm_f32()) over its values, at half
//! the memory.
//!
//! A bfloat16 is the upper half of an f32, so widening is exact and the arithmetic is that of f32, on every
//! instruction set. (Products of `vdpbf16ps` and of bf16 tiles flush subnormals and add pairs in an order of their own:
//! they could not have the same bits anywhere else.)

use crate::gemm_f32::product;
use crate::lanes::LANES;
use crate::matrix::Lines;
use crate::{Context, Matrix};

/// A weight `[out, in]` of bfloat16 bits in panels of 16 output columns, k-major inside a panel. Columns past `out` are
/// zero.
#[derive(Clone)]
pub struct PackedBf16 {
    lines: Lines,
    out: usize,
    inp: usize,
}

impl PackedBf16 {
    /// Packs `weight [out, in]`, row-major, the upper halves of f32 values. Panics unless `weight.len() == out * inp`.
    pub fn pack(weight: &[u16], out: usize, inp: usize) -> PackedBf16 {
        assert_eq!(weight.len(), out * inp, "values of a [{out}, {inp}] weight");
        let mut lines = Lines::zeroed(out.div_ceil(LANES) * inp * LANES * 2);
        let panels = lines.of_mut::<[u16; LANES]>().chunks_exact_mut(inp.max(1));
        for (panel, rows) in panels.zip(weight.chunks(inp.max(1) * LANES)) {
            for (l, row) in rows.chunks_exact(inp.max(1)).enumerate() {
                panel.iter_mut().zip(row).for_each(|(line, w)| line[l] = *w);
            }
        }
        PackedBf16 { lines, out, inp }
    }

    /// Number of output columns.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Number of input columns.
    pub fn inp(&self) -> usize {
        self.inp
    }

    /// The values as they were packed, `[out, in]` row-major.
    pub fn unpack(&self) -> Vec<f32> {
        let lines: &[[u16; LANES]] = self.lines.of();
        let value = |j: usize, k: usize| value(lines[j / LANES * self.inp + k][j % LANES]);
        (0..self.out).flat_map(|j| (0..self.inp).map(move |k| value(j, k))).collect()
    }
}

/// The f32 whose upper half is `bits`.
#[inline(always)]
fn value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl std::fmt::Debug for PackedBf16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedBf16[{}, {}]", self.out, self.inp)
    }
}

/// `x [rows, in]` f32 times `w [out, in]` transposed, plus `bias [out]` -> `[rows, out]`, f32.
///
/// `y = fma-chain over k ascending from +0.0`, then `+ bias` if there is one. Panics on unequal shapes.
pub fn gemm_f32_bf16(cx: &Context, x: &Matrix, w: &PackedBf16, bias: Option<&[f32]>) -> Matrix {
    product(cx, x, w.lines.of::<[u16; LANES]>(), [w.out, w.inp], bias)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_same, contexts, matrix, values};
    use crate::{PackedF32, gemm_f32};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_shape_has_the_bits_of_f32_over_the_same_values(
            rows in 1usize..40, inp in 1usize..300, out in 1usize..200, biased: bool, seed in 1u64..1000,
        ) {
            let bits: Vec<u16> = values(out * inp, seed).iter().map(|v| (v.to_bits() >> 16) as u16).collect();
            let wide: Vec<f32> = bits.iter().map(|b| value(*b)).collect();
            let bias = values(out, seed + 1);
            let bias = biased.then_some(&bias[..]);
            let x = matrix(rows, inp, seed + 2);
            let (half, full) = (PackedBf16::pack(&bits, out, inp), PackedF32::pack(&wide, out, inp));
            assert_eq!(half.unpack(), wide);
            for cx in contexts() {
                let what = format!("[{rows}, {inp}] x [{out}, {inp}] on {} {:?}", cx.isa, cx.threads);
                let expected = gemm_f32(&cx, &x, &full, bias);
                assert_same(gemm_f32_bf16(&cx, &x, &half, bias).as_slice(), expected.as_slice(), &what);
            }
        }
    }

    #[test]
    fn every_bfloat16_keeps_its_bits() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let packed = PackedBf16::pack(&bits, 256, 256);
        let same = |(v, b): (&f32, &u16)| v.to_bits() == u32::from(*b) << 16;
        assert!(packed.unpack().iter().zip(&bits).all(same));
    }

    #[test]
    fn empty_shapes_are_shapes() {
        let cx = &contexts()[0];
        let y = gemm_f32_bf16(cx, &matrix(2, 0, 1), &PackedBf16::pack(&[], 3, 0), Some(&[1.0, 2.0, 3.0]));
        assert_eq!(y.row(1), [1.0, 2.0, 3.0]);
        assert_eq!(gemm_f32_bf16(cx, &matrix(2, 4, 1), &PackedBf16::pack(&[], 0, 4), None).cols(), 0);
    }
}
