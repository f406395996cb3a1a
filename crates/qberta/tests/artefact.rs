//! The artefact's promises: proven on write, deterministic, tamper-evident, all or nothing.

mod common;

use common::*;
use qberta::kernels::{Operands, Values};
use qberta::model::{Model, Task};
use qberta::runtime::Options;
use qberta::store::manifest::{Decision, Input, Weight};
use qberta::store::{Manifest, Source, manifest, safetensors};
use qberta::{Kind, Recipe, Request, Row, Session, quantize, verify};
use std::fs;
use std::path::{Path, PathBuf};

/// Quantizes golden case `case` into `out`.
fn quantized(case: &str, out: &Path, skip: &[&str]) -> qberta::Result<qberta::toolkit::Report> {
    let skip: Vec<String> = skip.iter().map(|s| s.to_string()).collect();
    let recipe = Recipe::new("dynamic", &skip)?;
    let model = golden(case);
    let record = golden_cases().into_iter().find(|(c, _)| c == case).unwrap().1;
    let request = Request { model: &model, out, recipe: &recipe, task: Some(task(&record)) };
    quantize(&request, &context(), &())
}

fn artefact(case: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    quantized(case, &out, &[]).unwrap();
    (dir, out)
}

#[test]
fn every_golden_checkpoint_becomes_a_verified_artefact() {
    let dir = tempfile::tempdir().unwrap();
    for (case, record) in golden_cases() {
        let out = dir.path().join(&case);
        let report = quantized(&case, &out, &[]).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(report.plan.values().all(|d| d.weight == manifest::Weight::Int8Channel), "{case}");
        verify(&out, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
        // The artefact names its task, so it opens without one and answers near the float model.
        let int8 = Session::open(&out, None, context()).unwrap();
        assert_eq!(int8.architecture().head.task, task(&record), "{case}");
        for (row, numbers) in expected(&golden(&case)) {
            let raw = int8.raw(&[row], &Options::standard()).unwrap();
            let largest = numbers.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let difference = largest_difference(&raw[0].values(), &numbers) / largest;
            // Random weights of width 32 are the worst case for int8; a wrong layer gives errors of order one.
            assert!(difference < 0.35, "{case}: int8 is {difference} away from float, relative to {largest}");
        }
    }
}

#[test]
fn an_artefact_holds_int8_where_it_says_so() {
    let (_dir, out) = artefact("v1-sequence");
    let tensors = safetensors::read(&out.join("model.safetensors")).unwrap();
    let word = &tensors["deberta.embeddings.word_embeddings.weight"];
    let fused = &tensors["deberta.encoder.layer.0.attention.self.in_proj.weight"];
    for t in [word, fused] {
        assert_eq!(t.dtype().name(), "I8");
        assert!(t.i8().unwrap().iter().all(|&c| c != -128), "codes stay in [-127, 127]");
    }
    assert_eq!(tensors["classifier.weight"].dtype().name(), "F32");
    let rows = fused.shape()[0];
    assert_eq!(tensors["deberta.encoder.layer.0.attention.self.in_proj.weight_scale"].shape(), [rows, 1]);
}

#[test]
fn equal_models_give_equal_files() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    quantized("v3-sequence", &a, &[]).unwrap();
    quantized("v3-sequence", &b, &[]).unwrap();
    let mut names: Vec<_> = fs::read_dir(&a).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert!(names.len() >= 3);
    for name in names {
        assert_eq!(fs::read(a.join(&name)).unwrap(), fs::read(b.join(&name)).unwrap(), "{name:?}");
    }
    // The same weights from another container give the same weights file.
    let c = dir.path().join("c");
    quantized("store-sharded-bin", &c, &[]).unwrap();
    let d = dir.path().join("d");
    quantized("store-safetensors", &d, &[]).unwrap();
    assert_eq!(
        fs::read(c.join("model.safetensors")).unwrap(),
        fs::read(d.join("model.safetensors")).unwrap()
    );
}

#[test]
fn saving_what_was_loaded_gives_the_same_bytes() {
    for case in ["v3-mlm-legacy", "v1-talking-head", "bert-features", "v3-conv3"] {
        let (_dir, out) = artefact(case);
        let weights = fs::read(out.join("model.safetensors")).unwrap();
        let source = Source::open(&out, None).unwrap();
        assert_eq!(safetensors::write(&source.tensors).unwrap(), weights, "{case}");
        let bytes = fs::read(out.join(manifest::NAME)).unwrap();
        assert_eq!(Manifest::parse(&bytes, true).unwrap().seal(), bytes, "{case}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_caught() {
    let (_dir, out) = artefact("v3-sequence");
    for entry in fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        // Every byte of the small files and of the safetensors header, every 61st of the weights.
        let dense = if good.len() < 20_000 { good.len() } else { 6_000 };
        for at in (0..good.len()).filter(|i| *i < dense && i % 7 == 0 || i % 61 == 0 || *i + 1 == good.len())
        {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            let error = verify(&out, &context()).expect_err(&format!("{} byte {at}", path.display()));
            assert!(
                matches!(error.kind(), Kind::Mismatch | Kind::Corrupt | Kind::Unsupported),
                "{} byte {at}: {error}",
                path.display()
            );
        }
        fs::write(&path, &good).unwrap();
    }
    verify(&out, &context()).unwrap();
}

#[test]
fn a_damaged_weight_is_named() {
    let (_dir, out) = artefact("v3-sequence");
    let path = out.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    fs::write(&path, bytes).unwrap();
    let error = verify(&out, &context()).unwrap_err();
    let advice = error.advice().unwrap();
    assert!(
        error.to_string().contains("model.safetensors") && advice.contains("first damaged tensor is"),
        "{error} {advice}"
    );
}

#[test]
fn truncated_missing_and_longer_files_are_caught() {
    let (_dir, out) = artefact("bert-token");
    for entry in fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        for len in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            assert!(verify(&out, &context()).is_err(), "{} cut to {len}", path.display());
            assert!(Session::open(&out, None, context()).is_err(), "{} cut to {len} opens", path.display());
        }
        let mut longer = good.clone();
        longer.push(b' ');
        fs::write(&path, &longer).unwrap();
        assert!(verify(&out, &context()).is_err(), "{} with a byte more", path.display());
        fs::remove_file(&path).unwrap();
        assert!(verify(&out, &context()).is_err(), "{} missing", path.display());
        fs::write(&path, &good).unwrap();
    }
    verify(&out, &context()).unwrap();
}

#[test]
fn a_resealed_lie_is_caught_by_the_probes() {
    // Someone who changes the weights and every digest still has to reproduce the recorded outputs.
    let (_dir, out) = artefact("v3-sequence");
    let path = out.join("model.safetensors");
    let mut tensors = safetensors::read(&path).unwrap();
    let name = "classifier.bias".to_owned();
    let mut values = tensors[&name].to_f32().unwrap();
    values[0] += 1e-3;
    let changed = qberta::store::Tensor::from_f32(tensors[&name].shape().to_vec(), &values).unwrap();
    tensors.insert(name.clone(), changed.clone());
    let bytes = safetensors::write(&tensors).unwrap();
    fs::write(&path, &bytes).unwrap();
    let mut m = Manifest::parse(&fs::read(out.join(manifest::NAME)).unwrap(), true).unwrap();
    m.tensors.insert(name, qberta::store::digest::of_tensor(&changed));
    m.files.get_mut("model.safetensors").unwrap().sha256 = qberta::store::digest::of_bytes(&bytes);
    fs::write(out.join(manifest::NAME), m.seal()).unwrap();
    let error = verify(&out, &context()).unwrap_err();
    assert!(error.to_string().contains("probe 0") && error.to_string().contains("column 0"), "{error}");
}

#[test]
fn skipped_modules_stay_float_and_change_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (all, some) = (dir.path().join("all"), dir.path().join("some"));
    quantized("v3-sequence", &all, &[]).unwrap();
    let report = quantized("v3-sequence", &some, &["layer.1", "re:query_proj$"]).unwrap();
    let float: Vec<&String> =
        report.plan.iter().filter(|(_, d)| d.weight == manifest::Weight::Float).map(|(n, _)| n).collect();
    assert!(
        !float.is_empty() && float.iter().all(|n| n.contains("layer.1.") || n.ends_with("query_proj")),
        "{float:?}"
    );
    let tensors = safetensors::read(&some.join("model.safetensors")).unwrap();
    for name in &float {
        assert_eq!(tensors[&format!("{name}.weight")].dtype().name(), "F32", "{name}");
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(some.join("config.json")).unwrap()).unwrap();
    let ignore: Vec<&str> = config["quantization_config"]["ignore"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect();
    assert!(float.iter().all(|n| ignore.contains(&n.as_str())), "{ignore:?}");
    let rows: Vec<_> = expected(&golden("v3-sequence")).into_iter().map(|(r, _)| r).collect();
    let answers = |dir: &Path| {
        let session = Session::open(dir, None, context()).unwrap();
        session
            .raw(&rows, &Options::standard())
            .unwrap()
            .iter()
            .flat_map(|a| bits(&a.values()))
            .collect::<Vec<_>>()
    };
    assert_ne!(answers(&all), answers(&some), "selective quantization really changes the model");
}

/// What v3-sequence becomes by the recipe `text`, written to `out`: the model, its manifest, its answers.
fn made_by(text: &str, out: &Path) -> (Model, Manifest, Vec<f32>) {
    let recipe = Recipe::parse(text, "my.toml").unwrap();
    let request = Request { model: &golden("v3-sequence"), out, recipe: &recipe, task: None };
    quantize(&request, &context(), &()).unwrap();
    verify(out, &context()).unwrap();
    let source = Source::open(out, None).unwrap();
    let model = source.load(&context()).unwrap().model;
    let session = Session::open(out, None, context()).unwrap();
    let rows: Vec<Row> = expected(&golden("v3-sequence")).into_iter().map(|(row, _)| row).collect();
    let answers = session.raw(&rows, &Options::standard()).unwrap();
    let values = answers.iter().flat_map(qberta::RawAnswer::values).collect();
    (model, source.manifest.unwrap(), values)
}

#[test]
fn int8_scores_are_a_decision_about_each_attention() {
    let name = |layer| format!("deberta.encoder.layer.{layer}.attention.self");
    let made = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let (model, manifest, values) = made_by(text, &dir.path().join("int8"));
        let layers = model.architecture().layers;
        // The plan says what runs, and only such a plan needs the newest format.
        let scores: Vec<bool> = (0..layers).map(|l| *model.weights().scores(l) == Operands::Int8).collect();
        let planned = |l| manifest.plan.get(&name(l)) == Some(&Decision::INT8_SCORES);
        assert_eq!(scores, (0..layers).map(planned).collect::<Vec<_>>(), "{text}");
        assert_eq!(manifest.format_version == 4, scores.contains(&true), "{text}");
        (scores, values)
    };
    let base = "name = \"mine\"\nbase = \"dynamic\"\n";
    let (float, plain) = made(base);
    assert!(!float.contains(&true) && float.len() > 1);
    let (all, coded) = made(&format!("{base}[attention]\nscores = \"int8\"\n"));
    assert!(!all.contains(&false));
    let difference = largest_difference(&plain, &coded);
    assert!(difference > 0.0 && difference < 0.05, "{difference}");
    let rule =
        |modules: &str, scores: &str| format!("[[rules]]\nmodules = \"{modules}\"\nscores = \"{scores}\"\n");
    // Scores alone are enough to decide about; then no weight is quantized, and nobody else need know.
    let (only, _) = made("name = \"mine\"\n[attention]\nscores = \"int8\"\n");
    assert!(!only.contains(&false));
    let (first, _) = made(&format!("{base}{}", rule("layer.0", "int8")));
    assert!(first[0] && !first[1..].contains(&true));
    let but_first = format!("{base}[attention]\nscores = \"int8\"\n{}", rule(&name(0), "float"));
    let (rest, _) = made(&but_first);
    assert!(!rest[0] && !rest[1..].contains(&false));
}

#[test]
fn int8_context_is_a_decision_about_each_attention() {
    let name = |layer| format!("deberta.encoder.layer.{layer}.attention.self.context");
    let dir = tempfile::tempdir().unwrap();
    let made = |text: &str, to: &str| {
        let (model, manifest, values) = made_by(text, &dir.path().join(to));
        let layers = model.architecture().layers;
        let coded: Vec<bool> = (0..layers).map(|l| model.weights().context(l) == Values::Int8).collect();
        let planned = |l| manifest.plan.get(&name(l)) == Some(&Decision::INT8_CONTEXT);
        assert_eq!(coded, (0..layers).map(planned).collect::<Vec<_>>(), "{text}");
        assert_eq!(manifest.format_version == 6, coded.contains(&true), "{text}");
        assert!((0..layers).all(|l| *model.weights().scores(l) == Operands::Float), "{text}");
        (coded, values)
    };
    let base = "name = \"mine\"\nbase = \"dynamic\"\n";
    let (float, plain) = made(base, "plain");
    assert!(!float.contains(&true) && float.len() > 1);
    let (all, coded) = made(&format!("{base}[attention]\ncontext = \"int8\"\n"), "all");
    assert!(!all.contains(&false));
    let difference = largest_difference(&plain, &coded);
    assert!(difference > 0.0 && difference < 0.05, "{difference}");
    // It alone is enough to decide about, and one attention can be told from the others by either of its names.
    let (only, _) = made("name = \"mine\"\n[attention]\ncontext = \"int8\"\n", "only");
    assert!(!only.contains(&false));
    let rule = |modules: &str| format!("{base}[[rules]]\nmodules = '{modules}'\ncontext = \"int8\"\n");
    let names = ["layer.0", "layer.0.attention.self", "re:layer\\.0\\.attention\\.self$", &name(0)];
    for (number, modules) in names.into_iter().enumerate() {
        let (first, _) = made(&rule(modules), &format!("first {number}"));
        assert!(first[0] && !first[1..].contains(&true), "{modules}");
    }

    // What names no attention, or asks what one cannot do, is refused by name.
    let planned = |module: &str, decision: Decision| {
        let mut source = Source::open(&dir.path().join("all"), None).unwrap();
        source.manifest.as_mut().unwrap().plan.insert(module.to_owned(), decision);
        source.load(&context()).expect_err(module).to_string()
    };
    for module in
        ["deberta.encoder.layer.99.attention.self", "deberta.encoder.layer.0.attention.self.contexts"]
    {
        for decision in [Decision::INT8_CONTEXT, Decision::INT8_SCORES] {
            assert!(planned(module, decision).contains(module));
        }
    }
    let attention = "deberta.encoder.layer.0.attention.self";
    let half = Decision { input: Input::Float, weight: Weight::Bf16 };
    let (linear, norm) = ("deberta.encoder.layer.0.intermediate.dense", "deberta.embeddings.LayerNorm");
    for (module, decisions) in [
        (name(0).as_str(), vec![Decision::INT8_SCORES, Decision::FLOAT, half]),
        (attention, vec![Decision::INT8_CONTEXT, Decision::FLOAT, half]),
        (linear, vec![Decision::INT8_CONTEXT, Decision::INT8_SCORES]),
        (norm, vec![Decision::INT8_CONTEXT, Decision::INT8_SCORES]),
    ] {
        for decision in decisions {
            let error = planned(module, decision);
            assert!(error.contains("products of an attention") && error.contains(module), "{error}");
        }
    }
    let mut source = Source::open(&dir.path().join("all"), None).unwrap();
    source.manifest.as_mut().unwrap().splits.insert(name(0), vec![0]);
    let error = source.load(&context()).unwrap_err().to_string();
    assert!(error.contains("cannot be computed like this") && error.contains("extra columns"), "{error}");

    // Talking heads mix weights in float.
    let recipe = Recipe::parse(&format!("{base}[attention]\ncontext = \"int8\"\n"), "my.toml").unwrap();
    let (model, out) = (golden("v1-talking-head"), dir.path().join("talking"));
    let error = quantize(&Request { model: &model, out: &out, recipe: &recipe, task: None }, &context(), &());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("talking heads") && !out.exists(), "{error}");
    let float = "[attention]\nscores = \"int8\"\ncontext = \"float\"\n[[rules]]\nmodules = \"layer.0\"\ncontext = \"float\"\n";
    let recipe = Recipe::parse(&format!("{base}{float}"), "my.toml").unwrap();
    quantize(&Request { model: &model, out: &out, recipe: &recipe, task: None }, &context(), &()).unwrap();
}

#[test]
fn patterns_that_match_nothing_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    for (skip, says) in [
        ("layer.99", "matches nothing"),
        ("re:nothing_like_this", "matches nothing"),
        ("classifier", "stay in float anyway"),
        ("re:.*", "nothing left to quantize"),
    ] {
        let error = quantized("v3-sequence", &dir.path().join("out"), &[skip]).unwrap_err();
        let text = format!("{error} {}", error.advice().unwrap_or(""));
        assert!(text.contains(says), "{skip}: {text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}

#[test]
fn an_artefact_is_not_quantized_again_and_nothing_is_overwritten() {
    let (dir, out) = artefact("v3-sequence");
    let recipe = Recipe::new("dynamic", &[]).unwrap();
    let again = dir.path().join("again");
    let request = Request { model: &out, out: &again, recipe: &recipe, task: None };
    let error = quantize(&request, &context(), &()).unwrap_err();
    assert!(error.to_string().contains("artefact already"), "{error}");
    assert!(!again.exists());
    let before = fs::read(out.join("model.safetensors")).unwrap();
    let error = quantized("v3-token", &out, &[]).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), before);
}

#[test]
fn a_foreign_int8_checkpoint_is_refused_by_name() {
    let (dir, out) = artefact("v3-sequence");
    fs::remove_file(out.join(manifest::NAME)).unwrap();
    let error = Session::open(&out, None, context()).unwrap_err();
    assert!(error.to_string().contains("already quantized"), "{error}");
    drop(dir);
}

#[test]
fn a_missing_head_is_an_error_not_a_random_layer() {
    // Weights of a token classifier under the configuration of a sequence classifier.
    let dir = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(golden("v3-token").join("config.json")).unwrap();
    fs::write(
        dir.path().join("config.json"),
        config.replace("ForTokenClassification", "ForSequenceClassification"),
    )
    .unwrap();
    fs::copy(golden("v3-token").join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let error = Session::open(dir.path(), None, context()).unwrap_err();
    assert!(error.to_string().contains("pooler.dense.weight"), "{error}");
    // And the other way round: the pooler is left out with a reason.
    let session = Session::open(&golden("v3-sequence"), Some(Task::Features), context()).unwrap();
    let ignored = &session.account().ignored;
    assert!(ignored["pooler.dense.weight"].contains("features"), "{ignored:?}");
}

#[test]
fn non_finite_weights_are_refused_by_name() {
    for (name, index) in
        [("deberta.encoder.layer.0.output.dense.weight", 3), ("deberta.embeddings.word_embeddings.weight", 5)]
    {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::copy(golden("v3-sequence").join("config.json"), model.join("config.json")).unwrap();
        let mut tensors = safetensors::read(&golden("v3-sequence").join("model.safetensors")).unwrap();
        let mut values = tensors[name].to_f32().unwrap();
        values[index] = f32::NAN;
        let broken = qberta::store::Tensor::from_f32(tensors[name].shape().to_vec(), &values).unwrap();
        tensors.insert(name.to_owned(), broken);
        fs::write(model.join("model.safetensors"), safetensors::write(&tensors).unwrap()).unwrap();
        let recipe = Recipe::new("dynamic", &[]).unwrap();
        let request = Request { model: &model, out: &dir.path().join("out"), recipe: &recipe, task: None };
        let error = quantize(&request, &context(), &()).unwrap_err();
        assert!(error.to_string().contains(name) && error.to_string().contains("not finite"), "{error}");
        assert!(!dir.path().join("out").exists());
    }
}
