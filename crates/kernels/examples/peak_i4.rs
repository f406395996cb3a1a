//! Prints the speed of products with 4-bit weights beside the same with int8, per instruction set and group, one
//! thread: `cargo run --release -p qberta-kernels --example peak_i4`. The weights of the last shapes do not fit
//! a private cache, which is where 4 bits gain at few rows.

use std::time::Instant;

use qberta_kernels::*;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Median seconds of a call, each taken in turn with the others so that a busy machine slows all alike.
fn medians(calls: &mut [Box<dyn FnMut() + '_>]) -> Vec<f64> {
    let mut times = vec![Vec::new(); calls.len()];
    let begin = Instant::now();
    while times[0].len() < 5 || begin.elapsed().as_secs_f64() < 1.0 {
        for (call, times) in calls.iter_mut().zip(&mut times) {
            let start = Instant::now();
            call();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
    times.iter().map(|t| t[t.len() / 2]).collect()
}

fn main() {
    for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
        let cx = Context::new(isa, 1).expect("an available instruction set");
        for (rows, inp, out) in [
            (1, 768, 3072),
            (4, 768, 3072),
            (8, 768, 768),
            (32, 768, 3072),
            (128, 768, 768),
            (128, 3072, 768),
            (1, 4096, 16384),
            (4, 4096, 16384),
        ] {
            let (x, weight) = (Matrix::from_vec(rows, inp, numbers(rows * inp, 1)), numbers(out * inp, 2));
            let (codes, scale) = quantize_weight_rows(&weight, out, inp);
            let int8 = PackedI8::pack(&codes, &scale, out, inp).expect("finite weights");
            let four: Vec<i8> = codes.iter().map(|c| c / 18).collect();
            let groups = GROUPS.map(|group| {
                let scale = vec![0.01; out * inp / group];
                PackedI4::pack(&four, &scale, out, inp, group).expect("4-bit codes")
            });
            let q = quantize_rows(&cx, &x, RowGrid::Asymmetric);
            let mut calls: Vec<Box<dyn FnMut() + '_>> = vec![
                Box::new(|| drop(gemm_i8(&cx, &q, &int8, None))),
                Box::new(|| drop(gemm_f32_i8(&cx, &x, &int8, None))),
            ];
            for w in &groups {
                let (cx, q, x) = (&cx, &q, &x);
                calls.push(Box::new(move || drop(gemm_i4(cx, q, w, None))));
                calls.push(Box::new(move || drop(gemm_f32_i4(cx, x, w, None))));
            }
            let giga = 2.0 * (rows * inp * out) as f64 / 1e9;
            let rates: Vec<String> =
                medians(&mut calls).iter().map(|s| format!("{:7.1}", giga / s)).collect();
            println!(
                "{:<11} {rows:>4} x {inp:>4} x {out:>5}  int8 {} (float input {})  4 bits by 32 {} ({})  by 64 {} ({})  by 128 {} ({})  GOP/s",
                isa.name(),
                rates[0],
                rates[1],
                rates[2],
                rates[3],
                rates[4],
                rates[5],
                rates[6],
                rates[7]
            );
        }
    }
}
