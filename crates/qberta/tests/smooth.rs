//! Smoothing: what a LayerNorm makes large is divided before it is coded, and nothing else changes.

mod common;

use common::*;
use qberta::kernels::{Context, Isa};
use qberta::runtime::Options;
use qberta::store::{Manifest, Source};
use qberta::toolkit::export::{Target, export};
use qberta::toolkit::{Calibration, Conditions, Method, quantize_under};
use qberta::{Recipe, Request, Row, Session, verify};
use std::path::Path;

fn recipe(base: &str, more: &str) -> Recipe {
    Recipe::parse(&format!("name = \"smoothed\"\nbase = \"{base}\"\nsmooth = 0.5\n{more}"), "my.toml")
        .unwrap()
}

fn rows(case: &str) -> Vec<Row> {
    expected(&golden(case)).into_iter().map(|(row, _)| row).collect()
}

fn made(case: &str, recipe: &Recipe, out: &Path) -> qberta::Result<Manifest> {
    let request = Request { model: &golden(case), out, recipe, task: None };
    let sequences = sequences(case);
    let calibration = Some(Calibration { sequences: &sequences, method: Method::MinMax });
    quantize_under(&request, Conditions { calibration, gate: None }, &context(), &())?;
    Ok(Source::open(out, None)?.manifest.unwrap())
}

fn answers(model: &Path, rows: &[Row], cx: Context) -> Vec<u32> {
    let session = Session::open(model, None, cx).unwrap();
    session.raw(rows, &Options::standard()).unwrap().iter().flat_map(|a| bits(&a.values())).collect()
}

/// Test models are 32 wide, their feed-forward blocks 40.
const GROUP: &str = "[linears]\nweight = \"int4\"\ngroup = 32\ninput = \"dynamic-asymmetric\"\n\
    [[rules]]\nmodules = 're:layer\\.\\d+\\.output'\nweight = \"int8\"\n";

#[test]
fn smoothed_models_are_proven_and_have_the_same_bits_everywhere() {
    for (case, base, more) in [
        ("v3-sequence", "dynamic", ""),
        ("v3-sequence", "static", "bias_correction = true\nrounding = \"quantease\"\n"),
        ("v3-sequence", "w4a8", GROUP),
        ("v1-sequence", "dynamic", "rounding = \"gptq\"\n"),
        ("bert-sequence", "static", ""),
    ] {
        let what = format!("{case} {base} {more}");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("int8");
        let manifest = made(case, &recipe(base, more), &out).unwrap();
        verify(&out, &context()).unwrap();
        assert_eq!((manifest.format_version, manifest.calibration.is_some()), (4, true), "{what}");
        assert!(manifest.smooth.values().flatten().any(|s| *s != 0), "{what}: nothing was smoothed");
        let fed = |m: &String| !m.contains("output.dense") && !m.contains("embeddings");
        assert!(manifest.smooth.keys().all(fed), "{what}: only what a LayerNorm feeds");

        let rows = rows(case);
        let alone: Vec<u32> =
            rows.iter().flat_map(|r| answers(&out, std::slice::from_ref(r), context())).collect();
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cx = Context::new(isa, threads).unwrap();
                assert_eq!(answers(&out, &rows, cx), alone, "{what}: {} {threads}", isa.name());
            }
        }
        let float: Vec<f32> =
            answers(&golden(case), &rows, context()).into_iter().map(f32::from_bits).collect();
        let int8: Vec<f32> = alone.into_iter().map(f32::from_bits).collect();
        let difference = largest_difference(&float, &int8);
        // Random weights, 32 wide: coarse in four bits, and at most twice the .05 of int8 without smoothing.
        assert!(difference < if base == "w4a8" { 0.6 } else { 0.1 }, "{what}: {difference}");
    }
}

#[test]
fn what_is_exported_has_no_trace_of_smoothing() {
    let dir = tempfile::tempdir().unwrap();
    let (out, float) = (dir.path().join("int8"), dir.path().join("float"));
    let manifest = made("v3-sequence", &recipe("dynamic", ""), &out).unwrap();
    export(&out, &float, Target::HuggingFace, &context()).unwrap();
    let open = |path: &Path| Source::open(path, None).unwrap();
    let (exported, original, stored) = (open(&float), open(&golden("v3-sequence")), open(&out));
    for (module, shifts) in &manifest.smooth {
        let values =
            |source: &Source, end: &str| source.tensors[&format!("{module}.{end}")].to_f32().unwrap();
        let scale = values(&stored, "weight_scale");
        let (found, wanted) = (values(&exported, "weight"), values(&original, "weight"));
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let half = 0.5 * scale[i / shifts.len()] * 2f32.powi(-i32::from(shifts[i % shifts.len()]));
            assert!((found - wanted).abs() <= 1.001 * half, "{module} {i}: {found} {wanted}");
        }
    }
}

#[test]
fn other_readers_are_told_that_they_cannot_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    made("v3-sequence", &recipe("dynamic", ""), &out).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["quant_method"], "qberta");
}

#[test]
fn smoothing_without_data_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    let request =
        Request { model: &golden("v3-sequence"), out: &out, recipe: &recipe("dynamic", ""), task: None };
    let error = qberta::quantize(&request, &context(), &()).unwrap_err().to_string();
    assert!(error.contains("needs calibration data"), "{error}");
    assert!(!out.exists());
    let error = made("v3-sequence", &recipe("weight-only", ""), &out).unwrap_err().to_string();
    assert!(error.contains("smooths inputs, but quantizes none"), "{error}");
}

#[test]
fn shifts_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    made("v3-sequence", &recipe("dynamic", ""), &out).unwrap();
    let source = Source::open(&out, None).unwrap();
    let load = |edit: &dyn Fn(&mut Manifest)| {
        let mut manifest = source.manifest.clone().unwrap();
        edit(&mut manifest);
        let sealed = manifest.seal();
        let manifest = Manifest::parse(&sealed, true)?;
        let (config, tensors) = (source.config.clone(), source.tensors.clone());
        Source::from_parts(&out, config, Some(manifest), tensors, Vec::new(), None)?
            .load(&context())
            .map(drop)
    };
    assert!(load(&|_| ()).is_ok());
    let query = "deberta.encoder.layer.0.attention.self.query_proj";
    let refused = |edit: &dyn Fn(&mut Manifest)| load(edit).unwrap_err().to_string();
    assert!(refused(&|m| m.smooth.get_mut(query).unwrap().push(0)).contains("smoothing shifts"));
    assert!(refused(&|m| m.smooth.get_mut(query).unwrap()[3] = 99).contains("channel 3"));
    assert!(refused(&|m| m.smooth.get_mut(query).unwrap()[3] = -128).contains("channel 3"));
    let words = "deberta.embeddings.word_embeddings";
    assert!(refused(&|m| drop(m.smooth.insert(words.into(), vec![1]))).contains("not quantized"));
    assert!(refused(&|m| m.calibration = None).contains("no calibration"));
}
