//! The doctor on every file that PyTorch's quantization left (testdata/doctor), rescue, and export.

mod common;
#[path = "../../store/tests/common/graphs.rs"]
mod graphs;

use common::*;
use qberta::store::torch::{self, Entry};
use qberta::store::{Tensor, safetensors};
use qberta::toolkit::doctor::{diagnose, rescue};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where this doctor says more or less than the index: what, and why.
fn expected_findings(case: &str, mut listed: BTreeSet<String>) -> BTreeSet<String> {
    match case {
        // The index judges by bytes alone; a float file that calls itself quantized is what people come with.
        "nothing-quantized" => {
            listed.remove("sound");
        }
        // A float checkpoint in its usual form, under its usual name, is no subject at all.
        "float-safetensors" | "float-bin" | "float-legacy" => {
            listed.remove("nothing-quantized");
        }
        // Against their base these are copies under another name, which is what the selective loop leaves.
        "transposed-view" | "tied-shared" => {
            listed.remove("sound");
        }
        // Outside the list of the index, and the one thing there is to say about these files.
        "module-save-failed" => {
            listed.insert("unfinished-save".into());
        }
        "pt2e" => {
            listed.insert("nameless-weights".into());
        }
        _ => {}
    }
    listed
}

#[test]
fn every_file_gets_its_findings() {
    let (mut failures, mut seen) = (Vec::new(), BTreeSet::new());
    println!("| file | made by | findings | status |\n|---|---|---|---|");
    for record in index() {
        let case = record["case"].as_str().unwrap();
        let (file, base) = fixture(case);
        let mut args = vec![path(&file), "--json"];
        if !record["base"].is_null() {
            args.extend(["--base", path(&base)]);
        }
        let started = Instant::now();
        let (stdout, stderr, status) = doctor(&args);
        let took = started.elapsed();
        let Ok(answer) = serde_json::from_str::<Value>(&stdout) else {
            failures.push(format!("{case}: {stderr}"));
            continue;
        };
        let diagnosis = &answer["diagnosis"];
        let names = |key: &str| -> Vec<String> {
            let list = diagnosis[key].as_array().unwrap();
            list.iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
        };
        let mut found: BTreeSet<String> = names("findings").into_iter().chain(names("notes")).collect();
        if diagnosis["sound"] == true {
            found.insert("sound".into());
        }
        println!(
            "| {case}/{} | {} | {} | {status} |",
            record["file"].as_str().unwrap(),
            diagnosis["recipe"].as_str().unwrap(),
            found.iter().cloned().collect::<Vec<_>>().join(", ")
        );
        let listed = record["findings"].as_array().unwrap();
        let wanted: BTreeSet<String> = listed.iter().map(|f| f.as_str().unwrap().to_owned()).collect();
        let wanted = expected_findings(case, wanted);
        if found != wanted {
            failures.push(format!("{case}: {found:?} instead of {wanted:?}"));
        }
        seen.extend(found);
        if status != i32::from(diagnosis["sound"] != true) {
            failures.push(format!("{case}: exit status {status}"));
        }
        // A debug build on a busy machine; the promise is a second.
        if took > Duration::from_secs(5) {
            failures.push(format!("{case}: took {took:?}"));
        }
        for finding in
            diagnosis["findings"].as_array().unwrap().iter().chain(diagnosis["notes"].as_array().unwrap())
        {
            for key in ["cause", "cure"] {
                assert!(
                    !finding[key].as_str().unwrap().is_empty(),
                    "{case}: {} has no {key}",
                    finding["name"]
                );
            }
            assert!(!finding["evidence"].as_array().unwrap().is_empty(), "{case}: {}", finding["name"]);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for name in FINDINGS {
        assert!(seen.contains(name), "no file has {name}");
    }
}

/// Every finding that a file of testdata/doctor has; the others have a test of their own below.
const FINDINGS: [&str; 24] = [
    "embeddings-float",
    "engine-dependent",
    "fake-quant-left",
    "infinite-range",
    "missing-head",
    "nameless-weights",
    "never-calibrated",
    "non-finite-scale",
    "nothing-quantized",
    "observer-disabled",
    "observers-left",
    "oversized-storage",
    "packed-params",
    "pickled-module",
    "quantized-layernorm",
    "reduce-range",
    "saturated-channels",
    "tied-missing",
    "tied-twice",
    "torchscript",
    "unfinished-save",
    "unquantized-input",
    "wrong-head",
    "zero-scale",
];

#[test]
fn names_are_those_the_pickles_import() {
    let text = fs::read_to_string(fixtures().join("globals.json")).unwrap();
    let listed: BTreeMap<String, BTreeSet<String>> = serde_json::from_str(&text).unwrap();
    for (file, names) in listed {
        // TorchScript archives hold several pickles, of which only the first is a model.
        if file.starts_with("torchscript") || names.is_empty() {
            continue;
        }
        let read = torch::inspect(&fixtures().join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let found: BTreeSet<String> = read.globals.into_iter().collect();
        assert_eq!(found, names, "{file}");
    }
}

#[test]
fn sound_directories_have_no_finding() {
    let dir = tempfile::tempdir().unwrap();
    let int8 = dir.path().join("int8");
    let recipe = qberta::Recipe::new("dynamic", &[]).unwrap();
    let model = fixtures().join("base-v3");
    let request = qberta::Request { model: &model, out: &int8, recipe: &recipe, task: None };
    qberta::quantize(&request, &context(), &()).unwrap();
    for sound in [&model, &int8] {
        let (stdout, stderr, status) = doctor(&[path(sound)]);
        assert_eq!(status, 0, "{stdout}{stderr}");
        assert!(stdout.lines().next().unwrap().ends_with(": sound"), "{stdout}");
        assert!(!stdout.contains("note:") && !stdout.contains("problem:"), "{stdout}");
    }
    let weights = int8.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let (stdout, _, status) = doctor(&[path(&int8)]);
    assert_eq!(status, 1);
    assert!(stdout.contains("artefact-damaged"), "{stdout}");
    for (case, _) in golden_cases() {
        let diagnosis = diagnose(&golden(&case), None, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let found: Vec<&str> = diagnosis.findings.iter().map(|f| f.name).collect();
        // One golden file was made from slices of large tensors.
        let wanted: &[&str] = if case == "store-bin-strided" { &["oversized-storage"] } else { &[] };
        assert_eq!(found, wanted, "{case}");
    }
}

#[test]
fn onnx_graphs_say_what_is_int8_and_what_is_missing() {
    use graphs::{dynamic, floats, model, node, outside};
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, nodes: &[Vec<u8>], tensors: &[Vec<u8>]| {
        let file = dir.path().join(name);
        fs::write(&file, model(nodes, tensors, &["x"], &["y"])).unwrap();
        file
    };
    let both = |file: &Path| -> (Vec<String>, Vec<String>, Value) {
        let (names, diagnosis) = findings(&[path(file)]);
        let notes = diagnosis["notes"].as_array().unwrap();
        (names, notes.iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect(), diagnosis)
    };
    // Sound: codes that use eight bits and codes that use seven.
    let (nodes, tensors) = dynamic(&[1, 2, 3, 4, 5, 6, 7, -128], 0.5, "/layer.0/query/MatMul");
    let (names, notes, d) = both(&put("a.onnx", &nodes, &tensors));
    assert_eq!((names.len(), &d["form"]), (0, &json!("ONNX graph")));
    assert_eq!(notes, ["onnx-graph", "engine-dependent"]);
    assert_eq!(d["recipe"], "dynamic quantization of an ONNX graph, weights qint8 per tensor");
    let row = &d["tensors"][0];
    assert_eq!(
        (&row["name"], &row["dtype"], &row["scales"]),
        (&json!("w_quantized"), &json!("qint8"), &json!([0.5, 0.5]))
    );
    assert!(d["notes"][1]["evidence"][0].as_str().unwrap().contains("/layer.0/query/MatMul"));
    let (seven, stored) = dynamic(&[1, 2, 3, 4, 5, 6, 64, -64], 0.5, "p");
    assert_eq!(both(&put("b.onnx", &seven, &stored)).1, ["onnx-graph", "reduce-range"]);
    // A scale that is no number, or 0.
    for (scale, name) in [(f32::NAN, "non-finite-scale"), (0.0, "zero-scale")] {
        let (nodes, tensors) = dynamic(&[1; 8], scale, "p");
        assert_eq!(both(&put("c.onnx", &nodes, &tensors)).0, [name]);
    }
    let (full, stored) = dynamic(&[-128, 127, 127, -128, 127, 127, -128, 127], 0.5, "p");
    let full_rows = [&[0x80u8, 0x7f][..]; 10].concat();
    let long = graphs::tensor("w_quantized", graphs::INT8, &[2, 10], &full_rows);
    assert_eq!(both(&put("d.onnx", &full, &[&[long], &stored[1..]].concat())).0, ["saturated-channels"]);
    assert!(both(&put("d.onnx", &full, &stored)).0.is_empty(), "two codes a row say nothing");
    // Float products beside int8 ones, and a matrix kept in both forms.
    let more = [&nodes[..], &[node("MatMul", "/layer.0/pos/MatMul", &["x", "w"], &["z"])]].concat();
    let kept = [&tensors[..], &[floats("w", &[4, 2], &[0.25; 8])]].concat();
    let (names, notes, d) = both(&put("e.onnx", &more, &kept));
    assert!(
        names.is_empty() && notes == ["onnx-graph", "partly-float", "stored-twice", "engine-dependent"],
        "{d}"
    );
    // Nothing quantized, by name only.
    let float = (&more[5..], &kept[3..]);
    assert_eq!(
        both(&put("model_int8.onnx", float.0, &[float.1, &[floats("y", &[2], &[1.0; 2])]].concat())).0,
        ["nothing-quantized"]
    );
    assert!(
        both(&put("model.onnx", float.0, &[float.1, &[floats("y", &[2], &[1.0; 2])]].concat())).0.is_empty()
    );
    // What is missing: a file, a value, a scale.
    let absent = [&tensors[..], &[outside("b", &[4], "model.onnx_data", "0")]].concat();
    let (names, _, d) = both(&put("f.onnx", &nodes, &absent));
    assert_eq!(names, ["onnx-incomplete"]);
    assert!(
        d["findings"][0]["evidence"][0].as_str().unwrap().contains("model.onnx_data is not there"),
        "{d}"
    );
    fs::write(dir.path().join("model.onnx_data"), [0; 16]).unwrap();
    assert!(both(&put("f.onnx", &nodes, &absent)).0.is_empty());
    assert_eq!(both(&put("g.onnx", &nodes[1..], &tensors)).0, ["onnx-incomplete"]);
    // Grids that nobody calibrated.
    let grid = |scale: f32| {
        let nodes = [
            node("QuantizeLinear", "q", &["x", "s"], &["i"]),
            node("DequantizeLinear", "", &["i", "s"], &["y"]),
        ];
        both(&put("h.onnx", &nodes, &[floats("s", &[], &[scale])])).0
    };
    assert_eq!(
        (grid(1.0), grid(0.5), grid(f32::INFINITY)),
        (vec!["never-calibrated".into()], vec![], vec!["non-finite-scale".into()])
    );
    // A graph is not rescued, and says so.
    let out = dir.path().join("out");
    let base = fixtures().join("base-v3");
    let (_, stderr, status) =
        doctor(&[path(&dir.path().join("a.onnx")), "--base", path(&base), "--rescue", path(&out)]);
    assert!(status == 2 && stderr.contains("ONNX graph are not rescued") && !out.exists(), "{stderr}");
}

#[test]
fn what_cannot_be_read_gets_a_sentence_and_status_two() {
    let dir = tempfile::tempdir().unwrap();
    // The old format needs no zip: magic number, protocol, machine, then the object.
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.";
    let legacy = |object: &[u8]| [&head[..], b"\x80\x02", object, b".\x80\x02]q\x00."].concat();
    let nested = [&b")"[..], &b"\x85".repeat(1_000_000)].concat();
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("system", legacy(b"cos\nsystem\nX\x02\x00\x00\x00id\x85R"), "would execute os.system"),
        ("posix", legacy(b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R"), "would execute posix.system"),
        ("eval", legacy(b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R"), "would execute __builtin__.eval"),
        ("function", legacy(b"cmy.module\nrun\n)R"), "would execute my.module.run"),
        ("deep", legacy(&nested), "nests too deeply"),
        ("cycle", legacy(b"]q\x00h\x00a"), "contains itself"),
        ("huge", legacy(&b"(".repeat(2000)), "too many open MARKs"),
        ("noise", b"no model at all".to_vec(), "not a PyTorch checkpoint"),
    ];
    for (name, bytes, says) in cases {
        let file = dir.path().join(format!("{name}.pt"));
        fs::write(&file, bytes).unwrap();
        let started = Instant::now();
        let (stdout, stderr, status) = doctor(&[path(&file)]);
        assert_eq!(status, 2, "{name}: {stdout}{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{name}: {stderr}");
        assert!(started.elapsed() < Duration::from_secs(5), "{name}: {:?}", started.elapsed());
    }
    let (_, stderr, status) = doctor(&["no-such-file.pt"]);
    assert!(status == 2 && stderr.contains("no-such-file.pt"), "{stderr}");
}

/// The findings and notes of a file, and its diagnosis.
fn findings(args: &[&str]) -> (Vec<String>, Value) {
    let (stdout, stderr, _) = doctor(&[args, &["--json"]].concat());
    let answer: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
    let list = answer["diagnosis"]["findings"].as_array().unwrap();
    (list.iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect(), answer["diagnosis"].clone())
}

#[test]
fn a_bit_that_flipped_after_saving_is_found_and_not_rescued() {
    let dir = tempfile::tempdir().unwrap();
    let (file, base) = fixture("dynamic");
    let whole = fs::read(&file).unwrap();
    let key = "deberta.encoder.layer.1.output.dense._packed_params._packed_params";
    let read = torch::inspect(&file).unwrap();
    assert!(read.damage.is_empty());
    let Entry::Packed { weight, .. } = &read.entries[key] else { panic!("{key}") };
    let Entry::Quantized(q) = &**weight else { panic!("{key}") };
    let find = |part: &[u8]| whole.windows(part.len()).position(|w| w == part).unwrap();
    let flipped = |name: &str, at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };

    // In the codes of one layer: everything but that layer can be rescued.
    let codes = flipped("codes.pt", find(&q.codes.bytes()[..]) + 5);
    let (names, diagnosis) = findings(&[path(&codes)]);
    assert_eq!(names, ["damaged-bytes"]);
    assert!(diagnosis["findings"][0]["evidence"][0].as_str().unwrap().contains(key), "{diagnosis}");
    let out = dir.path().join("rescued");
    let report = rescue(&codes, &base, &out, &context(), &()).unwrap();
    let lost: Vec<&str> = report.from_base.keys().map(String::as_str).collect();
    let module = "deberta.encoder.layer.1.output.dense";
    assert_eq!(lost, [format!("{module}.bias"), format!("{module}.weight")]);

    // In a scale, which lies in the pickle: nothing says which numbers are right.
    let scale = flipped("scale.pt", find(&q.scales[0].to_be_bytes()) + 2);
    assert_eq!(findings(&[path(&scale)]).0, ["damaged-bytes"]);
    let out = dir.path().join("refused");
    let error = rescue(&scale, &base, &out, &context(), &()).unwrap_err();
    assert!(error.to_string().contains("describes the tensors") && !out.exists(), "{error}");

    // In an instruction of the pickle, which then makes no sense.
    let (_, stderr, status) = doctor(&[path(&flipped("pickle.pt", find(b"_rebuild_qtensor") + 2))]);
    assert!(status == 2 && stderr.contains("The checksum of") && stderr.contains("data.pkl"), "{stderr}");
}

#[test]
fn layers_that_strict_false_leaves_random_are_listed() {
    let (file, base) = fixture("dynamic");
    let listed = |args: &[&str]| -> BTreeSet<String> {
        let (_, diagnosis) = findings(args);
        let list = diagnosis["left_random"].as_array().unwrap();
        list.iter().map(|n| n.as_str().unwrap().to_owned()).collect()
    };
    let alone = listed(&[path(&file)]);
    let float = safetensors::read(&base.join("model.safetensors")).unwrap();
    let packed = torch::inspect(&file).unwrap();
    let held: BTreeSet<String> = packed.entries.into_keys().collect();
    let missing: BTreeSet<String> = float.into_keys().filter(|n| !held.contains(n)).collect();
    assert!(missing.contains("classifier.weight") && missing.len() > 20, "{missing:?}");
    assert_eq!(alone, missing);
    assert_eq!(listed(&[path(&file), "--base", path(&base)]), missing);
}

#[test]
fn a_copy_of_the_base_under_another_name_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (file, base) = fixture("float-bin");
    let copy = dir.path().join("model_final.pth");
    fs::copy(&file, &copy).unwrap();
    // Its name says nothing, and neither do its bytes alone.
    assert!(findings(&[path(&copy)]).0.is_empty());
    let (names, diagnosis) = findings(&[path(&copy), "--base", path(&base)]);
    assert_eq!(names, ["nothing-quantized"]);
    assert!(diagnosis["findings"][0]["evidence"][1].as_str().unwrap().contains("same bits"));
    // One changed number, and it is a checkpoint of its own.
    let mut tensors = torch::read(&copy).unwrap().tensors;
    let mut values = tensors["classifier.bias"].to_f32().unwrap();
    values[0] += 1.0;
    tensors.insert("classifier.bias".into(), Tensor::from_f32(vec![values.len()], &values).unwrap());
    fs::write(&copy, torch::write(&tensors).unwrap()).unwrap();
    assert!(findings(&[path(&copy), "--base", path(&base)]).0.is_empty());
}

#[test]
fn a_file_without_weights_is_not_sound() {
    let dir = tempfile::tempdir().unwrap();
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let put = |name: &str, object: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, [&head[..], b"\x80\x02", object, b".\x80\x02]."].concat()).unwrap();
        file
    };
    for (name, object) in [
        ("empty.pt", &b"}"[..]),
        ("list.pt", b"]"),
        ("optimizer.pt", b"}(X\x05\x00\x00\x00state}X\x0c\x00\x00\x00param_groups]u"),
    ] {
        assert_eq!(findings(&[path(&put(name, object))]).0, ["no-weights"], "{name}");
    }
}

#[test]
fn names_in_a_file_cannot_write_on_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.pt");
    let name = "w\u{1b}[2Jx\nproblem: none";
    let tensors = BTreeMap::from([(name.to_owned(), Tensor::from_f32(vec![2], &[1.0, f32::NAN]).unwrap())]);
    fs::write(&file, torch::write(&tensors).unwrap()).unwrap();
    let (stdout, _, status) = doctor(&[path(&file)]);
    assert_eq!(status, 1);
    assert!(stdout.contains("non-finite-value") && stdout.contains("element 1"), "{stdout}");
    assert!(!stdout.contains('\u{1b}') && !stdout.contains("\nproblem: none"), "{stdout:?}");
    let (_, stderr, _) = doctor(&["no\u{1b}[2Jfile.pt"]);
    assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
}

#[test]
fn a_directory_is_read_when_it_is_clear_which_file_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let put = |from: &Path, name: &str| fs::copy(from, dir.path().join(name)).unwrap();
    let (_, stderr, status) = doctor(&[path(dir.path())]);
    assert!(status == 2 && stderr.contains("holds no weights"), "{stderr}");
    let dynamic = fixture("dynamic").0;
    put(&dynamic, "deberta_int8.pth");
    let (names, diagnosis) = findings(&[path(dir.path())]);
    assert!(names.is_empty() && diagnosis["files"] == json!(["deberta_int8.pth"]), "{diagnosis}");
    put(&fixture("never-calibrated").0, "static.pt");
    let (_, stderr, status) = doctor(&[path(dir.path())]);
    assert!(status == 2 && stderr.contains("deberta_int8.pth, static.pt"), "{stderr}");
    // A model under its usual name is the one that is meant; the others are named.
    let base = fixture("dynamic").1;
    put(&base.join("config.json"), "config.json");
    put(&base.join("model.safetensors"), "model.safetensors");
    let (stdout, _, status) = doctor(&[path(dir.path())]);
    assert_eq!(status, 0, "{stdout}");
    assert!(stdout.contains("not read: deberta_int8.pth, static.pt"), "{stdout}");
}

#[test]
fn what_lies_there_in_place_of_a_model_gets_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("dynamic").0).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let cut = put("cut.pt", &whole[..whole.len() / 2]);
    let appended = put("appended.pt", &[&whole[..], b"\0"].concat());
    let mut cases = vec![
        (put("empty.pt", b""), "empty"),
        (cut, "no end record"),
        (appended, "no end record"),
        (put("pointer.bin", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (put("page.pt", b"<!DOCTYPE html><html>"), "web page"),
        (put("plain.pkl", b"\x80\x04K\x01."), "a pickle that torch.save did not write"),
        (put("bad.safetensors", &[0xff; 64]), "bad.safetensors"),
        (put("bad.onnx", b"\x08\x08nothing"), "bad.onnx"),
        (put("zip.pt", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "no data.pkl"),
        (dir.path().join("empty.pt/inside.pt"), "inside.pt"),
    ];
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd-\xff.pt"));
        fs::write(&odd, b"nothing").unwrap();
        let diagnosis = diagnose(&odd, None, &context()).unwrap_err();
        assert!(diagnosis.to_string().contains("not a PyTorch checkpoint"), "{diagnosis}");
        let pipe = dir.path().join("null.pt");
        std::os::unix::fs::symlink("/dev/null", &pipe).unwrap();
        cases.push((pipe, "not a file"));
    }
    for (file, says) in cases {
        let started = Instant::now();
        let (stdout, stderr, status) = doctor(&[path(&file)]);
        assert_eq!(status, 2, "{stdout}{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{says}: {stderr}");
        assert!(started.elapsed() < Duration::from_secs(5), "{says}: {:?}", started.elapsed());
    }
}

#[test]
fn grids_of_activations_are_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let names = |pairs: &[(&str, f32)]| {
        let tensor = |(n, v): &(&str, f32)| ((*n).to_owned(), Tensor::from_f32(vec![1], &[*v]).unwrap());
        let file = dir.path().join("model.pt");
        fs::write(&file, torch::write(&pairs.iter().map(tensor).collect()).unwrap()).unwrap();
        findings(&[path(&file)]).0
    };
    let stub = |scale: f32| names(&[("quant.scale", scale), ("quant.zero_point", 3.0), ("w", 1.0)]);
    assert_eq!(stub(f32::NAN), ["non-finite-scale"]);
    assert_eq!(stub(f32::INFINITY), ["non-finite-scale"]);
    assert_eq!(stub(0.0), ["zero-scale"]);
    assert!(stub(1e-30).is_empty());
    let saw = |low: f32| {
        names(&[
            ("a.activation_post_process.min_val", low),
            ("a.activation_post_process.max_val", 1.0),
            ("w", 1.0),
        ])
    };
    assert_eq!(saw(f32::NAN), ["observers-left", "non-finite-scale"]);
    assert_eq!(saw(-1.0), ["observers-left"]);
}
