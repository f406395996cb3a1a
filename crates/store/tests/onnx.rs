//! ONNX graphs: weights find their scales in each form that quantizers write, and hostile files get a sentence,
//! in bounded time and memory.

#[path = "common/graphs.rs"]
mod graphs;
#[path = "common/mod.rs"]
mod noise;

use graphs::*;
use noise::Noise;
use qberta_kernels::mapped::Bytes;
use qberta_store::onnx::{self, Graph, Quantization, Runs};
use std::time::{Duration, Instant};

fn read(file: Vec<u8>) -> qberta_model::Result<Graph> {
    let started = Instant::now();
    let graph = onnx::read_bytes(&Bytes::from(file), |name| {
        (name == "weights.bin").then(|| Bytes::from(1.5f32.to_le_bytes().repeat(8)))
    });
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    graph
}

fn found(nodes: &[Vec<u8>], tensors: &[Vec<u8>]) -> Quantization {
    Quantization::of(&read(model(nodes, tensors, &["x"], &["y"])).unwrap())
}

#[test]
fn dynamic_products_find_their_scale() {
    let (nodes, mut tensors) = dynamic(&[1, -2, 3, -128, 5, 6, 7, 127], 0.5, "/layer.0/query/MatMul");
    let q = found(&nodes, &tensors);
    assert_eq!((q.products.len(), q.products[0].runs), (1, Some(Runs::Dynamic)));
    assert!(q.products[0].unsigned && q.misfits.is_empty());
    assert_eq!(q.weights["w_quantized"].dequantize(), [0.5, -1.0, 1.5, -64.0, 2.5, 3.0, 3.5, 63.5]);
    // One scale for each column.
    tensors[1] = floats("w_scale", &[2], &[0.5, 2.0]);
    let q = found(&nodes, &tensors);
    assert_eq!(q.weights["w_quantized"].dequantize(), [0.5, -4.0, 1.5, -256.0, 2.5, 12.0, 3.5, 254.0]);
    // Three scales for two columns, and none at all.
    tensors[1] = floats("w_scale", &[3], &[0.5; 3]);
    assert!(found(&nodes, &tensors).misfits[0].contains("3 scales"));
    tensors.remove(1);
    assert!(found(&nodes, &tensors).misfits[0].contains("no scale"));
}

#[test]
fn static_and_weight_only_products_are_told_apart() {
    let codes = tensor("w_q", INT8, &[4, 2], &[1; 8]);
    let scales = [floats("s", &[2], &[0.5, 0.25]), floats("one", &[], &[0.1])];
    let tensors = [vec![codes], scales.to_vec()].concat();
    let weight = [node("DequantizeLinear", "", &["w_q", "s"], &["w"]), attribute("axis", 1)].concat();
    let product = node("MatMul", "p", &["x_d", "w"], &["y"]);
    let q = found(
        &[
            node("QuantizeLinear", "", &["x", "one"], &["x_q"]),
            node("DequantizeLinear", "", &["x_q", "one"], &["x_d"]),
            weight.clone(),
            product.clone(),
        ],
        &tensors,
    );
    assert_eq!((q.products[0].runs, q.products[0].unsigned), (Some(Runs::Static), true));
    assert_eq!(q.weights["w_q"].dequantize(), [0.5, 0.25].repeat(4));
    assert_eq!((q.activations.len(), q.activations[0].scale), (1, f64::from(0.1f32)));
    let q = found(&[weight.clone(), product], &tensors);
    assert_eq!(q.products[0].runs, Some(Runs::WeightOnly));
    // Codes of a negative axis, which counts from the end; and of one that is not there.
    let at = |axis: i64| {
        let dequantize = node("DequantizeLinear", "", &["w_q", "s"], &["w"]);
        let dequantize = [dequantize, attribute("axis", axis.cast_unsigned())].concat();
        found(&[dequantize, node("MatMul", "p", &["x", "w"], &["y"])], &tensors)
    };
    assert_eq!(at(-1).weights.len(), 1);
    for axis in [0, 2, -3, i64::MIN, i64::MAX] {
        assert_eq!((at(axis).weights.len(), at(axis).misfits.len()), (0, 1), "{axis}");
    }
    let qlinear = node("QLinearMatMul", "p", &["x", "one", "", "w_q", "s", "", "one", ""], &["y"]);
    let q = found(&[qlinear], &tensors);
    assert_eq!((q.products[0].runs, q.weights.len(), q.activations.len()), (Some(Runs::Static), 1, 1));
    // Two activations, no weight: nothing to say.
    assert!(found(&[node("MatMulInteger", "", &["x", "x"], &["y"])], &[]).products.is_empty());
}

#[test]
fn tables_are_float_or_codes() {
    let table = tensor("t_q", UINT8, &[8, 2], &[130; 16]);
    let one = floats("one", &[], &[0.1]);
    let zero = tensor("zero", UINT8, &[], &[128]);
    let gather = node("Gather", "words", &["t_q", "x"], &["rows"]);
    let after = node("DequantizeLinear", "", &["rows", "one", "zero"], &["y"]);
    let q = found(&[gather, after], &[table, one, zero]);
    assert!(q.products[0].table && q.products[0].runs == Some(Runs::WeightOnly));
    assert!((q.weights["t_q"].dequantize()[0] - 0.2).abs() < 1e-6);
    // A float matrix is a table from 4096 values on, below it is an index or a shape.
    for (rows, n) in [(2048, 1), (2047, 0)] {
        let float = floats("t", &[rows, 2], &vec![0.5; rows as usize * 2]);
        let q = found(&[node("Gather", "words", &["t", "x"], &["y"])], &[float]);
        assert_eq!(q.products.len(), n, "{rows}");
    }
    // Behind operators that only move.
    let nodes = [node("Transpose", "", &["m"], &["mt"]), node("MatMul", "p", &["x", "mt"], &["y"])];
    let q = found(&nodes, &[floats("m", &[2, 4], &[0.5; 8])]);
    assert_eq!((q.products[0].weight.as_str(), q.products[0].runs), ("m", None));
}

#[test]
fn values_outside_the_file_are_read_or_named() {
    let with = |tensor: Vec<u8>| read(model(&[], &[tensor], &[], &[])).unwrap();
    let g = with(outside("w", &[4], "weights.bin", "8"));
    let onnx::graph::Held::Tensor(t) = &g.tensors["w"] else { panic!("{g:?}") };
    assert_eq!(t.to_f32().unwrap(), [1.5; 4]);
    assert_eq!(g.files["weights.bin"], 32);
    for (location, offset, says) in [
        ("gone.bin", "0", "not there"),
        ("weights.bin", "20", "at 20"),
        ("weights.bin", "18446744073709551615", "at "),
    ] {
        let g = with(outside("w", &[4], location, offset));
        assert!(g.absent["w"].contains(says), "{:?}", g.absent);
    }
    // The same bytes under many names.
    let many: Vec<_> = (0..40).map(|i| outside(&format!("w{i}"), &[8], "weights.bin", "0")).collect();
    assert_eq!(read(model(&[], &many, &[], &[])).unwrap().tensors.len(), 40);
}

#[test]
fn paths_do_not_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(dir.path().join("secret.bin"), [0; 64]).unwrap();
    std::fs::write(inner.join("weights.bin"), [0; 64]).unwrap();
    let absolute = dir.path().join("secret.bin").display().to_string();
    for (location, there) in [
        ("weights.bin", true),
        ("./weights.bin", true),
        ("../secret.bin", false),
        (&absolute, false),
        ("", false),
    ] {
        let file = inner.join("model.onnx");
        std::fs::write(&file, model(&[], &[outside("w", &[4], location, "0")], &[], &[])).unwrap();
        let absent = onnx::read(&file).unwrap().absent.len();
        assert_eq!(absent, usize::from(!there), "{location}");
    }
}

#[test]
fn hostile_graphs_get_a_sentence() {
    let refused = |file: Vec<u8>| read(file).expect_err("a hostile graph was accepted").to_string();
    assert!(refused(b"\x08\x08\x12\x02hi".to_vec()).contains("no graph"));
    assert!(refused(Vec::new()).contains("no graph"));
    let (nodes, tensors) = dynamic(&[1; 8], 0.5, "p");
    let whole = model(&nodes, &tensors, &["x"], &["y"]);
    for n in 0..whole.len() {
        // The last field of the model may be missing without a trace.
        if let Ok(cut) = read(whole[..n].to_vec()) {
            assert!(cut.opsets.is_empty() && cut.nodes.len() == 5, "cut at {n}");
        }
    }
    let one = |tensor: Vec<u8>| refused(model(&[], &[tensor], &[], &[]));
    assert!(one(tensor("w", FLOAT, &[1 << 40, 1 << 40], &[])).contains("larger than memory"));
    assert!(one(tensor("w", FLOAT, &[7], &[0; 4])).contains("wrong number of bytes"));
    assert!(one(tensor("w", FLOAT, &[u64::MAX], &[])).contains("negative length"));
    assert!(one(tensor("w", FLOAT, &[1; 9], &[0; 4])).contains("too many axes"));
    assert!(
        refused(model(&vec![Vec::new(); onnx::graph::MAX_NODES + 1], &[], &[], &[]))
            .contains("too many nodes")
    );
    assert!(
        refused(model(&[bytes(1, b"").repeat(onnx::graph::MAX_NAMES + 1)], &[], &[], &[])).contains("names")
    );
    assert!(refused(model(&[bytes(3, b"\xff")], &[], &[], &[])).contains("not UTF-8"));
    // Graphs inside graphs.
    let mut nested = Vec::new();
    for _ in 0..2000 {
        nested = bytes(1, &bytes(5, &bytes(6, &nested)));
    }
    assert!(refused([int(1, 8), bytes(7, &nested)].concat()).contains("nest too deeply"));
    // Numbers one by one: half a byte of file for each byte of memory, within a limit.
    let numbers = bytes(7, &vec![1; onnx::graph::MAX_UNPACKED_BYTES / 8 + 1]);
    let long = [shaped("w", 7, &[(onnx::graph::MAX_UNPACKED_BYTES / 8 + 1) as u64]), numbers].concat();
    assert!(one(long).contains("number by number"));
    let few = [shaped("w", INT8, &[3]), bytes(5, &[1, 2, 127])].concat();
    assert!(read(model(&[], &[few], &[], &[])).is_ok());
}

#[test]
fn graphs_cannot_make_the_search_slow() {
    // Every product's output is read by every cast, and all go round in circles.
    let mut nodes = Vec::new();
    for i in 0..40_000 {
        nodes.push(node("MatMulInteger", "", &["x", "w", "", ""], &["o"]));
        nodes.push(node("Cast", "", &["o"], &["c"]));
        nodes.push(node("Mul", "", &["c", "c"], &["c"]));
        nodes.push(node("Identity", "", &[&format!("a{}", i + 1)], &[&format!("a{i}")]));
    }
    nodes.push(node("Identity", "", &["loop"], &["loop"]));
    nodes.push(node("MatMul", "", &["a0", "loop"], &["y"]));
    let started = Instant::now();
    let q = found(&nodes, &[tensor("w", INT8, &[4, 2], &[1; 8])]);
    assert_eq!(q.products.len(), 40_000);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn shaken_graphs_are_answered() {
    let (nodes, tensors) = dynamic(&[1; 8], 0.5, "p");
    let whole = model(&nodes, &tensors, &["x"], &["y"]);
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    for _ in 0..20_000 {
        let mut file = whole.clone();
        for _ in 0..1 + noise.below(3) {
            let at = noise.below(file.len());
            file[at] = noise.next() as u8;
        }
        if let Ok(graph) = read(file) {
            for q in Quantization::of(&graph).weights.values() {
                assert_eq!(q.dequantize().len(), q.codes.elements());
            }
        }
    }
}
