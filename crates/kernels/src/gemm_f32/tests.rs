use proptest::prelude::*;

use super::*;
use crate::testing::{assert_same, contexts, matrix, values};

fn check(rows: usize, inp: usize, out: usize, with_bias: bool, seed: u64) {
    let (x, weight, bias) = (matrix(rows, inp, seed), values(out * inp, seed + 1), values(out, seed + 2));
    let bias = with_bias.then_some(&bias[..]);
    let packed = PackedF32::pack(&weight, out, inp);
    assert_eq!(packed.unpack(), weight);
    let expected = reference(&x, &weight, out, bias);
    for cx in contexts() {
        let found = gemm_f32(&cx, &x, &packed, bias);
        let what = format!("[{rows}, {inp}] x [{out}] on {} with {:?}", cx.isa, cx.threads);
        assert_eq!((found.rows(), found.cols()), (rows, out));
        assert_same(found.as_slice(), expected.as_slice(), &what);
    }
}

#[test]
fn every_tile_height_and_width_has_the_reference_bits() {
    for rows in 0..20 {
        check(rows, 7, 70, rows % 2 == 0, rows as u64 + 1);
    }
    for out in [0, 1, 15, 16, 17, 47, 48, 49, 129, 400] {
        check(3, 5, out, out % 2 == 0, out as u64 + 1);
    }
    check(2, 0, 20, true, 1);
    check(50, 300, 33, true, 2);
    check(1, 100, 3072, true, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_has_the_reference_bits(
        rows in 1usize..60, inp in 1usize..80, out in 1usize..140, bias: bool, seed in 1u64..1000,
    ) {
        check(rows, inp, out, bias, seed);
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_and_nan_stays_in_its_row() {
    let (x, weight) = (matrix(13, 40, 1), values(50 * 40, 2));
    let packed = PackedF32::pack(&weight, 50, 40);
    for cx in contexts() {
        let all = gemm_f32(&cx, &x, &packed, None);
        let mut spoilt = x.clone();
        spoilt.row_mut(4)[39] = f32::NAN;
        spoilt.row_mut(5)[0] = f32::INFINITY;
        let spoilt = gemm_f32(&cx, &spoilt, &packed, None);
        for i in 0..13 {
            let alone = gemm_f32(&cx, &Matrix::from_vec(1, 40, x.row(i).to_vec()), &packed, None);
            assert_same(alone.as_slice(), all.row(i), "a row alone");
            match i {
                4 => assert!(spoilt.row(i).iter().all(|y| y.is_nan())),
                5 => assert!(spoilt.row(i).iter().all(|y| !y.is_finite())),
                _ => assert_same(spoilt.row(i), all.row(i), "a row beside a NaN"),
            }
        }
    }
}
