//! What the doctor rescues from every file of testdata/doctor, and the way back out.

mod common;
#[path = "../../store/tests/common/mod.rs"]
mod pickles;

use assert_cmd::Command;
use common::*;
use pickles::{Pickle, archive};
use qberta::runtime::Options;
use qberta::store::torch::{self, Entry};
use qberta::store::{Dtype, Manifest, Source, Tensor, safetensors};
use qberta::toolkit::doctor::rescue;
use qberta::toolkit::doctor::weights::to_float;
use qberta::toolkit::export::{Target, export};
use qberta::{Context, Isa, Row, Session, verify};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Rescues `case` into `out`.
fn rescued(case: &str, out: &Path) -> qberta::toolkit::doctor::Rescued {
    let (file, base) = fixture(case);
    rescue(&file, &base, out, &context(), &()).unwrap_or_else(|e| panic!("{case}: {e}"))
}

#[test]
fn rescued_codes_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut lowest = 0;
    for case in ["dynamic", "dynamic-legacy", "dynamic-v1", "dynamic-per-channel", "code-minus-128", "module"]
    {
        let out = dir.path().join(case);
        let report = rescued(case, &out);
        assert!(report.from_base.is_empty() && report.dequantized.is_empty(), "{case}: {report:?}");
        // The same bits on every instruction set, with the lowest code too.
        for isa in Isa::available() {
            verify(&out, &Context::new(isa, 1).unwrap()).unwrap();
        }
        let artefact = safetensors::read(&out.join("model.safetensors")).unwrap();
        let file = torch::inspect(&fixture(case).0).unwrap();
        let mut modules = 0;
        for (key, entry) in &file.entries {
            let Entry::Packed { weight, .. } = entry else { continue };
            let Entry::Quantized(q) = &**weight else { panic!("{case}: {key}") };
            let module = key.strip_suffix("._packed_params._packed_params").unwrap();
            let codes = &artefact[&format!("{module}.weight")];
            assert_eq!(codes, &q.codes, "{case}: {module}");
            lowest += codes.i8().unwrap().iter().filter(|&&c| c == -128).count();
            let scales = artefact[&format!("{module}.weight_scale")].to_f32().unwrap();
            let wanted: Vec<f32> = (0..scales.len()).map(|i| q.scales[i % q.scales.len()] as f32).collect();
            assert_eq!(bits(&scales), bits(&wanted), "{case}: {module}");
            modules += 1;
        }
        assert_eq!(report.int8.len(), modules, "{case}");
        let manifest = Manifest::parse(&fs::read(out.join("qberta.json")).unwrap(), true).unwrap();
        assert_eq!(manifest.recipe.name, "rescued");
        assert!(manifest.source.keys().any(|k| k.starts_with("base/")), "{:?}", manifest.source);
        assert!(manifest.source.contains_key("quantized_model.pt"));
    }
    assert!(lowest > 60, "the lowest code occurs and is kept: {lowest}");
}

#[test]
fn rescued_weights_dequantize_to_those_of_torch_and_answer_as_torch_does() {
    let dir = tempfile::tempdir().unwrap();
    println!(
        "| case | float run of torch's dequantized weights | ours from torch's quantized run | ours from float \
         | torch's from float |\n|---|---|---|---|---|"
    );
    for record in index() {
        let case = record["case"].as_str().unwrap();
        let wanted = fixtures().join(case).join("dequantized.safetensors");
        if !wanted.exists() {
            continue;
        }
        let (out, float) = (dir.path().join(case), dir.path().join(format!("{case}-float")));
        rescued(case, &out);
        let artefact = Source::open(&out, None).unwrap();
        let values = to_float(&artefact.tensors).unwrap();
        for (name, tensor) in safetensors::read(&wanted).unwrap() {
            assert_eq!(values[&name], tensor, "{case}: {name}");
        }
        let Ok(text) = fs::read_to_string(fixtures().join(case).join("logits.json")) else { continue };
        let logits: Value = serde_json::from_str(&text).unwrap();
        export(&out, &float, Target::HuggingFace, &context()).unwrap();
        let exact = away(&float, &logits, "dequantized").unwrap();
        // Same weights, float on both sides: what transformers computes.
        assert!(exact < 1e-5, "{case}: {exact}");
        let close = away(&out, &logits, "quantized");
        // Torch quantizes a whole batch of activations with one scale, we each token with its own, so the two
        // differ by the error of torch's activations rather than ours.
        let (Some(close), Some(ours)) = (close, away(&out, &logits, "dequantized")) else { continue };
        let torchs = numbers(&logits["quantized"])
            .iter()
            .zip(numbers(&logits["dequantized"]))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        println!("| {case} | {exact:.1e} | {close:.4} | {ours:.4} | {torchs:.4} |");
        assert!(close < 0.1, "{case}: {close}");
        assert!(ours < 0.05 && close <= ours + torchs + 1e-5, "{case}: {ours} {torchs}");
    }
}

/// All numbers of a list of lists.
fn numbers(rows: &Value) -> Vec<f32> {
    let rows = rows.as_array().into_iter().flatten().filter_map(Value::as_array);
    rows.flatten().filter_map(Value::as_f64).map(|v| v as f32).collect()
}

/// The largest difference of the model at `dir` from the logits called `key`, where there are any.
fn away(dir: &Path, logits: &Value, key: &str) -> Option<f32> {
    let wanted = logits[key].as_array()?;
    let session = Session::open(dir, None, context()).unwrap();
    let rows = logits["input_ids"].as_array()?.iter().zip(logits["attention_mask"].as_array()?);
    let mut worst = 0.0f32;
    for ((ids, mask), wanted) in rows.zip(wanted) {
        let kept: Vec<&Value> = ids
            .as_array()?
            .iter()
            .zip(mask.as_array()?)
            .filter(|(_, m)| m.as_u64() == Some(1))
            .map(|(id, _)| id)
            .collect();
        let row = Row::parse(&json!({ "input_ids": kept }).to_string()).unwrap();
        let answer = session.raw(&[row], &Options::standard()).unwrap();
        let wanted: Vec<f32> = wanted.as_array()?.iter().map(|v| v.as_f64().unwrap() as f32).collect();
        worst = worst.max(largest_difference(&answer[0].values(), &wanted));
    }
    Some(worst)
}

#[test]
fn what_is_broken_or_missing_comes_from_the_base_and_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    for (case, from_base, int8) in [
        ("nan-scale", 1, 7),
        ("zero-scale", 1, 7),
        ("bad-channel-scales", 1, 7),
        ("saturated-channels", 2, 6),
        ("missing-head-quantized", 4, 6),
        ("missing-head", 4, 0),
        ("never-calibrated", 0, 8),
        ("quantized-layernorm", 0, 8),
        ("unquantized-input", 0, 14),
        ("static-wrapped", 0, 8),
        ("qat-converted", 0, 8),
        ("observers-left", 0, 0),
        ("fake-quant-left", 0, 0),
        ("tied-dynamic", 0, 8),
        ("trainer-checkpoint-quantized", 0, 8),
    ] {
        let out = dir.path().join(case);
        let report = rescued(case, &out);
        assert_eq!((report.from_base.len(), report.int8.len()), (from_base, int8), "{case}: {report:?}");
        assert!(report.max_difference.is_finite(), "{case}");
        verify(&out, &context()).unwrap();
    }
    // A QAT file whose trained weights are float keeps them.
    let trained = Source::open(&dir.path().join("fake-quant-left"), None).unwrap();
    let base = Source::open(&fixture("fake-quant-left").1, None).unwrap();
    let name = "classifier.weight";
    assert_ne!(trained.tensors[name], base.tensors[name], "two steps of training");
    // Nothing is overwritten, and an error leaves nothing behind.
    let (file, base) = fixture("dynamic");
    let again = rescue(&file, &base, &dir.path().join("nan-scale"), &context(), &()).unwrap_err();
    assert!(again.to_string().contains("not empty"), "{again}");
    let other = rescue(&file, &fixtures().join("base-v1"), &dir.path().join("x"), &context(), &());
    assert!(other.is_err() || dir.path().join("x").exists());
}

#[test]
fn a_state_that_cannot_be_read_is_not_called_missing() {
    let dir = tempfile::tempdir().unwrap();
    // A convolution of some other version of torch, with one value less in its tuple.
    let module = "deberta.encoder.conv.conv";
    let words = "deberta.embeddings.word_embeddings.weight";
    let pickle = Pickle::new().op(b"}").text(words).tensor("0", 97 * 16, (0, &[97, 16], &[16, 1])).op(b"s");
    let pickle = pickle.text(module).global("torch.ao.nn.quantized.modules.conv", "Conv1d").op(b")\x81(");
    let pickle = pickle.op(&b"N".repeat(9)).tensor("0", 97 * 16, (0, &[3], &[1])).op(b"NNN\x89tbs").stop();
    let file = dir.path().join("model.pt");
    fs::write(&file, archive(&pickle, &[("0", &[0; 4 * 97 * 16])])).unwrap();
    let report =
        rescue(&file, &fixtures().join("base-v2"), &dir.path().join("out"), &context(), &()).unwrap();
    for part in ["weight", "bias"] {
        let reason = &report.from_base[&format!("{module}.{part}")];
        assert!(reason.contains("Conv1d, whose state cannot be read"), "{part}: {reason}");
    }
    assert_eq!(report.from_base["pooler.dense.weight"], "the file does not hold it");
    // As torch writes it, nothing of it comes from the base, and it is listed with what became of it.
    for case in ["static-conv", "module-conv"] {
        let report = rescued(case, &dir.path().join(case));
        assert!(report.from_base.is_empty(), "{case}: {report:?}");
        let became: Vec<&String> = report.dequantized.keys().collect();
        assert_eq!(became, [&format!("{module}.weight")], "{case}");
    }
}

#[test]
fn a_decoder_of_its_own_is_not_tied_again() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["tied-dynamic", "tied-differ", "tied-shared"] {
        let (out, float) = (dir.path().join(case), dir.path().join(format!("{case}-float")));
        let report = rescued(case, &out);
        export(&out, &float, Target::HuggingFace, &context()).unwrap();
        let own = case != "tied-shared";
        for (dir, name) in
            [(&out, "cls.predictions.decoder.weight"), (&float, "cls.predictions.decoder.bias")]
        {
            let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["tie_word_embeddings"] == false, own, "{case}");
            let tensors = safetensors::read(&dir.join("model.safetensors")).unwrap();
            assert_eq!(tensors.contains_key(name), own, "{case}: {name}");
        }
        assert_eq!(report.int8.iter().any(|m| m.ends_with("decoder")), case == "tied-dynamic", "{case}");
        // With weights of its own it has a bias of its own, as Hugging Face's class does.
        let tensors = safetensors::read(&out.join("model.safetensors")).unwrap();
        assert_eq!(
            tensors.get("cls.predictions.decoder.bias"),
            own.then(|| &tensors["cls.predictions.bias"])
        );
        verify(&out, &context()).unwrap();
    }
}

#[test]
fn the_command_rescues_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let (file, base) = fixture("nan-scale");
    let out = dir.path().join("int8");
    let (stdout, stderr, status) =
        doctor(&[path(&file), "--base", path(&base), "--rescue", path(&out), "--json"]);
    assert_eq!(status, 1, "the file itself is still broken: {stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["rescued"]["int8"].as_array().unwrap().len(), 7);
    verify(&out, &context()).unwrap();
    let (stdout, ..) = doctor(&[path(&file), "--base", path(&base)]);
    for says in ["non-finite-scale", "query_proj: scale NaN", "cause:", "cure:", "strict=False"] {
        assert!(stdout.contains(says), "{says}: {stdout}");
    }
}

#[test]
fn a_rescue_that_fails_does_not_lose_the_diagnosis() {
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("mine"), "").unwrap();
    let out = dir.path().join("out");
    // A target with content, and a file that holds nothing: one is sound and one is not.
    for (case, base, out, says, kind, found) in [
        ("dynamic", "base-v3", &taken, "not empty", "input", &[][..]),
        ("module-save-failed", "base-v3", &out, "nothing to rescue", "corrupt", &["unfinished-save"][..]),
    ] {
        let (file, base) = (fixture(case).0, fixtures().join(base));
        let args = [path(&file), "--base", path(&base), "--rescue", path(out)];
        let (stdout, stderr, status) = doctor(&[&args[..], &["--json"]].concat());
        assert_eq!(status, 2, "{case}: {stderr}");
        // The whole of standard output is one value.
        let answer: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{case}: {e}: {stdout}"));
        let names: Vec<&str> = answer["diagnosis"]["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, found, "{case}");
        assert_eq!((&answer["kind"], &answer["rescued"]), (&json!(kind), &Value::Null), "{case}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.starts_with("--rescue") && error.contains(says), "{case}: {error}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{case}: {stderr}");
        assert!(answer.get("hint").is_some(), "{case}: {stdout}");
        // For people: what was found on standard output, the error after it.
        let (plain, stderr, status) = doctor(&args);
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(status == 2 && plain.lines().next().unwrap().contains(name), "{case}: {plain}");
        assert!(stderr.contains(says) && plain.contains("made by"), "{case}: {plain}");
    }
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);
    assert!(!out.exists());
}

#[test]
fn what_is_exported_reads_back_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["v3-sequence", "v1-sequence", "v3-mlm-legacy", "bert-mlm", "bert-features", "v3-conv3"] {
        let (_, record) = golden_cases().into_iter().find(|(c, _)| c == case).unwrap();
        let int8 = dir.path().join(case);
        let recipe = qberta::Recipe::new("dynamic", &[]).unwrap();
        let model = golden(case);
        let request =
            qberta::Request { model: &model, out: &int8, recipe: &recipe, task: Some(task(&record)) };
        qberta::quantize(&request, &context(), &()).unwrap();
        let (float, pt) = (dir.path().join(format!("{case}-float")), dir.path().join(format!("{case}.pt")));
        let done = export(&int8, &float, Target::HuggingFace, &context()).unwrap();
        assert!(done.dequantized > 0, "{case}");
        export(&int8, &pt, Target::Torch, &context()).unwrap();
        assert_eq!(export(&int8, &pt, Target::Torch, &context()).unwrap_err().kind(), qberta::Kind::Input);
        // The same numbers in both, and the ones the artefact stands for.
        let source = Source::open(&float, None).unwrap();
        let config: Value = serde_json::from_slice(&fs::read(float.join("config.json")).unwrap()).unwrap();
        assert!(config.get("quantization_config").is_none());
        let expected: BTreeMap<String, Tensor> =
            to_float(&Source::open(&int8, None).unwrap().tensors).unwrap();
        assert_eq!(source.tensors, expected, "{case}");
        let dict = torch::read(&pt).unwrap().tensors;
        for (name, tensor) in &expected {
            assert_eq!(&dict[name], tensor, "{case}: {name}");
            assert_eq!(tensor.dtype(), Dtype::F32);
        }
        // Beside config.json the state dict is a checkpoint, with the bits of the directory.
        let beside = dir.path().join(format!("{case}-bin"));
        fs::create_dir(&beside).unwrap();
        fs::copy(float.join("config.json"), beside.join("config.json")).unwrap();
        fs::copy(&pt, beside.join("pytorch_model.bin")).unwrap();
        let rows: Vec<Row> = common::expected(&golden(case)).into_iter().map(|(r, _)| r).collect();
        let answers = |dir: &Path| {
            let session = Session::open(dir, Some(task(&record)), context()).unwrap();
            let raw = session.raw(&rows, &Options::standard()).unwrap();
            raw.iter().flat_map(|a| bits(&a.values())).collect::<Vec<u32>>()
        };
        assert_eq!(answers(&float), answers(&beside), "{case}");
    }
}

#[test]
fn the_command_exports_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("base-v3");
    let run = |args: &[&str]| {
        let output =
            Command::cargo_bin("qberta").unwrap().current_dir(dir.path()).args(args).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code().unwrap())
    };
    let export = |out: &str, to: &str| run(&["export", path(&model), "-o", out, "--to", to, "--json"]);
    let (stdout, stderr, status) = export("float.pt", "torch");
    assert_eq!(status, 0, "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    let bytes = fs::metadata(dir.path().join("float.pt")).unwrap().len();
    assert_eq!((&answer["to"], &answer["dequantized"]), (&json!("torch"), &json!(0)));
    assert_eq!(answer["bytes"], bytes);
    // What was exported is sound, in either form.
    assert_eq!(export("float", "huggingface").2, 0);
    for sound in ["float.pt", "float"] {
        assert_eq!(run(&["doctor", sound]).2, 0, "{sound}");
    }
    fs::create_dir(dir.path().join("empty")).unwrap();
    for (out, to, says) in [
        ("float.pt", "torch", "output file exists"),
        ("empty", "torch", "output file is a directory"),
        ("float", "huggingface", "not empty"),
        ("float.pt", "huggingface", "not a directory"),
        ("nowhere/float.pt", "torch", "create the parent directory"),
        ("x", "onnx", "huggingface or torch"),
    ] {
        let (_, stderr, status) = export(out, to);
        assert!(status == 2 && stderr.contains(says), "{out}: {stderr}");
    }
    assert_eq!(fs::metadata(dir.path().join("float.pt")).unwrap().len(), bytes);
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3, "nothing half written is left");
}

/// Two artefacts of the same weights: the first, and what its export quantizes to.
#[test]
fn what_is_exported_quantizes_to_the_same_artefact() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = qberta::Recipe::new("dynamic", &[]).unwrap();
    for case in ["v3-sequence", "v1-sequence", "bert-sequence", "roberta-token", "v3-mlm-legacy"] {
        let (_, record) = golden_cases().into_iter().find(|(c, _)| c == case).unwrap();
        let [first, float, second] =
            ["int8", "float", "again"].map(|n| dir.path().join(format!("{case}-{n}")));
        let quantize = |model: &Path, out: &Path| {
            let request = qberta::Request { model, out, recipe: &recipe, task: Some(task(&record)) };
            qberta::quantize(&request, &context(), &()).unwrap();
        };
        quantize(&golden(case), &first);
        export(&first, &float, Target::HuggingFace, &context()).unwrap();
        quantize(&float, &second);
        let [a, b] = [&first, &second].map(|d| safetensors::read(&d.join("model.safetensors")).unwrap());
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{case}");
        for (name, tensor) in &a {
            if tensor.dtype() == Dtype::I8 || name.ends_with("_scale") {
                assert_eq!(&b[name], tensor, "{case}: {name}");
            }
        }
    }
}

#[test]
fn an_int8_word_table_brings_its_projection() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixtures().join("base-v3-mlm");
    let (word, decoder) = ("deberta.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight");
    for linears in [true, false] {
        let (file, out) =
            (dir.path().join(format!("{linears}.pt")), dir.path().join(format!("{linears}-int8")));
        let chosen = |m: &str| m.ends_with("word_embeddings") || linears && !m.contains("embeddings");
        fs::write(&file, quantize_dynamic(&base, chosen)).unwrap();
        let report = rescue(&file, &base, &out, &context(), &()).unwrap();
        assert!(report.int8.iter().any(|m| m == "cls.predictions.decoder"), "{report:?}");
        let tensors = safetensors::read(&out.join("model.safetensors")).unwrap();
        for end in ["", "_scale"] {
            assert_eq!(tensors[&format!("{decoder}{end}")], tensors[&format!("{word}{end}")]);
        }
        verify(&out, &context()).unwrap();
        // The numbers are those of the float model with the same weights.
        let float = dir.path().join(format!("{linears}-float"));
        export(&out, &float, Target::HuggingFace, &context()).unwrap();
        let row = Row::parse(r#"{"input_ids": [1, 5, 9, 33, 2]}"#).unwrap();
        let [ours, exact] = [&out, &float].map(|d| {
            let session = Session::open(d, None, context()).unwrap();
            session.raw(std::slice::from_ref(&row), &Options::standard()).unwrap()[0].values()
        });
        // Without int8 linears nothing but the order of the sums differs.
        let most = if linears { 0.05 } else { 1e-5 };
        assert!(largest_difference(&ours, &exact) < most, "{}", largest_difference(&ours, &exact));
    }
}

/// A state dict of the model at `dir` with the modules that are `chosen` as packed qint8 with one scale, as
/// `quantize_dynamic` leaves linears.
fn quantize_dynamic(dir: &Path, chosen: impl Fn(&str) -> bool) -> Vec<u8> {
    let float = safetensors::read(&dir.join("model.safetensors")).unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let strides = |shape: &[i64]| if let [_, width] = shape { vec![*width, 1] } else { vec![1] };
    let mut storages: Vec<(String, Vec<u8>)> = Vec::new();
    let mut pickle = Pickle::new().op(b"}(");
    for (name, tensor) in &float {
        let shape: Vec<i64> = tensor.shape().iter().map(|&n| n as i64).collect();
        let count = tensor.elements() as i64;
        let values = tensor.to_f32().unwrap();
        let key = storages.len().to_string();
        let module = name.strip_suffix(".weight").filter(|m| shape.len() == 2 && chosen(m));
        let packed = |name: &str| {
            let module = name.strip_suffix(".bias").filter(|m| chosen(m))?;
            float.get(&format!("{module}.weight")).filter(|w| w.shape().len() == 2)
        };
        let Some(module) = module else {
            if packed(name).is_none() {
                pickle = pickle.text(name).tensor(&key, count, (0, &shape, &strides(&shape)));
                storages.push((key, bytes(&values)));
            }
            continue;
        };
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let codes = values.iter().map(|v| (v / scale).round() as i8 as u8).collect();
        pickle = pickle
            .text(&format!("{module}._packed_params._packed_params"))
            .global("torch._utils", "_rebuild_qtensor")
            .op(b"((")
            .text("storage")
            .global("torch", "QInt8Storage")
            .text(&key)
            .text("cpu")
            .int(count)
            .op(b"tQ")
            .int(0)
            .ints(&shape)
            .ints(&strides(&shape))
            .global("torch", "per_tensor_affine")
            .op(b"G")
            .op(&f64::from(scale).to_be_bytes())
            .int(0)
            .op(b"\x87\x89}tR");
        storages.push((key, codes));
        pickle = match float.get(&format!("{module}.bias")) {
            None => pickle.op(b"N\x86"),
            Some(bias) => {
                let (key, count) = (storages.len().to_string(), bias.elements() as i64);
                storages.push((key.clone(), bytes(&bias.to_f32().unwrap())));
                pickle.tensor(&key, count, (0, &[count], &[1])).op(b"\x86")
            }
        };
    }
    let storages: Vec<(&str, &[u8])> = storages.iter().map(|(k, b)| (k.as_str(), &b[..])).collect();
    archive(&pickle.op(b"u.").0, &storages)
}

#[test]
fn the_commands_of_the_page_run_on_the_gloss_model() {
    let text = fs::read_to_string(testdata().join("../docs/quantize-pytorch-right.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The files that the page talks about.
    let base = dir.path().join("model");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(testdata().join("../crates/cli/assets/gloss")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    fs::write(dir.path().join("dynamic.pt"), quantize_dynamic(&base, |m| !m.contains("embeddings"))).unwrap();
    // A QAT state dict of this model: its float weights under another name, and fake quantization beside them.
    let mut qat: BTreeMap<String, Tensor> = safetensors::read(&base.join("model.safetensors"))
        .unwrap()
        .into_iter()
        .map(|(n, t)| (format!("model.{n}"), t))
        .collect();
    for (part, value) in [("fake_quant_enabled", 1.0), ("activation_post_process.min_val", -1.0)] {
        let name = format!("model.classifier.activation_post_process.{part}");
        qat.insert(name, Tensor::from_f32(vec![1], &[value]).unwrap());
    }
    fs::write(dir.path().join("qat_model.pt"), torch::write(&qat).unwrap()).unwrap();
    let mut ran = 0;
    for line in text.lines().filter(|l| l.starts_with("qberta ")) {
        let line = line.split('#').next().unwrap_or(line);
        let output = Command::cargo_bin("qberta")
            .unwrap()
            .current_dir(dir.path())
            .args(line.split_whitespace().skip(1))
            .output()
            .unwrap();
        // Something is wrong with the QAT file, which is what the page says.
        let wanted = i32::from(line.contains("qat_model.pt"));
        assert_eq!(output.status.code(), Some(wanted), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        ran += 1;
    }
    assert!(ran >= 10, "{ran} commands");
    // Every way leads to the answers of the model.
    let row = Row::text("a small domesticated feline kept as a pet");
    let answer = |name: &str| {
        let session = Session::open(&dir.path().join(name), None, context()).unwrap();
        let answers = session.answer(std::slice::from_ref(&row), &Options::standard()).unwrap();
        serde_json::to_value(&answers[0]).unwrap()["label"].clone()
    };
    for name in ["model", "int8", "trained", "trained-int8", "selected", "rescued"] {
        assert_eq!(answer(name), "noun.animal", "{name}");
    }
    let words: BTreeSet<String> = index()
        .iter()
        .flat_map(|c| c["findings"].as_array().unwrap().clone())
        .map(|f| f.as_str().unwrap().to_owned())
        .collect();
    for name in
        ["observers-left", "fake-quant-left", "nothing-quantized", "packed-params", "engine-dependent"]
    {
        assert!(words.contains(name) && text.contains(&format!("`{name}`")), "{name}");
    }
}
