//! What the tests share: numbers, every context to compare, and equality of bits.

use crate::{Context, Isa, Matrix};

/// Every available instruction set on 1, 2 and 3 threads. What is not available is said, by
/// `isa::tests::every_isa_either_runs_or_says_that_it_does_not`.
pub fn contexts() -> Vec<Context> {
    let make = |isa| (1..4).map(move |threads| Context::new(isa, threads).unwrap());
    Isa::available().into_iter().flat_map(make).collect()
}

/// Reproducible values around 1 in size, with a few zeros, tiny and large ones.
pub fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let unit = (state >> 40) as f32 / 8_388_608.0 - 1.0;
        match state % 61 {
            0 => 0.0,
            1 => -0.0,
            2 => unit * 1e-30,
            3 => unit * 50.0,
            _ => unit,
        }
    };
    (0..count).map(|_| next()).collect()
}

pub fn matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::from_vec(rows, cols, values(rows * cols, seed))
}

/// Equal bits, except that a NaN equals every NaN.
#[track_caller]
pub fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        let same = f.to_bits() == e.to_bits() || f.is_nan() && e.is_nan();
        assert!(
            same,
            "{what}: value {at} is {f:e} ({:08x}), expected {e:e} ({:08x})",
            f.to_bits(),
            e.to_bits()
        );
    }
}
