//! Prints the speed of the matrix kernels per instruction set, one thread and two.
//!
//! Each result is compared between instruction sets before it is timed. Best of the repeats that fit in a
//! fixed time: `cargo run --release -p qberta-kernels --example peak`.

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

/// Numbers with the bell shape of weights: few are near the largest.
fn bell(count: usize, seed: u32) -> Vec<f32> {
    numbers(count * 8, seed).chunks_exact(8).map(|draws| draws.iter().sum()).collect()
}

/// Seconds of the fastest call.
fn fastest(mut call: impl FnMut()) -> f64 {
    let (begin, mut best, mut calls) = (Instant::now(), f64::MAX, 0);
    while calls < 3 || begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
        calls += 1;
    }
    best
}

fn bits(m: &Matrix) -> Vec<u32> {
    m.as_slice().iter().map(|y| y.to_bits()).collect()
}

fn products(isa: Isa, threads: usize) {
    let cx = Context::new(isa, threads).expect("an available instruction set");
    for (rows, inp, out) in
        [(1, 768, 3072), (8, 768, 768), (32, 768, 3072), (128, 768, 768), (128, 3072, 768), (128, 1024, 4096)]
    {
        if isa == Isa::Scalar && rows > 1 {
            continue; // software fma: minutes
        }
        let (x, weight) = (Matrix::from_vec(rows, inp, numbers(rows * inp, 1)), bell(out * inp, 2));
        let packed = PackedF32::pack(&weight, out, inp);
        let (codes, scale) = quantize_weight_rows(&weight, out, inp);
        let packed_i8 = PackedI8::pack(&codes, &scale, out, inp).expect("finite weights");
        let rows_i8 = quantize_rows(&cx, &x, RowGrid::Asymmetric);
        let plain = Context::new(Isa::best(), 1).expect("the best instruction set");
        assert_eq!(bits(&gemm_f32(&cx, &x, &packed, None)), bits(&gemm_f32(&plain, &x, &packed, None)));
        assert_eq!(
            bits(&gemm_i8(&cx, &rows_i8, &packed_i8, None)),
            bits(&gemm_i8(&plain, &rows_i8, &packed_i8, None))
        );

        let giga = 2.0 * (rows * inp * out) as f64 / 1e9;
        let f32_rate = giga / fastest(|| drop(gemm_f32(&cx, &x, &packed, None)));
        let i8_rate = giga / fastest(|| drop(gemm_i8(&cx, &rows_i8, &packed_i8, None)));
        let mixed_rate = giga / fastest(|| drop(gemm_f32_i8(&cx, &x, &packed_i8, None)));
        let quantize_us = 1e6 * fastest(|| drop(quantize_rows(&cx, &x, RowGrid::Asymmetric)));
        println!(
            "{:<11} {threads} thread(s)  {rows:>4} x {inp:>4} x {out:>4}   gemm_f32 {f32_rate:7.1} GF/s   gemm_i8 {i8_rate:7.1} GOP/s   gemm_f32_i8 {mixed_rate:7.1} GF/s   quantize_rows {quantize_us:7.1} us",
            isa.name()
        );
    }
}

fn attention(isa: Isa, threads: usize) {
    let cx = Context::new(isa, threads).expect("an available instruction set");
    let (heads, size, table) = (12, 64, 512);
    let projected = Matrix::from_vec(table, heads * size, numbers(table * heads * size, 3));
    let grids = HeadGrids::new(&[0.01; 12], &[0.01; 12]).expect("scales above 0");
    let kinds = [
        ("float scores", Operands::Float, Values::Float),
        ("int8 scores", Operands::Int8, Values::Float),
        ("static scores", Operands::Int8Static(grids), Values::Float),
        ("float scores, int8 values", Operands::Float, Values::Int8),
        ("int8 scores, int8 values", Operands::Int8, Values::Int8),
    ];
    let tables = kinds.map(|(name, operands, values)| {
        let coded = operands.is_coded();
        let keys = RelativeKeys::pack(isa, &projected, heads, coded);
        (name, operands, values, keys, RelativeKeys::pack_queries(isa, &projected, heads, coded))
    });
    for len in [32, 128, 384, 512] {
        // The shape of DeBERTa's buckets: linear up to 128, then ever slower.
        let bucket = |d: i64| match d.unsigned_abs() as f64 {
            a if a <= 128.0 => d,
            a => d.signum() * (128.0 + ((a / 128.0).ln() / (511.0f64 / 128.0).ln() * 127.0).ceil()) as i64,
        };
        let far = len as i64 - 1;
        let index: Vec<u32> = (-far..=far).map(|d| (bucket(d) + 256).clamp(0, 511) as u32).collect();
        let qkv = Matrix::from_vec(len, heads * size, numbers(len * heads * size, 4));
        let span = [Span { start: 0, len }];
        let us = |spec: &Attention| {
            1e6 * fastest(|| drop(attend(&cx, spec, &qkv, &qkv, &qkv, &span, Queries::All)))
        };
        for (name, content, values, keys, queries) in &tables {
            let plain = Attention {
                heads,
                head_size: size,
                scale: 0.07,
                content,
                values: *values,
                key_positions: None,
                query_positions: None,
                index: &index,
                len_max: len,
                mix: None,
            };
            let both = Attention { key_positions: Some(keys), query_positions: Some(queries), ..plain };
            println!(
                "{:<11} {threads} thread(s)  attend {len:>4} tokens, 12 heads of 64, {name}: plain {:8.1} us, c2p + p2c {:8.1} us",
                isa.name(),
                us(&plain),
                us(&both)
            );
        }
    }
}

fn rows(isa: Isa) {
    let cx = Context::new(isa, 1).expect("an available instruction set");
    let values = Matrix::from_vec(128, 3072, numbers(128 * 3072, 5));
    let (ones, zeros) = (vec![1.0; 3072], vec![0.0; 3072]);
    // Each call starts from the first values again: repeated, gelu would end in subnormals.
    let mut x = values.clone();
    let copy = fastest(|| x.as_mut_slice().copy_from_slice(values.as_slice()));
    let mut rate = |call: &dyn Fn(&mut Matrix)| {
        let both = fastest(|| {
            x.as_mut_slice().copy_from_slice(values.as_slice());
            call(&mut x);
        });
        values.as_slice().len() as f64 / 1e9 / (both - copy)
    };
    let gelu = rate(&|x| activate(&cx, Activation::Gelu, x));
    let tanh = rate(&|x| activate(&cx, Activation::GeluTanh, x));
    let norm = rate(&|x| layer_norm(&cx, x, &ones, &zeros, 1e-7));
    println!(
        "{:<11} 1 thread    gelu {gelu:.2}, gelu_tanh {tanh:.2}, layer_norm {norm:.2} G values/s",
        isa.name()
    );
}

fn main() {
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("{isa}: not on this machine");
            continue;
        }
        products(isa, 1);
        rows(isa);
        if isa != Isa::Scalar {
            products(isa, 2);
            attention(isa, 1);
            attention(isa, 2);
        }
    }
}
