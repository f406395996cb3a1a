use proptest::prelude::*;

use super::*;
use crate::testing::{assert_same, contexts, matrix, values};
use crate::{PackedF32, RowGrid, gemm_f32, quantize_rows};

fn codes(count: usize, seed: u64) -> Vec<i8> {
    let code = |v: &f32| (v.to_bits().wrapping_mul(2_654_435_761) >> 28) as i8 - 8;
    values(count, seed).iter().map(code).collect()
}

fn scales(count: usize, seed: u64) -> Vec<f32> {
    values(count, seed).iter().map(|v| v.abs() * 0.01 + 1e-4).collect()
}

/// Both products against their definitions, everywhere.
fn check(x: &Matrix, codes: &[i8], scale: &[f32], group: usize, bias: Option<&[f32]>, out: usize) {
    let (inp, groups) = (x.cols(), x.cols().div_ceil(group));
    let packed = PackedI4::pack(codes, scale, out, inp, group).unwrap();
    assert_eq!((packed.codes(), packed.scale()), (codes.to_vec(), scale.to_vec()));
    for grid in [RowGrid::Symmetric, RowGrid::Asymmetric] {
        let q = quantize_rows(&contexts()[0], x, grid);
        let (mut short, mut mixed) = (Matrix::zeros(x.rows(), out), Matrix::zeros(x.rows(), out));
        for i in 0..x.rows() {
            for j in 0..out {
                let row = (&codes[j * inp..(j + 1) * inp], &scale[j * groups..(j + 1) * groups], group);
                let b = bias.map_or(0.0, |b| b[j]);
                short.row_mut(i)[j] = reference(q.codes(i), q.zero(i), q.scale(i), row, b);
                mixed.row_mut(i)[j] = reference_f32(x.row(i), row, bias.map(|b| b[j]));
            }
        }
        for cx in contexts() {
            let what = format!("[{}, {inp}] x [{out}] by {group}, {grid:?} on {}", x.rows(), cx.isa);
            let q = quantize_rows(&cx, x, grid);
            assert_same(gemm_i4(&cx, &q, &packed, bias).as_slice(), short.as_slice(), &what);
            assert_same(gemm_f32_i4(&cx, x, &packed, bias).as_slice(), mixed.as_slice(), &what);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_has_the_reference_bits(
        rows in 1usize..40, inp in 1usize..300, out in 1usize..140, bias: bool, seed in 1u64..1000, group in 0usize..3,
    ) {
        let group = GROUPS[group];
        let (scale, values) = (scales(out * inp.div_ceil(group), seed), values(out, seed + 3));
        check(&matrix(rows, inp, seed), &codes(out * inp, seed + 1), &scale, group, bias.then_some(&values), out);
    }
}

#[test]
fn every_tile_height_and_width_has_the_reference_bits() {
    for (at, out) in [1, 15, 16, 17, 63, 64, 65, 129, 400].into_iter().enumerate() {
        let (inp, group) = ([1usize, 7, 8, 9, 31, 32, 33, 160, 257][at], GROUPS[at % 3]);
        let scale = scales(out * inp.div_ceil(group), 7);
        check(&matrix(2 * at + 1, inp, 5), &codes(out * inp, 6), &scale, group, None, out);
    }
    check(&Matrix::zeros(0, 8), &codes(24, 6), &scales(3, 7), 32, None, 3);
    check(&Matrix::zeros(3, 0), &[], &[], 64, Some(&[1.0, 2.0, 3.0]), 3);
    check(&matrix(3, 4, 1), &[], &[], 128, None, 0);
}

#[test]
fn extreme_codes_are_exact() {
    // Every activation at one end of its grid and every weight at one end of its range: the 16-bit sums of AVX2
    // come within 127 of their limit.
    for group in GROUPS {
        for x in [1.0, -1.0] {
            let weights: Vec<i8> = [-8i8, 7].iter().flat_map(|&w| vec![w; 1024]).collect();
            let scale = scales(2 * 1024 / group, 3);
            check(&Matrix::from_vec(1, 1024, vec![x; 1024]), &weights, &scale, group, None, 2);
        }
    }
}

#[test]
fn zero_and_bad_rows_are_what_they_were_defined_to_be() {
    let (inp, out) = (70, 18);
    let mut x = matrix(4, inp, 1);
    x.row_mut(0).fill(0.0);
    x.row_mut(1)[36] = f32::NAN;
    x.row_mut(2)[0] = f32::NEG_INFINITY;
    let (bias, scale) = (values(out, 4), scales(out * 3, 3));
    check(&x, &codes(out * inp, 2), &scale, 32, Some(&bias), out);
    for cx in contexts() {
        let packed = PackedI4::pack(&codes(out * inp, 2), &scale, out, inp, 32).unwrap();
        let y = gemm_i4(&cx, &quantize_rows(&cx, &x, RowGrid::Asymmetric), &packed, Some(&bias));
        assert_same(y.row(0), &bias, "a row of zeros gives the bias");
        assert!(y.row(1).iter().chain(y.row(2)).all(|y| y.is_nan()), "a bad row is NaN");
    }
}

#[test]
fn float_rows_have_the_bits_of_the_dequantized_weights() {
    let (rows, inp, out, group) = (7, 192, 50, 64);
    let (codes, scale) = (codes(out * inp, 2), scales(out * inp / group, 3));
    let dequantized: Vec<f32> =
        codes.iter().enumerate().map(|(at, &c)| f32::from(c) * scale[at / group]).collect();
    let (x, bias) = (matrix(rows, inp, 8), values(out, 9));
    for cx in contexts() {
        let float = gemm_f32(&cx, &x, &PackedF32::pack(&dequantized, out, inp), Some(&bias));
        let packed = PackedI4::pack(&codes, &scale, out, inp, group).unwrap();
        assert_same(gemm_f32_i4(&cx, &x, &packed, Some(&bias)).as_slice(), float.as_slice(), "float rows");
    }
}

#[test]
fn weights_that_would_lie_are_refused() {
    let refused = |codes: &[i8], scale: &[f32], out, inp, group| {
        PackedI4::pack(codes, scale, out, inp, group).unwrap_err()
    };
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(refused(&[1; 6], &[1.0, bad, 1.0], 3, 2, 32).contains("row 1"), "scale {bad}");
    }
    assert!(refused(&[1, 8], &[1.0], 1, 2, 32).contains("code 8 in row 0"));
    assert!(refused(&[1, 1, 1, -9], &[1.0, 1.0], 2, 2, 32).contains("code -9 in row 1"));
    assert!(refused(&[1; 4], &[1.0], 1, 4, 16).contains("groups of 16"));
    assert!(refused(&[1; 5], &[1.0], 1, 4, 32).contains("5 codes"));
    assert!(refused(&[1; 33], &[1.0], 1, 33, 32).contains("1 scales"));
}
