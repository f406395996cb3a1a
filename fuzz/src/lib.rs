//! One function per reader of untrusted bytes. Each must return, quickly and in bounded memory,
//! whatever it is given; `Err` is a fine answer, a panic is not.

mod artefact;

pub use artefact::{artefact, small_manifests};

use qberta::kernels::mapped::Bytes;
use qberta::runtime::Tokenizer;
use qberta::runtime::tokenize::parse_spm;
use qberta::store::load::parse_config;
use qberta::store::manifest::Manifest;
use qberta::store::onnx::{self, Quantization};
use qberta::store::torch::Entry;
use qberta::store::{safetensors as format, torch};
use qberta::{Context, Isa, Row, Task};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Every target by name, as `cargo xtask fuzz` lists them.
pub const TARGETS: [&str; 9] =
    ["artefact", "config", "manifest", "onnx", "row", "safetensors", "spm", "tokenizer_json", "torch_bin"];

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Replaces libFuzzer's panic hook, which ends the process even for panics that are caught: the
/// tokenizer catches those of the library below it on purpose.
pub fn init() {
    std::panic::set_hook(Box::new(|info| {
        *LAST_PANIC.lock().unwrap_or_else(|e| e.into_inner()) = info.to_string();
    }));
}

/// Runs `target`; a panic that leaves it is the finding.
pub fn guard(target: fn(&[u8]), data: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(data))).is_err() {
        eprintln!("{}", LAST_PANIC.lock().unwrap_or_else(|e| e.into_inner()));
        std::process::abort();
    }
}

/// A file of tensors. What reads must write, and read back equal.
pub fn safetensors(data: &[u8]) {
    let Ok(tensors) = format::read_bytes(&Bytes::from(data.to_vec())) else { return };
    for tensor in tensors.values() {
        let _ = tensor.to_f32();
    }
    let written = format::write(&tensors).expect("what was read can be written");
    let again = format::read_bytes(&Bytes::from(written.clone())).expect("what was written can be read");
    assert!(again == tensors, "tensors changed on the way");
    assert_eq!(
        format::write(&again).expect("written once already"),
        written,
        "bytes depend on more than content"
    );
}

/// A PyTorch file, zip or legacy: to weights as `quantize` reads them, and looked into as `doctor` does.
pub fn torch_bin(data: &[u8]) {
    let file = Bytes::from(data.to_vec());
    let state = torch::read_bytes(&file);
    if let Ok(state) = &state {
        for tensor in state.tensors.values() {
            let _ = tensor.to_f32();
        }
        let written = torch::write(&state.tensors).expect("what was read can be written");
        let again = torch::read_bytes(&Bytes::from(written)).expect("what was written can be read");
        assert!(again.tensors == state.tensors, "tensors changed on the way");
    }
    match (torch::inspect::inspect_bytes(&file), state) {
        (Ok(seen), state) => {
            for entry in seen.entries.values() {
                dequantize(entry);
            }
            // What is weights for one is weights for the other.
            for (name, tensor) in state.into_iter().flat_map(|s| s.tensors) {
                match &seen.entries[&name] {
                    Entry::Tensor { tensor: other, .. } => assert!(other == &tensor, "{name}"),
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
        (Err(why), Ok(_)) => panic!("weights that cannot be looked into: {why}"),
        (Err(_), Err(_)) => {}
    }
}

/// An ONNX graph. A file beside it is there under any name.
pub fn onnx(data: &[u8]) {
    let file = Bytes::from(data.to_vec());
    let beside = Bytes::from(vec![1; 64]);
    let Ok(graph) = onnx::read_bytes(&file, |_| Some(beside.clone())) else { return };
    for q in Quantization::of(&graph).weights.values() {
        assert_eq!(q.dequantize().len(), q.codes.elements());
    }
}

fn dequantize(entry: &Entry) {
    match entry {
        Entry::Quantized(q) => assert_eq!(q.dequantize().len(), q.codes.elements()),
        Entry::Packed { weight, .. } => dequantize(weight),
        _ => {}
    }
}

/// `config.json` to an architecture, for the head it names and for every other.
pub fn config(data: &[u8]) {
    let Ok(config) = parse_config(data) else { return };
    let tasks = std::iter::once(None).chain(Task::ALL.iter().map(|(task, _)| Some(*task)));
    for task in tasks {
        if let Ok(arch) = qberta::model::Architecture::from_config(&config, task) {
            let _ = (arch.outputs(), arch.length_limit(), arch.attention_width());
            if arch.layers <= 4 {
                let _ = qberta::store::layout::modules(&arch);
            }
        }
    }
}

/// A SentencePiece model, and the tokenizer built from it.
pub fn spm(data: &[u8]) {
    if parse_spm(data).is_ok() {
        encode_with("spm.model", data);
        encode_with("sentencepiece.bpe.model", data);
    }
}

/// A `tokenizer.json`.
pub fn tokenizer_json(data: &[u8]) {
    encode_with("tokenizer.json", data);
}

fn encode_with(file: &str, data: &[u8]) {
    let lookup = |name: &str| (name == file).then(|| data.to_vec());
    let Ok(Some(tokenizer)) = Tokenizer::from_files(lookup) else { return };
    let _ = (tokenizer.mask(), tokenizer.pad_id(), tokenizer.vocabulary());
    for text in ["", "Hello, world!  naïve ﬁ 日本 \u{1f600}\n\t x", "[MASK] <mask> ▁ ##a"] {
        if let Ok(encoded) = tokenizer.encode(text, None, Some(12)) {
            assert!(encoded.ids.len() <= 12, "longer than the limit");
            let _ = tokenizer.decode(&encoded.ids);
        }
    }
    let _ = tokenizer.encode("a pair", Some("of texts"), Some(7));
    let _ = tokenizer.windows("who?", "somebody did something somewhere to someone", 9, 2);
}

/// A manifest. What parses strictly must seal to the same bytes.
pub fn manifest(data: &[u8]) {
    if let Ok(mut manifest) = Manifest::parse(data, true) {
        assert_eq!(manifest.seal(), data, "strict means canonical");
    }
    if let Ok(mut manifest) = Manifest::parse(data, false) {
        let sealed = manifest.seal();
        Manifest::parse(&sealed, true).expect("what was sealed is strict");
    }
}

/// A line of input.
pub fn row(data: &[u8]) {
    if let Ok(line) = std::str::from_utf8(data)
        && let Ok(row) = Row::parse(line)
    {
        let _ = row.kind();
    }
}

/// One thread: libFuzzer's coverage counters are not atomic.
fn context() -> Context {
    Context::new(Isa::best(), 1).expect("one thread")
}
