//! Whole checkpoints and artefacts with a few things wrong: the input is a list of edits, because a
//! mutated 50 kB weight file would be refused at its first digest.

use qberta::kernels::mapped::Bytes;
use qberta::model::{Batch, Native, Sequence, forward};
use qberta::store::manifest::{Decision, Group, Input, Manifest, Weight};
use qberta::store::{Dtype, Source, Tensor};
use qberta::toolkit::{Calibration, Conditions, Method, quantize_under};
use qberta::{Context, Recipe, Request, quantize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Tiny golden checkpoints, one of each shape of code path.
const CASES: [&str; 8] = [
    "v3-sequence",
    "v1-sequence",
    "bert-sequence",
    "v3-mlm-legacy",
    "v3-conv3",
    "v1-talking-head",
    "roberta-token",
    "electra-sequence",
];

/// Those of them that are quantized with stored grids too.
const STATIC_CASES: [&str; 2] = ["v3-sequence", "v1-sequence"];

/// Those of them that are quantized to 4 bits too, but for what 32 does not divide.
const INT4_CASES: [&str; 3] = ["v3-sequence", "v1-sequence", "v3-mlm-legacy"];

const INT4_RECIPE: &str = "name = \"four\"\nbase = \"w4a8\"\n[linears]\nweight = \"int4\"\ngroup = 32\n[words]\nweight = \"int4\"\n\
    group = 32\n[[rules]]\nmodules = 're:layer\\.\\d+\\.output\\.dense'\nweight = \"int8\"\n";

struct Base {
    config: Map<String, Value>,
    manifest: Option<Manifest>,
    tensors: BTreeMap<String, Tensor>,
}

static CONTEXT: LazyLock<Context> = LazyLock::new(crate::context);

/// Each case as it is, then as the artefact that `quantize` makes of it.
static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden");
    let scratch = std::env::temp_dir().join(format!("qberta-fuzz-{}", std::process::id()));
    let recipe = Recipe::new("dynamic", &[]).expect("the default recipe");
    let mut bases = Vec::new();
    for case in CASES {
        let model = golden.join(case);
        bases.push(read(&model));
        let out = scratch.join(case);
        std::fs::create_dir_all(&scratch).expect("scratch directory");
        let request = Request { model: &model, out: &out, recipe: &recipe, task: None };
        quantize(&request, &CONTEXT, &()).unwrap_or_else(|e| panic!("{case}: {e}"));
        // The memory maps outlive the directory.
        bases.push(read(&out));
    }
    let recipe = Recipe::new("static", &[]).expect("the static recipe");
    for case in STATIC_CASES {
        let (model, out) = (golden.join(case), scratch.join(format!("{case}-static")));
        let request = Request { model: &model, out: &out, recipe: &recipe, task: None };
        let sequences: Vec<Sequence> = (0..4).map(|i| Sequence::of(vec![i, 1, 2, 3, i])).collect();
        let calibration = Some(Calibration { sequences: &sequences, method: Method::MinMax });
        let conditions = Conditions { calibration, gate: None };
        quantize_under(&request, conditions, &CONTEXT, &()).unwrap_or_else(|e| panic!("{case}: {e}"));
        bases.push(read(&out));
    }
    let recipe = Recipe::parse(INT4_RECIPE, "four.toml").expect("the 4-bit recipe");
    for case in INT4_CASES {
        let (model, out) = (golden.join(case), scratch.join(format!("{case}-int4")));
        let request = Request { model: &model, out: &out, recipe: &recipe, task: None };
        quantize(&request, &CONTEXT, &()).unwrap_or_else(|e| panic!("{case}: {e}"));
        bases.push(read(&out));
    }
    let _ = std::fs::remove_dir_all(&scratch);
    bases
});

fn read(dir: &Path) -> Base {
    let source = Source::open(dir, None).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    Base { config: source.config, manifest: source.manifest, tensors: source.tensors }
}

/// Real manifests, cut to a size that mutates well: one of a dynamic artefact, one of a static one, one with 4 bits.
pub fn small_manifests() -> [Vec<u8>; 3] {
    let mut manifests = BASES.iter().filter_map(|b| b.manifest.as_ref());
    let dynamic = manifests.next().expect("every other base is an artefact").clone();
    let calibrated = manifests.find(|m| m.calibration.is_some()).expect("some bases are static").clone();
    let four = manifests.find(|m| m.format_version == 3).expect("some bases have 4 bits").clone();
    [dynamic, calibrated, four].map(small)
}

fn small(mut manifest: Manifest) -> Vec<u8> {
    manifest.probes.truncate(1);
    for probe in &mut manifest.probes {
        probe.bits.truncate(16);
    }
    let last = |map: &BTreeMap<String, String>| map.last_key_value().map(|(k, v)| (k.clone(), v.clone()));
    manifest.tensors = last(&manifest.tensors).into_iter().collect();
    let calibrated = manifest.calibration.is_some();
    manifest.plan.retain(|_, d| !calibrated || d.input == Input::TensorStatic);
    manifest.plan = manifest.plan.into_iter().take(2).collect();
    manifest.seal()
}

/// Numbers a damaged or hostile configuration may hold. The largest are there to be refused, not allocated.
fn odd_value(code: u8) -> Value {
    match code % 24 {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(""),
        4 => json!("c2p"),
        5 => json!("p2c|c2p"),
        6 => json!(["c2p", "p2c"]),
        7 => json!("layer_norm"),
        8 => json!("gelu_new"),
        9 => json!([]),
        10 => json!({"0": "a"}),
        11 => json!(-1),
        12 => json!(1.5),
        13 => json!(1e-30),
        14 => json!(1u64 << 31),
        15 => json!(u64::MAX),
        16 => json!(i64::MIN),
        17 => json!(4096),
        n => json!(n - 18),
    }
}

/// `data`: which base, then edits of four bytes each: what, where, with what.
pub fn artefact(data: &[u8]) {
    let Some((&base, edits)) = data.split_first() else { return };
    let base = &BASES[base as usize % BASES.len()];
    let (mut config, mut manifest, mut tensors) =
        (base.config.clone(), base.manifest.clone(), base.tensors.clone());
    for edit in edits.chunks_exact(4).take(16) {
        let (what, place, with) = (edit[0], edit[1] as usize, u16::from_le_bytes([edit[2], edit[3]]));
        apply(what, place, with, &mut config, &mut manifest, &mut tensors);
    }
    let Ok(source) = Source::from_parts(&PathBuf::from("fuzz"), config, manifest, tensors, Vec::new(), None)
    else {
        return;
    };
    let Ok(loaded) = source.load(&CONTEXT) else { return };
    // What loads must run: nothing reachable from a file may panic.
    for ids in [vec![0], vec![1, 2, 3, 0, 1, 2, 3, 0, 5]] {
        if let Ok(batch) = Batch::new(&source.arch, &[Sequence::of(ids)]) {
            forward(&source.arch, &mut Native::new(&loaded.model, &CONTEXT), &batch);
        }
    }
}

fn apply(
    what: u8,
    place: usize,
    with: u16,
    config: &mut Map<String, Value>,
    manifest: &mut Option<Manifest>,
    tensors: &mut BTreeMap<String, Tensor>,
) {
    let low = with as u8;
    let nth =
        |tensors: &BTreeMap<String, Tensor>, n: usize| tensors.keys().nth(n % tensors.len().max(1)).cloned();
    match what % 11 {
        0 => {
            let key = config.keys().nth(place % config.len().max(1)).cloned();
            if let Some(key) = key {
                config.insert(key, odd_value(low));
            }
        }
        1 => {
            const KEYS: [&str; 16] = [
                "architectures",
                "model_type",
                "embedding_size",
                "attention_head_size",
                "conv_kernel_size",
                "conv_groups",
                "talking_head",
                "position_buckets",
                "max_relative_positions",
                "pos_att_type",
                "share_att_key",
                "norm_rel_ebd",
                "type_vocab_size",
                "position_biased_input",
                "num_labels",
                "problem_type",
            ];
            config.insert(KEYS[place % KEYS.len()].into(), odd_value(low));
        }
        2 => *manifest = None,
        3 => {
            if let Some(name) = nth(tensors, place) {
                tensors.remove(&name);
            }
        }
        4 => {
            if let (Some(from), Some(to)) = (nth(tensors, place), nth(tensors, with as usize)) {
                let tensor = tensors[&from].clone();
                tensors.insert(to, tensor);
            }
        }
        5 => {
            if let Some(name) = nth(tensors, place) {
                reshape(tensors, &name, with);
            }
        }
        6 => {
            if let Some(name) = nth(tensors, place) {
                poke(tensors, &name, with);
            }
        }
        7 => {
            if let Some(name) = nth(tensors, place) {
                let dtype = Dtype::ALL[low as usize % Dtype::ALL.len()];
                let (shape, elements) = (tensors[&name].shape().to_vec(), tensors[&name].elements());
                let bytes = vec![(with >> 8) as u8; elements * dtype.bytes()];
                tensors.insert(name, Tensor::new(dtype, shape, Bytes::from(bytes)).expect("sized to fit"));
            }
        }
        8 => {
            let Some(manifest) = manifest else { return };
            if let Some(decision) = manifest.plan.values_mut().nth(place) {
                *decision = decide(low);
            }
        }
        9 => {
            let Some(manifest) = manifest else { return };
            if let Some(name) = nth(tensors, place) {
                manifest.plan.insert(name.trim_end_matches(".weight").to_owned(), decide(low));
            }
        }
        _ => {
            // Channels that a module's input repeats: any numbers, in any order.
            let Some(found) = manifest else { return };
            let Some(module) = found.plan.keys().nth(place % found.plan.len().max(1)).cloned() else {
                return;
            };
            let channels = [u64::from(low), u64::from(with >> 8), odd_value(low).as_u64().unwrap_or(0)];
            let mut value = serde_json::to_value(&*found).expect("a manifest is JSON");
            value["splits"][module] = json!(channels[..1 + place % 3]);
            if let Ok(edited) = serde_json::from_value(value) {
                *manifest = Some(edited);
            }
        }
    }
}

fn decide(code: u8) -> Decision {
    const INPUTS: [Input; 4] =
        [Input::Float, Input::TokenSymmetric, Input::TokenAsymmetric, Input::TensorStatic];
    let input = INPUTS[code as usize % 4];
    let weights = [Weight::Float, Weight::Int8Channel, Weight::Int4(Group::G32), Weight::Int4(Group::G64)];
    let weight = weights[code as usize / 4 % weights.len()];
    Decision { input, weight }
}

/// Another shape, with as many bytes as it needs.
fn reshape(tensors: &mut BTreeMap<String, Tensor>, name: &str, with: u16) {
    let tensor = &tensors[name];
    let mut shape = tensor.shape().to_vec();
    let dim = (with >> 8) as usize % (shape.len() + 1);
    match (shape.get_mut(dim), with as u8 % 4) {
        (Some(d), 0) => *d += 1,
        (Some(d), 1) => *d = d.saturating_sub(1),
        (Some(d), 2) => *d = 0,
        (Some(_), _) => {
            shape.remove(dim);
        }
        (None, _) => shape.push(1),
    }
    let elements: usize = shape.iter().product();
    let mut bytes = tensor.bytes().to_vec();
    bytes.resize(elements * tensor.dtype().bytes(), 0);
    let tensor = Tensor::new(tensor.dtype(), shape, Bytes::from(bytes)).expect("sized to fit");
    tensors.insert(name.to_owned(), tensor);
}

/// Another value in one element: not finite, huge, zero, or the forbidden code.
fn poke(tensors: &mut BTreeMap<String, Tensor>, name: &str, with: u16) {
    let tensor = &tensors[name];
    let mut bytes = tensor.bytes().to_vec();
    let size = tensor.dtype().bytes();
    let at = (with >> 8) as usize * 37 % tensor.elements().max(1) * size;
    let odd = [f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0, 0.0, -1.0, f32::MAX, 1e20, -0.0];
    let value: [u8; 4] = odd[with as usize % odd.len()].to_le_bytes();
    if let Some(place) = bytes.get_mut(at..at + size) {
        match size {
            1 => place[0] = 0x80, // -128 as a code
            2 => place.copy_from_slice(&value[2..]),
            4 => place.copy_from_slice(&value),
            _ => place.fill(0xff),
        }
    }
    let tensor = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), Bytes::from(bytes)).expect("same size");
    tensors.insert(name.to_owned(), tensor);
}
