//! Writes the first inputs of each target: `seeds DIR` makes `DIR/<target>/*`.
//! Small valid files of the test data, and a few made here where the test data is too large to mutate well.

use qberta::kernels::mapped::Bytes;
use qberta::store::{Dtype, Tensor, safetensors};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

// The coverage flags make even this program refer to libFuzzer's counters.
use libfuzzer_sys as _;

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::env::args_os().nth(1).ok_or("usage: seeds DIR")?;
    let out = Path::new(&out);
    for target in qberta_fuzz::TARGETS {
        std::fs::create_dir_all(out.join(target))?;
    }
    let put = |target: &str, name: &str, bytes: &[u8]| std::fs::write(out.join(target).join(name), bytes);

    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut rows = 0;
    for entry in std::fs::read_dir(testdata.join("golden"))? {
        let dir = entry?.path();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(config) = std::fs::read(dir.join("config.json")) {
            put("config", &name, &config)?;
        }
        if let Ok(bin) = std::fs::read(dir.join("pytorch_model.bin")) {
            put("torch_bin", &name, &bin)?;
        }
        if let Ok(text) = std::fs::read_to_string(dir.join("expected.jsonl"))
            && let Some(line) = text.lines().find(|l| l.len() < 400)
            && rows < 10
        {
            put("row", &name, line.as_bytes())?;
            rows += 1;
        }
    }
    // Of the doctor's files those with every kind of value, short enough to mutate well.
    for entry in std::fs::read_dir(testdata.join("doctor"))? {
        let dir = entry?.path();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for file in ["quantized_model.pt", "qat_model.pt", "model.pt", "observers.pt", "pytorch_model.bin"] {
            match std::fs::read(dir.join(file)) {
                Ok(bytes) if bytes.len() <= 64 << 10 => put("torch_bin", &format!("doctor-{name}"), &bytes)?,
                _ => {}
            }
        }
    }
    for (case, file, target) in [
        ("v3-spm-small", "spm.model", "spm"),
        ("xlmr-spm", "sentencepiece.bpe.model", "spm"),
        ("v1-json", "tokenizer.json", "tokenizer_json"),
        ("v3-json", "tokenizer.json", "tokenizer_json"),
    ] {
        put(target, case, &std::fs::read(testdata.join("tokenizers").join(case).join(file))?)?;
    }
    put("spm", "tiny", &tiny_spm())?;
    put("tokenizer_json", "tiny", TINY_TOKENIZER.as_bytes())?;
    put("tokenizer_json", "tiny-bpe", TINY_BPE.as_bytes())?;
    for (i, line) in ROWS.iter().enumerate() {
        put("row", &format!("form-{i}"), line.as_bytes())?;
    }
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        let tensor = Tensor::new(dtype, vec![2, 3], Bytes::from(vec![1u8; 6 * dtype.bytes()]))?;
        let scalar = Tensor::new(dtype, Vec::new(), Bytes::from(vec![0u8; dtype.bytes()]))?;
        let tensors = BTreeMap::from([("a.weight".to_owned(), tensor), (format!("b{i}"), scalar)]);
        put("safetensors", dtype.name(), &safetensors::write(&tensors)?)?;
    }
    put("safetensors", "empty", &safetensors::write(&BTreeMap::new())?)?;
    let [dynamic, calibrated, four] = qberta_fuzz::small_manifests();
    put("manifest", "sealed", &dynamic)?;
    put("manifest", "static", &calibrated)?;
    put("manifest", "four", &four)?;
    put("torch_bin", "tiny", &tiny_torch())?;
    for (name, graph) in tiny_graphs() {
        put("onnx", name, &graph)?;
    }
    for base in 0..21u8 {
        put("artefact", &format!("base-{base}"), &[base])?;
        put("artefact", &format!("edited-{base}"), &[base, 0, 7, 20, 0, 6, 3, 1, 2, 5, 9, 0, 1, 8, 1, 4, 0])?;
    }
    Ok(())
}

#[path = "../../crates/store/tests/common/graphs.rs"]
mod graphs;

/// An int8 product of each form, a tensor in another file, a tensor of numbers.
fn tiny_graphs() -> Vec<(&'static str, Vec<u8>)> {
    use graphs::{INT8, attribute, bytes, dynamic, floats, model, node, outside, shaped, tensor};
    let (nodes, tensors) = dynamic(&[1, 2, 3, 4, 5, 6, 7, -128], 0.5, "p");
    let stored = [tensor("w_q", INT8, &[4, 2], &[1; 8]), floats("s", &[2], &[0.5, 0.25]), floats("one", &[], &[0.1])];
    let qdq = [
        node("QuantizeLinear", "", &["x", "one"], &["x_q"]),
        node("DequantizeLinear", "", &["x_q", "one"], &["x_d"]),
        [node("DequantizeLinear", "", &["w_q", "s"], &["w"]), attribute("axis", 1)].concat(),
        node("MatMul", "p", &["x_d", "w"], &["y"]),
        node("QLinearMatMul", "p", &["x", "one", "", "w_q", "s", "", "one", ""], &["z"]),
        node("Gather", "t", &["w_q", "x"], &["r"]),
    ];
    let others = [outside("o", &[4], "weights.bin", "8"), [shaped("n", INT8, &[3]), bytes(5, &[1, 2, 3])].concat()];
    vec![
        ("dynamic", model(&nodes, &tensors, &["x"], &["y"])),
        ("static", model(&qdq, &stored, &["x"], &["y"])),
        ("tensors", model(&[], &others, &[], &[])),
    ]
}

const ROWS: [&str; 6] = [
    r#"{"text":"a","text_pair":"b","label":"x"}"#,
    r#"{"question":"a","context":"b"}"#,
    r#"{"text":"a","choices":["b","c"]}"#,
    r#"{"input_ids":[1,2],"token_type_ids":[0,1]}"#,
    r#"{"choices":[{"input_ids":[1]},{"input_ids":[2],"token_type_ids":[0]}]}"#,
    r#"{"text":"\u00e9\ud83d\ude00"}"#,
];

const TINY_TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Strip","strip_left":true,"strip_right":true},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[PAD]","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"[PAD]":{"id":"[PAD]","ids":[0],"tokens":["[PAD]"]}}},"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"model":{"type":"Unigram","unk_id":1,"vocab":[["[PAD]",0.0],["[UNK]",0.0],["▁a",-1.0],["b",-2.0]],"byte_fallback":false}}"#;

const TINY_BPE: &str = r###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":"","end_of_word_suffix":"","fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}"###;

/// Protobuf by hand: pieces `{1: text, 2: score, 3: kind}` in field 1, trainer and normalizer settings.
fn tiny_spm() -> Vec<u8> {
    let mut out = Vec::new();
    for (text, kind) in [
        ("[PAD]", 3u8),
        ("[CLS]", 3),
        ("[SEP]", 3),
        ("[UNK]", 2),
        ("▁", 1),
        ("▁a", 1),
        ("b", 1),
        ("[MASK]", 4),
        ("<0x0A>", 6),
    ] {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend((-1.0f32).to_le_bytes());
        piece.extend([0x18, kind]);
        out.extend([0x0a, piece.len() as u8]);
        out.extend(piece);
    }
    out.extend([0x12, 2, 0x18, 1]); // trainer: unigram
    out.extend([0x1a, 2, 0x18, 1]); // normalizer: add_dummy_prefix
    out
}

/// A stored zip with one pickled state dict of one float tensor, as `torch.save` lays it out.
fn tiny_torch() -> Vec<u8> {
    let pickle: &[u8] = b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x02tq\x07QK\x00K\x02\x85q\x08K\x01\x85q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.";
    let members: [(&str, &[u8]); 4] = [
        ("m/data.pkl", pickle),
        ("m/byteorder", b"little"),
        ("m/data/0", &[0, 0, 128, 63, 0, 0, 0, 64]),
        ("m/version", b"3\n"),
    ];
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let offset = out.len() as u32;
        let mut common = vec![0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc32(bytes).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04\x14\x00");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(bytes);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]); // no comment, disk 0, plain attributes
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, size) = (out.len() as u32, directory.len() as u32);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0\x04\0\x04\0");
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}
