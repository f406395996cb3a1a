//! Every lanes type against the array-backed one, operation by operation.

use super::*;
use crate::Isa;

/// All operations on some inputs, as bits.
struct Everything {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
}

const TURN: [u8; 8] = [7, 6, 5, 4, 3, 2, 1, 0];

fn halves(x: &[f32; LANES]) -> &[[f32; 8]] {
    x.as_chunks().0
}

impl Kernel for Everything {
    type Output = Vec<[i32; LANES]>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (a, b, c) = (s.load(&self.a), s.load(&self.b), s.load(&self.c));
        let (i, j) = (s.bits(a), s.bits(b));
        let small = s.min(s.max(c, s.splat(-1e6)), s.splat(1e6)); // a NaN becomes -1e6
        let floats = [
            s.splat(self.a[3]),
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.fma(a, b, c),
            s.if_less(a, b, c, a),
            s.choose(s.load_i(&[0, -1, -1, 0, 0, 0, -1, 0, -1, -1, -1, 0, 0, -1, 0, -1]), a, b),
            s.float(i),
            s.of_bits(s.bits(c)),
            s.first(5, a, b),
            s.load_any(&self.a[..11]),
            s.widen4(i)[0],
            s.widen4(i)[1],
            s.widen4(i)[2],
            s.widen4(i)[3],
            s.splat(s.sum(c)),
            s.pair(&halves(&self.a)[1], &halves(&self.b)[0]),
            s.pair_turned(&halves(&self.a)[0], &halves(&self.c)[1], [&[0, 0, 1, 7, 5, 5, 6, 2], &TURN]),
        ];
        let table = s.transpose_halves([a, b, c, s.add(a, b), s.sub(a, b), s.mul(a, c), b, s.sub(c, b)]);
        let exact = [s.max(a, b), s.min(a, b), s.splat(s.largest(a))];
        let ints = [
            s.splat_i(self.a[3].to_bits() as i32),
            s.round(small),
            s.add_i(i, j),
            s.sub_i(i, j),
            s.mul_i(i, j),
            s.max_i(i, j),
            s.min_i(i, j),
            s.and_i(i, j),
            s.or_i(i, j),
            s.shl_i::<23>(i),
            s.shr_i::<7>(i),
            s.dot4(s.bits(c), i, j),
            s.splat_i(s.largest_i(i)),
        ];
        let mut out = Vec::new();
        for f in floats.into_iter().chain(table) {
            let mut to = [0.0; LANES];
            s.store(f, &mut to);
            // The bits of a NaN are the one thing that machines may differ in.
            out.push(to.map(|x: f32| if x.is_nan() { i32::MAX } else { x.to_bits() as i32 }));
        }
        for f in exact {
            let mut to = [0.0; LANES];
            s.store(f, &mut to);
            out.push(to.map(|x: f32| x.to_bits() as i32));
        }
        for i in ints {
            let mut to = [0; LANES];
            s.store_i(i, &mut to);
            out.push(to);
        }
        let mut bytes = [0; LANES];
        s.store_bytes(s.and_i(i, s.splat_i(255)), &mut bytes);
        out.push(bytes.map(i32::from));
        let mut tail = [7.0; 9];
        s.store_any(a, &mut tail);
        out.push(std::array::from_fn(|l| if l < 9 { tail[l].to_bits() as i32 } else { 0 }));
        out
    }
}

/// What `kernel` gives on everything this machine has: NEON alone chooses between several lanes.
fn runs<K: Kernel>(kernel: impl Fn() -> K) -> Vec<(String, K::Output)> {
    let sets = Isa::available().into_iter();
    #[allow(unused_mut)]
    let mut all: Vec<_> = sets.map(|isa| (isa.to_string(), isa.run(kernel()))).collect();
    #[cfg(target_arch = "aarch64")]
    {
        use neon::{MIXED, Neon, SIGNED, WIDENED};
        all.extend(Neon::<WIDENED>::detect().map(|n| ("neon, widened".into(), n.enter(kernel()))));
        all.extend(Neon::<SIGNED>::detect().map(|n| ("neon, sdot".into(), n.enter(kernel()))));
        all.extend(Neon::<MIXED>::detect().map(|n| ("neon, usdot".into(), n.enter(kernel()))));
    }
    all
}

#[test]
fn every_lanes_operation_has_the_bits_of_the_array_one() {
    let special =
        [0.0, -0.0, 1.0, 2.5, -2.5, 3.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40, 0.5];
    let mut inputs: Vec<f32> = crate::testing::values(4000, 1);
    for x in special {
        inputs.extend(special.iter().flat_map(|y| [x, *y]));
    }
    inputs.extend((0..4000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))));
    let at = |from: usize| std::array::from_fn(|l| inputs[(from + l) % inputs.len()]);
    for from in 0..inputs.len() {
        let case = || Everything { a: at(from), b: at(from * 7 + 1), c: at(from * 3 + 5) };
        let expected = Isa::Scalar.run(case());
        for (on, found) in runs(case) {
            for (op, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "operation {op} on {on}, inputs from {from}");
            }
        }
    }
}

#[test]
fn halves_of_eight_rows_are_transposed_apart() {
    struct Table([[f32; LANES]; 8]);
    impl Kernel for Table {
        type Output = [[f32; LANES]; 8];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut rows = [s.splat(0.0); 8];
            for i in 0..8 {
                rows[i] = s.load(&self.0[i]);
            }
            let rows = s.transpose_halves(rows);
            let mut to = self.0;
            for i in 0..8 {
                s.store(rows[i], &mut to[i]);
            }
            to
        }
    }
    let from: [[f32; LANES]; 8] = std::array::from_fn(|i| std::array::from_fn(|j| (i * LANES + j) as f32));
    for isa in Isa::available() {
        let to = isa.run(Table(from));
        for i in 0..8 {
            for j in 0..8 {
                assert_eq!((to[j][i], to[j][8 + i]), (from[i][j], from[i][8 + j]), "{i} {j} on {isa}");
            }
        }
    }
}

#[test]
fn dot4_is_exact_at_the_extremes() {
    struct Dot(u8, i8);
    impl Kernel for Dot {
        type Output = i32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> i32 {
            let x = s.splat_i(i32::from_ne_bytes([self.0; 4]));
            let w = s.splat_i(i32::from_ne_bytes([self.1 as u8; 4]));
            let mut to = [0; LANES];
            s.store_i(s.dot4(s.splat_i(1), x, w), &mut to);
            to[15]
        }
    }
    for (x, w) in [(255, 127), (255, -128), (255, -127), (0, -128), (128, -1), (1, -128)] {
        for (on, found) in runs(|| Dot(x, w)) {
            assert_eq!(found, 1 + 4 * i32::from(x) * i32::from(w), "{x} * {w} on {on}");
        }
    }
}
