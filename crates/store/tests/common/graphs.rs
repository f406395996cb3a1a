//! Builders of ONNX graphs, honest and hostile: protobuf by hand.

#![allow(dead_code, missing_docs)]

pub fn varint(mut v: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while v > 0x7f {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
    out
}

/// A field that holds a message, a string or bytes.
pub fn bytes(field: u64, body: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
}

/// A field that holds an integer.
pub fn int(field: u64, v: u64) -> Vec<u8> {
    [varint(field << 3), varint(v)].concat()
}

pub const FLOAT: u64 = 1;
pub const UINT8: u64 = 2;
pub const INT8: u64 = 3;

/// A TensorProto without values.
pub fn shaped(name: &str, kind: u64, shape: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|&d| int(1, d)).collect();
    [dims, int(2, kind), bytes(8, name.as_bytes())].concat()
}

/// An initializer of raw bytes.
pub fn tensor(name: &str, kind: u64, shape: &[u64], raw: &[u8]) -> Vec<u8> {
    [shaped(name, kind, shape), bytes(9, raw)].concat()
}

pub fn floats(name: &str, shape: &[u64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor(name, FLOAT, shape, &raw)
}

/// An initializer whose values lie in another file.
pub fn outside(name: &str, shape: &[u64], location: &str, offset: &str) -> Vec<u8> {
    let entry = |k: &str, v: &str| bytes(13, &[bytes(1, k.as_bytes()), bytes(2, v.as_bytes())].concat());
    [shaped(name, FLOAT, shape), entry("location", location), entry("offset", offset), int(14, 1)].concat()
}

pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let names =
        |field, list: &[&str]| list.iter().flat_map(|n| bytes(field, n.as_bytes())).collect::<Vec<u8>>();
    [names(1, inputs), names(2, outputs), bytes(3, name.as_bytes()), bytes(4, op.as_bytes())].concat()
}

/// An attribute that is an integer.
pub fn attribute(name: &str, v: u64) -> Vec<u8> {
    bytes(5, &[bytes(1, name.as_bytes()), int(3, v)].concat())
}

/// A model of one graph with the inputs and outputs named.
pub fn model(nodes: &[Vec<u8>], tensors: &[Vec<u8>], inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let graph: Vec<u8> = nodes
        .iter()
        .map(|n| bytes(1, n))
        .chain(tensors.iter().map(|t| bytes(5, t)))
        .chain(inputs.iter().map(|n| bytes(11, &bytes(1, n.as_bytes()))))
        .chain(outputs.iter().map(|n| bytes(12, &bytes(1, n.as_bytes()))))
        .flatten()
        .collect();
    let opset = int(2, 17);
    [int(1, 8), bytes(2, b"onnx.quantize"), bytes(3, b"0.1.0"), bytes(7, &graph), bytes(8, &opset)].concat()
}

/// `x` times an int8 matrix [4, 2], as onnxruntime's quantize_dynamic writes it.
pub fn dynamic(codes: &[i8; 8], scale: f32, name: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let raw: Vec<u8> = codes.iter().map(|c| c.cast_unsigned()).collect();
    let quantize = node("DynamicQuantizeLinear", "", &["x"], &["x_q", "x_s", "x_z"]);
    let product = node("MatMulInteger", name, &["x_q", "w_quantized", "x_z", "w_zero_point"], &["y_i"]);
    let nodes = vec![
        quantize,
        product,
        node("Cast", "", &["y_i"], &["y_f"]),
        node("Mul", "", &["x_s", "w_scale"], &["s"]),
        node("Mul", "", &["y_f", "s"], &["y"]),
    ];
    let tensors = vec![
        tensor("w_quantized", INT8, &[4, 2], &raw),
        floats("w_scale", &[], &[scale]),
        tensor("w_zero_point", INT8, &[], &[0]),
    ];
    (nodes, tensors)
}
