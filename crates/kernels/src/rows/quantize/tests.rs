use proptest::prelude::*;

use super::*;
use crate::testing::{contexts, matrix, values};

fn check(x: &Matrix) {
    for grid in [RowGrid::Symmetric, RowGrid::Asymmetric] {
        let expected: Vec<_> = (0..x.rows()).map(|i| reference(x.row(i), grid)).collect();
        for cx in contexts() {
            let q = quantize_rows(&cx, x, grid);
            assert_eq!((q.rows(), q.cols()), (x.rows(), x.cols()));
            for (i, (codes, scale, zero)) in expected.iter().enumerate() {
                let what =
                    format!("row {i} of {} columns, {grid:?} on {} {:?}", x.cols(), cx.isa, cx.threads);
                assert_eq!(q.codes(i), codes, "{what}");
                assert_eq!((q.scale(i).to_bits(), q.zero(i)), (scale.to_bits(), *zero), "{what}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape_has_the_reference_codes(rows in 1usize..50, cols in 1usize..300, seed in 1u64..1000) {
        check(&matrix(rows, cols, seed));
    }
}

#[test]
fn codes_are_within_half_a_step_of_the_value() {
    let x = matrix(20, 100, 5);
    let cx = &contexts()[0];
    for (grid, steps) in [(RowGrid::Symmetric, 0.5001), (RowGrid::Asymmetric, 1.0001)] {
        let q = quantize_rows(cx, &x, grid);
        let y = q.dequantize();
        for i in 0..20 {
            for (x, y) in x.row(i).iter().zip(y.row(i)) {
                assert!((x - y).abs() <= steps * q.scale(i), "{grid:?} {x} {y} {}", q.scale(i));
            }
        }
    }
}

#[test]
fn special_rows_have_the_defined_scale_and_codes() {
    let cols = 35;
    let mut x = Matrix::zeros(8, cols);
    x.row_mut(1)[34] = f32::NAN;
    x.row_mut(2)[0] = f32::NEG_INFINITY;
    x.row_mut(3).fill(-1e-42);
    x.row_mut(4).copy_from_slice(&values(cols, 2));
    x.row_mut(4)[20] = -2.9e38;
    x.row_mut(5).fill(-7.0);
    x.row_mut(6).fill(7.0);
    x.row_mut(7).copy_from_slice(&[3.0e38; 35]);
    x.row_mut(7)[0] = -3.0e38;
    check(&x);
    for cx in contexts() {
        let (s, a) =
            (quantize_rows(&cx, &x, RowGrid::Symmetric), quantize_rows(&cx, &x, RowGrid::Asymmetric));
        for i in [0, 3] {
            assert_eq!((s.scale(i), s.zero(i), a.scale(i), a.zero(i)), (1.0, 128, 1.0, 0), "row {i}");
            assert!(s.codes(i).iter().all(|&c| c == 128) && a.codes(i).iter().all(|&c| c == 0));
        }
        for i in [1, 2] {
            assert!(s.scale(i).is_nan() && a.scale(i).is_nan(), "row {i}");
            assert!(s.dequantize().row(i).iter().all(|x| x.is_nan()));
        }
        assert!(a.scale(7).is_nan() && s.scale(7).is_finite(), "a range that leaves f32 has no grid");
        assert!(s.codes(5).iter().all(|&c| c == 1) && s.codes(6).iter().all(|&c| c == 255));
        assert_eq!((a.zero(5), a.codes(5)[0], a.zero(6), a.codes(6)[0]), (255, 0, 0, 255));
        // The outlier takes an end of the grid, and the rest of the row collapses to zero.
        assert_eq!((s.codes(4)[20], s.codes(4)[0], a.codes(4)[20], a.zero(4)), (1, 128, 0, 255));
    }
}

#[test]
fn ties_go_to_even_and_weights_keep_off_minus_128() {
    // scale = 127 / 127 = 1: codes are the rounded values.
    let w = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127.0];
    let (codes, scale) = quantize_weight_rows(&w, 1, 8);
    assert_eq!((codes, scale), (vec![127, 0, 2, 2, 0, -2, -126, -127], vec![1.0]));
    let weight = [vec![0.0; 8], vec![1e-44; 8], vec![f32::NAN; 8], vec![-3.4e38; 8]].concat();
    let (codes, scale) = quantize_weight_rows(&weight, 4, 8);
    assert_eq!(codes, [vec![0; 24], vec![-127; 8]].concat());
    assert_eq!((scale[0], scale[1], scale[2].is_nan(), scale[3]), (1.0, 1.0, true, 3.4e38 / 127.0));
    // The smallest rows that have a grid of their own: 1 / scale is still finite.
    let least = 127.0 * f32::MIN_POSITIVE;
    let (codes, scale) = quantize_weight_rows(&[least, least / 127.0], 1, 2);
    assert_eq!((codes, scale), (vec![127, 1], vec![f32::MIN_POSITIVE]));
}

/// Columns 3 (twice) and 17 (once) have extra columns.
fn split(cols: usize) -> Shaping {
    Shaping::new(vec![3, 3, 17], cols).unwrap()
}

#[test]
fn split_channels_reach_further_at_the_scale_of_the_rest() {
    let cols = 40;
    let mut x = matrix(12, cols, 9);
    for i in 0..12 {
        x.row_mut(i).iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
        x.row_mut(i)[3] = if i % 2 == 0 { 2.9 } else { -2.9 };
        x.row_mut(i)[17] = 1.9;
    }
    for grid in [RowGrid::Symmetric, RowGrid::Asymmetric] {
        for cx in contexts() {
            let q = quantize_rows_split(&cx, &x, grid, &split(cols));
            assert_eq!(q.cols(), cols + 3);
            let plain = quantize_rows(&cx, &x, grid);
            let y = q.dequantize();
            for i in 0..12 {
                assert!(q.scale(i) < 0.75 * plain.scale(i), "the outliers no longer set the scale");
                let mut sum = y.row(i)[..cols].to_vec();
                for (e, &c) in split(cols).columns().iter().enumerate() {
                    sum[c as usize] += y.row(i)[cols + e];
                }
                for (a, b) in x.row(i).iter().zip(&sum) {
                    // Symmetric codes reach every value; the asymmetric zero point can cost a step at the end.
                    let steps = if grid == RowGrid::Symmetric { 0.51 } else { 3.0 };
                    assert!((a - b).abs() <= steps * q.scale(i), "{grid:?} {a} {b} {}", q.scale(i));
                }
            }
        }
    }
}

#[test]
fn split_rows_are_the_same_codes_everywhere() {
    for cols in [18, 32, 100, 257] {
        let mut x = matrix(9, cols, cols as u64);
        x.row_mut(2)[3] = 1e30;
        x.row_mut(3)[17] = -1e30;
        x.row_mut(4)[3] = f32::NAN;
        x.row_mut(5).fill(0.0);
        for grid in [RowGrid::Symmetric, RowGrid::Asymmetric] {
            let all: Vec<_> =
                contexts().iter().map(|cx| quantize_rows_split(cx, &x, grid, &split(cols))).collect();
            for q in &all {
                for i in 0..9 {
                    assert_eq!(q.codes(i), all[0].codes(i), "row {i} of {cols}");
                    assert_eq!(q.scale(i).to_bits(), all[0].scale(i).to_bits());
                }
                assert!(q.scale(4).is_nan());
            }
        }
    }
}

#[test]
fn splits_outside_the_row_are_refused() {
    assert!(Shaping::new(vec![5], 5).is_err());
    assert!(Shaping::new(vec![3, 1], 5).is_err());
    assert_eq!(Shaping::new(vec![1, 1, 4], 5).unwrap().columns(), [1, 1, 4]);
}

#[test]
fn a_smoothed_row_has_the_codes_of_its_divided_values() {
    let (rows, cols) = (5, 100);
    let x = matrix(rows, cols, 7);
    let shifts: Vec<i8> = (0..cols).map(|c| (c % 9) as i8 - 4).collect();
    let mut divided = x.clone();
    for i in 0..rows {
        divided.row_mut(i).iter_mut().zip(&shifts).for_each(|(v, s)| *v /= 2f32.powi(i32::from(*s)));
    }
    let plain = Shaping::new(vec![2, 2, 50], cols).unwrap();
    let smoothed = plain.clone().smoothed(&shifts, cols).unwrap();
    let fixed = InputGrid::Fixed(FixedGrid::over(-2.0, 3.0).unwrap());
    for cx in contexts() {
        for grid in [InputGrid::Row(RowGrid::Symmetric), InputGrid::Row(RowGrid::Asymmetric), fixed] {
            let (a, b) =
                (quantize_input(&cx, &x, grid, &smoothed), quantize_input(&cx, &divided, grid, &plain));
            for i in 0..rows {
                assert_eq!(
                    (a.codes(i), a.scale(i), a.zero(i)),
                    (b.codes(i), b.scale(i), b.zero(i)),
                    "{grid:?}"
                );
            }
        }
    }
    assert!(plain.clone().smoothed(&shifts[1..], cols).is_err());
    assert!(plain.clone().smoothed(&[SHIFT_MAX + 1; 100], cols).is_err());
    assert!(plain.smoothed(&[i8::MIN; 100], cols).is_err());
}

#[test]
fn smoothing_repairs_the_product_that_an_outlier_channel_spoils() {
    // One channel a hundred times larger sets the step of every row; divided by 64, it no longer does.
    let (rows, cols, out, channel) = (20, 96, 40, 11);
    let number = |i: usize| ((i * 7919 % 10_007) as f32 * 0.731).sin();
    let mut x = Matrix::from_vec(rows, cols, (0..rows * cols).map(number).collect());
    (0..rows).for_each(|i| x.row_mut(i)[channel] *= 100.0);
    let weights: Vec<f32> = (0..out * cols).map(|i| number(i + 11)).collect();
    let mut shifts = vec![0; cols];
    shifts[channel] = 6;
    let multiplied: Vec<f32> =
        weights.iter().enumerate().map(|(i, w)| if i % cols == channel { w * 64.0 } else { *w }).collect();
    let cx = &contexts()[0];
    let error = |weights_: &[f32], shaping: &Shaping| -> f64 {
        let (codes, scale) = quantize_weight_rows(weights_, out, cols);
        // Weights as their codes, so that only what the input loses counts.
        let exact: Vec<f32> =
            codes.iter().enumerate().map(|(i, c)| f32::from(*c) * scale[i / cols]).collect();
        let w = crate::PackedI8::pack(&codes, &scale, out, cols).unwrap();
        let y = crate::gemm_i8(
            cx,
            &quantize_input(cx, &x, InputGrid::Row(RowGrid::Symmetric), shaping),
            &w,
            None,
        );
        let mut sum = 0.0;
        for i in 0..rows {
            let mut row = x.row(i).to_vec();
            shaping.smooth(&mut row);
            for (y, w) in y.row(i).iter().zip(exact.chunks(cols)) {
                let wanted: f64 = row.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                sum += (f64::from(*y) - wanted).powi(2);
            }
        }
        sum.sqrt()
    };
    let plain = error(&weights, &Shaping::default());
    let smoothed = error(&multiplied, &Shaping::default().smoothed(&shifts, cols).unwrap());
    assert!(smoothed < 0.2 * plain, "{smoothed} of {plain}");
}
