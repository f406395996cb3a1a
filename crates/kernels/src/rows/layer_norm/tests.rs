use proptest::prelude::*;

use super::*;
use crate::testing::{assert_same, contexts, matrix, values};

fn check(x: &Matrix, residual: &Matrix, eps: f32) {
    let (weight, bias) = (values(x.cols(), 11), values(x.cols(), 12));
    let mut expected = x.clone();
    let mut sum = x.clone();
    for i in 0..x.rows() {
        reference(expected.row_mut(i), &weight, &bias, eps);
        sum.row_mut(i).iter_mut().zip(residual.row(i)).for_each(|(x, r)| *x += r);
        reference(sum.row_mut(i), &weight, &bias, eps);
    }
    for cx in contexts() {
        let what = format!("[{}, {}] on {} {:?}", x.rows(), x.cols(), cx.isa, cx.threads);
        let mut y = x.clone();
        layer_norm(&cx, &mut y, &weight, &bias, eps);
        assert_same(y.as_slice(), expected.as_slice(), &what);
        let (mut fused, mut apart) = (x.clone(), x.clone());
        add_layer_norm(&cx, &mut fused, residual, &weight, &bias, eps);
        crate::add(&cx, &mut apart, residual);
        layer_norm(&cx, &mut apart, &weight, &bias, eps);
        assert_same(fused.as_slice(), apart.as_slice(), &what);
        assert_same(fused.as_slice(), sum.as_slice(), &what);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape_has_the_reference_bits(rows in 1usize..40, cols in 1usize..200, seed in 1u64..1000) {
        check(&matrix(rows, cols, seed), &matrix(rows, cols, seed + 1), 1e-7);
    }
}

#[test]
fn edges_of_layer_norm() {
    for cols in [1, 15, 16, 17, 768] {
        let mut x = matrix(7, cols, 3);
        x.row_mut(0).fill(0.0);
        x.row_mut(1).fill(-3.25);
        x.row_mut(2)[cols / 2] = 1e30;
        x.row_mut(3)[cols - 1] = f32::NAN;
        x.row_mut(4)[0] = f32::INFINITY;
        x.row_mut(5).fill(1e-42);
        check(&x, &Matrix::zeros(7, cols), 1e-12);
        for cx in contexts() {
            let mut y = x.clone();
            layer_norm(&cx, &mut y, &vec![1.0; cols], &vec![0.5; cols], 1e-7);
            assert!(y.row(3).iter().chain(y.row(4)).all(|y| y.is_nan()), "a bad row is NaN");
            assert!(y.row(0).iter().all(|&y| y == 0.5), "a constant row is the bias");
        }
    }
    check(&Matrix::zeros(0, 20), &Matrix::zeros(0, 20), 1e-7);
    check(&Matrix::zeros(3, 0), &Matrix::zeros(3, 0), 1e-7);
}
