use proptest::prelude::*;

use super::*;
use crate::amx::Emulator;
use crate::testing::{assert_same, contexts, matrix, values};
use crate::{RowGrid, quantize_rows, quantize_weight_rows};

fn codes(count: usize, seed: u64) -> Vec<i8> {
    values(count, seed).iter().map(|v| (v.to_bits().wrapping_mul(2_654_435_761) >> 24) as u8 as i8).collect()
}

fn scales(count: usize, seed: u64) -> Vec<f32> {
    values(count, seed).iter().map(|v| v.abs() * 0.01 + 1e-4).collect()
}

fn check(x: &Matrix, codes: &[i8], scale: &[f32], bias: Option<&[f32]>, grid: RowGrid) {
    let (inp, out) = (x.cols(), scale.len());
    let packed = PackedI8::pack(codes, scale, out, inp).unwrap();
    assert_eq!((packed.codes(), packed.scale()), (codes.to_vec(), scale));
    let one = &contexts()[0];
    let q = quantize_rows(one, x, grid);
    let (mut int8, mut mixed) = (Matrix::zeros(x.rows(), out), Matrix::zeros(x.rows(), out));
    for i in 0..x.rows() {
        for j in 0..out {
            let (w, b) = (&codes[j * inp..(j + 1) * inp], bias.map_or(0.0, |b| b[j]));
            int8.row_mut(i)[j] = reference(q.codes(i), q.zero(i), q.scale(i), w, scale[j], b);
            mixed.row_mut(i)[j] = reference_f32(x.row(i), w, scale[j], b);
        }
    }
    for cx in contexts() {
        let what = format!("[{}, {inp}] x [{out}] {grid:?} on {} with {:?}", x.rows(), cx.isa, cx.threads);
        let q = quantize_rows(&cx, x, grid);
        assert_same(gemm_i8(&cx, &q, &packed, bias).as_slice(), int8.as_slice(), &what);
        assert_same(gemm_f32_i8(&cx, x, &packed, bias).as_slice(), mixed.as_slice(), &what);
        let tiled = gemm_i8_by(&cx, &q, &packed, bias, |product, out| {
            cx.isa.run(tiled::Sweep { unit: Emulator, product, out })
        });
        assert_same(tiled.as_slice(), int8.as_slice(), &format!("{what}, emulated tiles"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_has_the_reference_bits(
        rows in 1usize..40, inp in 1usize..140, out in 1usize..140, bias: bool, seed in 1u64..1000, asymmetric: bool,
    ) {
        let grid = if asymmetric { RowGrid::Asymmetric } else { RowGrid::Symmetric };
        let (scale, values) = (scales(out, seed), values(out, seed + 3));
        check(&matrix(rows, inp, seed), &codes(out * inp, seed + 1), &scale, bias.then_some(&values), grid);
    }
}

#[test]
fn every_tile_height_and_width_has_the_reference_bits() {
    for (at, out) in [1, 15, 16, 17, 63, 64, 65, 129, 400].into_iter().enumerate() {
        let inp = [1, 2, 3, 4, 5, 63, 64, 65, 66][at];
        check(&matrix(2 * at + 1, inp, 5), &codes(out * inp, 6), &scales(out, 7), None, RowGrid::Symmetric);
    }
    check(&Matrix::zeros(0, 8), &codes(24, 6), &scales(3, 7), None, RowGrid::Symmetric);
    check(&Matrix::zeros(3, 0), &[], &scales(3, 7), Some(&[1.0, 2.0, 3.0]), RowGrid::Symmetric);
    check(&matrix(3, 4, 1), &[], &[], None, RowGrid::Asymmetric);
}

#[test]
fn extreme_codes_at_the_longest_input_are_exact() {
    // Every activation at one end of its grid and every weight at one end of its range.
    for (inp, weights) in [(66_000, [127i8, -127]), (65_793, [-128, 127])] {
        for x in [1.0, -1.0] {
            for grid in [RowGrid::Symmetric, RowGrid::Asymmetric] {
                let codes: Vec<i8> = weights.iter().flat_map(|&w| vec![w; inp]).collect();
                check(&Matrix::from_vec(1, inp, vec![x; inp]), &codes, &[0.5, 0.25], None, grid);
            }
        }
    }
}

#[test]
fn zero_rows_outliers_and_bad_rows_are_what_they_were_defined_to_be() {
    let (inp, out) = (37, 18);
    let mut x = matrix(6, inp, 1);
    x.row_mut(0).fill(0.0);
    x.row_mut(1)[5] = 3.0e38;
    x.row_mut(2)[36] = f32::NAN;
    x.row_mut(3)[0] = f32::NEG_INFINITY;
    x.row_mut(4).fill(1e-42);
    let bias = values(out, 4);
    for grid in [RowGrid::Symmetric, RowGrid::Asymmetric] {
        check(&x, &codes(out * inp, 2), &scales(out, 3), Some(&bias), grid);
        for cx in contexts() {
            let packed = PackedI8::pack(&codes(out * inp, 2), &scales(out, 3), out, inp).unwrap();
            let y = gemm_i8(&cx, &quantize_rows(&cx, &x, grid), &packed, Some(&bias));
            assert_same(y.row(0), &bias, "a row of zeros gives the bias");
            assert_same(y.row(4), &bias, "a row of next to nothing gives the bias");
            assert!(y.row(2).iter().chain(y.row(3)).all(|y| y.is_nan()), "a bad row is NaN");
            assert!(y.row(1).iter().chain(y.row(5)).all(|y| y.is_finite()));
        }
    }
}

#[test]
fn weights_that_would_lie_are_refused_with_their_row() {
    let refused = |codes: &[i8], scale: &[f32], out, inp| PackedI8::pack(codes, scale, out, inp).unwrap_err();
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(refused(&[1; 6], &[1.0, bad, 1.0], 3, 2).contains("row 1"), "scale {bad}");
    }
    assert!(refused(&vec![1; 66_001], &[1.0], 1, 66_001).contains("66001"));
    let mut full = vec![1; 65_794];
    assert!(PackedI8::pack(&full, &[1.0], 1, 65_794).is_ok());
    full[7] = -128;
    assert!(refused(&full, &[1.0], 1, 65_794).contains("overflow"));
    assert!(refused(&[1; 5], &[1.0], 1, 4).contains("5 codes"));
    assert!(refused(&[1; 4], &[1.0, 1.0], 1, 4).contains("2 scales"));
}

#[test]
fn quantized_products_stay_close_to_the_float_product() {
    let (rows, inp, out) = (9, 256, 24);
    let (x, weight) = (matrix(rows, inp, 8), values(out * inp, 9));
    let (codes, scale) = quantize_weight_rows(&weight, out, inp);
    let packed = PackedI8::pack(&codes, &scale, out, inp).unwrap();
    let cx = &contexts()[0];
    let q = quantize_rows(cx, &x, RowGrid::Asymmetric);
    let y = gemm_i8(cx, &q, &packed, None);
    for i in 0..rows {
        for j in 0..out {
            let w = &weight[j * inp..(j + 1) * inp];
            let exact: f64 = x.row(i).iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            // Each factor is off by at most half a step of its grid (a step, at the clamped end of an
            // asymmetric one).
            let (sx, sw) = (f64::from(q.scale(i)), f64::from(scale[j]));
            let bound: f64 = (x.row(i).iter().zip(w))
                .map(|(&x, &w)| f64::from(x.abs()) * sw / 2.0 + f64::from(w.abs()) * sx + sx * sw)
                .sum();
            assert!((f64::from(y.row(i)[j]) - exact).abs() <= bound, "{i} {j}");
        }
    }
}
