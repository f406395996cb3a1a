//! 4-bit group weights and weights fitted to data: stored, proven, run and exported as everything else.

mod common;

use common::*;
use qberta::kernels::{Context, Isa};
use qberta::model::{Batch, Kind, Native, Sequence, Task, forward};
use qberta::store::manifest::{self, Group, Manifest, Weight};
use qberta::store::{Dtype, Source, Tensor, digest, int4, layout, safetensors};
use qberta::toolkit::export::{Target, export};
use qberta::toolkit::{Calibration, Conditions, Method, Recipe, Report, Request, quantize_under, verify};
use std::fs;
use std::path::{Path, PathBuf};

/// Every golden case and its task.
fn cases() -> Vec<(String, Task)> {
    golden_cases().into_iter().map(|(case, record)| (case, task(&record))).collect()
}

fn task_of(case: &str) -> Task {
    cases().into_iter().find(|(c, _)| c == case).unwrap().1
}

/// What the model at `dir` answers to each sequence, alone, or to all in one batch.
fn raw(dir: &Path, sequences: &[Sequence], together: bool, cx: &Context) -> Vec<f32> {
    let source = Source::open(dir, None).unwrap();
    let model = source.load(cx).unwrap().model;
    let run = |some: &[Sequence]| {
        let batch = Batch::new(&source.arch, some).unwrap();
        forward(&source.arch, &mut Native::new(&model, cx), &batch).as_slice().to_vec()
    };
    if together { run(sequences) } else { sequences.chunks(1).flat_map(run).collect() }
}

/// A recipe on `base` in groups of 32 (test models are 32 wide); modules that 32 does not divide are `others`.
fn recipe(case: &str, base: &str, others: &str, fit: &str) -> Recipe {
    let arch = Source::open(&golden(case), Some(task_of(case))).unwrap().arch;
    let odd: Vec<String> = layout::modules(&arch)
        .into_iter()
        .filter(|m| match &m.role {
            layout::Role::Linear(role) => role.encoder && role.inp % 32 != 0,
            layout::Role::Table { site: qberta::model::Site::WordTable, width, .. } => width % 32 != 0,
            layout::Role::Vocabulary { inp, .. } => inp % 32 != 0,
            _ => false,
        })
        .map(|m| format!("\"re:^{}$\"", m.name))
        .collect();
    let rule = format!("[[rules]]\nmodules = [{}]\nweight = \"{others}\"\n", odd.join(", "));
    let text = format!(
        "name = \"four\"\nbase = \"{base}\"\n{fit}\n[linears]\nweight = \"int4\"\ngroup = 32\n[words]\nweight = \"int4\"\ngroup = 32\n{}",
        if odd.is_empty() { "" } else { &rule }
    );
    Recipe::parse(&text, "four.toml").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn made(
    case: &str,
    out: &Path,
    recipe: &Recipe,
    data: Option<&[Sequence]>,
    cx: &Context,
) -> qberta::model::Result<Report> {
    let model = golden(case);
    let request = Request { model: &model, out, recipe, task: Some(task_of(case)) };
    let calibration = data.map(|sequences| Calibration { sequences, method: Method::MinMax });
    quantize_under(&request, Conditions { calibration, gate: None }, cx, &())
}

fn artefact(case: &str, base: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int4");
    made(case, &out, &recipe(case, base, "int8", ""), None, &context()).unwrap();
    (dir, out)
}

fn int4_of(report: &Report) -> usize {
    report.plan.values().filter(|d| matches!(d.weight, Weight::Int4(_))).count()
}

#[test]
fn weight_only_artefacts_have_the_bits_of_the_float_model_they_export() {
    let dir = tempfile::tempdir().unwrap();
    let mut quantized = 0;
    for (case, _) in cases() {
        if Source::open(&golden(&case), None).is_ok_and(|s| s.arch.hidden % 32 != 0) {
            continue; // nothing of such a model can have groups
        }
        let (out, float) = (dir.path().join(&case), dir.path().join(format!("{case}-float")));
        let report = made(&case, &out, &recipe(&case, "weight-only-4bit", "float", ""), None, &context())
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        quantized += int4_of(&report);
        verify(&out, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let exported = export(&out, &float, Target::HuggingFace, &context()).unwrap();
        assert_eq!(exported.dequantized, int4_of(&report), "{case}");
        let rows = sequences(&case);
        let [four, plain] = [&out, &float].map(|dir| bits(&raw(dir, &rows, true, &context())));
        assert!(four == plain, "{case}: 4-bit weights run as what they are exported as");
    }
    assert!(quantized > 500, "only {quantized} modules were 4-bit");
}

#[test]
fn w4a8_differs_from_its_weights_by_the_rounding_of_activations() {
    let dir = tempfile::tempdir().unwrap();
    for case in
        ["v3-sequence", "v1-token", "bert-qa", "v3-mlm-legacy", "distilbert-sequence", "v3-not-shared"]
    {
        let (a8, float) = (dir.path().join(case), dir.path().join(format!("{case}-float")));
        let report = made(case, &a8, &recipe(case, "w4a8", "int8", ""), None, &context()).unwrap();
        assert!(int4_of(&report) >= 5, "{case}");
        assert!(report.plan.values().all(|d| d.weight != Weight::Float));
        export(&a8, &float, Target::HuggingFace, &context()).unwrap();
        let rows = sequences(case);
        let [a, b] = [&a8, &float].map(|dir| raw(dir, &rows, true, &context()));
        let largest = b.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
        assert!(difference < 0.2, "{case}: {difference}");
    }
}

#[test]
fn four_bit_artefacts_do_not_depend_on_threads_instruction_sets_or_batches() {
    for case in ["v3-sequence", "v1-talking-head", "bert-token"] {
        for base in ["w4a8", "weight-only-4bit"] {
            let (_dir, out) = artefact(case, base);
            let rows = sequences(case);
            let reference = bits(&raw(&out, &rows, false, &context()));
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let found = bits(&raw(&out, &rows, true, &Context::new(isa, threads).unwrap()));
                    assert!(found == reference, "{case} {base}: {isa} with {threads} threads");
                }
            }
        }
    }
}

#[test]
fn four_bit_artefacts_are_version_three_and_their_bytes_are_pinned() {
    let (_dir, out) = artefact("v3-sequence", "w4a8");
    let text = fs::read(out.join(manifest::NAME)).unwrap();
    let manifest = Manifest::parse(&text, true).unwrap();
    assert_eq!(manifest.format_version, 3);
    assert!(String::from_utf8(text).unwrap().contains("\"int4 per-group-32 symmetric\""));
    let source = Source::open(&out, None).unwrap();
    let query = "deberta.encoder.layer.0.attention.self.query_proj.weight";
    let stored = int4::read(&source.tensors, query).unwrap();
    assert_eq!((stored.rows, stored.cols, stored.group), (32, 32, Group::G32));
    assert!(stored.codes().iter().all(|c| (-7..8).contains(c)), "we write symmetric codes");
    assert!(!source.tensors.contains_key(query));
    assert_eq!(
        safetensors::write(&source.tensors).unwrap(),
        fs::read(out.join("model.safetensors")).unwrap()
    );
    // A change of the format, or of the rounding, is a decision: CHANGELOG.md and FORMAT.md say so.
    let pinned = "477ee5b86febe884ca01abdb690364fd2da2bee79c31ef2b75c14a2748183fe7";
    assert_eq!(digest::of_file(&out.join("model.safetensors")).unwrap().0, pinned);
}

#[test]
fn a_plan_and_tensors_that_disagree_are_refused() {
    let (_dir, out) = artefact("v3-sequence", "w4a8");
    let source = Source::open(&out, None).unwrap();
    let load = |edit: &Edit| load_edited(&source, edit);
    assert!(load(&|_, _| ()).is_ok());
    let query = "deberta.encoder.layer.0.attention.self.query_proj";
    let value = "deberta.encoder.layer.0.attention.self.value_proj";
    let weight = format!("{query}.weight");
    let planned = |weight: Weight| {
        load(&move |m, _| m.plan.get_mut(query).unwrap().weight = weight).unwrap_err().to_string()
    };
    for other in [Weight::Int4(Group::G64), Weight::Int8Channel, Weight::Float] {
        assert!(planned(other).contains("disagree"), "{other:?}");
    }
    let error = load(&|m, _| drop(m.splits.insert(query.to_owned(), vec![1]))).unwrap_err();
    assert!(error.to_string().contains("extra columns"), "{error}");
    for end in int4::PARTS {
        let error = load(&|_, t| drop(t.remove(&format!("{weight}{end}")))).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{end}: {error}");
    }
    let long = int4::tensors(&weight, &[1; 64 * 32], &[1.0; 64], [64, 32], Group::G32).unwrap();
    let error = load(&|_, t| t.extend(long.clone())).unwrap_err();
    assert!(error.to_string().contains("wrong shape"), "{error}");
    // Float weights where the plan has 4 bits.
    let error = load(&|_, t| {
        int4::PARTS.iter().for_each(|end| drop(t.remove(&format!("{value}.weight{end}"))));
        t.insert(format!("{value}.weight"), Tensor::from_f32(vec![32, 32], &[0.5; 1024]).unwrap());
    });
    assert!(error.unwrap_err().to_string().contains("disagree"));
}

#[test]
fn groups_that_do_not_divide_a_module_are_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("v3-sequence");
    let recipe = Recipe::new("w4a8", &[]).unwrap();
    let request = Request { model: &model, out: &dir.path().join("x"), recipe: &recipe, task: None };
    let error = quantize_under(&request, Conditions::default(), &context(), &()).unwrap_err().to_string();
    assert!(
        error.contains("groups of 64") && error.contains("query_proj") && error.contains("group = 32"),
        "{error}"
    );
    assert!(!dir.path().join("x").exists());
}

const FIT: &str = "rounding = \"gptq\"\nbias_correction = true";

#[test]
fn every_kind_of_model_can_be_fitted_and_equal_data_give_equal_files() {
    let dir = tempfile::tempdir().unwrap();
    for case in [
        "v3-sequence",
        "v1-sequence",
        "v3-not-shared",
        "v3-mlm-legacy",
        "bert-token",
        "v3-conv3",
        "v1-features",
    ] {
        let recipe = recipe(case, "w4a8", "int8", FIT);
        let data = sequences(case);
        let mut files = Vec::new();
        for (number, isa) in Isa::available().into_iter().enumerate() {
            let out = dir.path().join(format!("{case}-{number}"));
            let cx = Context::new(isa, number % 3 + 1).unwrap();
            let report =
                made(case, &out, &recipe, Some(&data), &cx).unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(report.fitted, recipe.fit());
            verify(&out, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
            files.push(["model.safetensors", manifest::NAME].map(|f| fs::read(out.join(f)).unwrap()));
        }
        assert!(files.windows(2).all(|w| w[0] == w[1]), "{case}: fitting depends on the machine");
        let manifest = Manifest::parse(&files[0][1], true).unwrap();
        assert_eq!((manifest.format_version, manifest.fitted), (3, recipe.fit()));
        let record = manifest.calibration.unwrap();
        assert_eq!((record.observer, record.sequences), (None, data.len() as u64));
    }
}

#[test]
fn manifests_that_contradict_their_fitting_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (case, out) = ("v3-sequence", dir.path().join("x"));
    made(case, &out, &recipe(case, "w4a8", "int8", FIT), Some(&sequences(case)), &context()).unwrap();
    let good = Manifest::parse(&fs::read(out.join(manifest::NAME)).unwrap(), true).unwrap();
    let refused = |edit: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        edit(&mut manifest);
        Manifest::parse(&manifest.seal(), true).expect_err("a contradiction").to_string()
    };
    assert!(refused(&|m| m.calibration = None).contains("no calibration"));
    assert!(refused(&|m| m.calibration.as_mut().unwrap().tokens = 0).contains("nothing"));
    assert!(
        refused(&|m| m.calibration.as_mut().unwrap().observer = Some("minmax".into())).contains("observer")
    );
    let no_way = manifest::FitRecord { bias_correction: false, rounding: manifest::Rounding::Nearest };
    assert!(refused(&|m| m.fitted = Some(no_way)).contains("in no way"));
    assert!(refused(&|m| m.fitted = None).contains("no input of the plan is static"));
}

#[test]
fn fitting_brings_the_outputs_on_the_data_nearer() {
    let dir = tempfile::tempdir().unwrap();
    let case = "v3-long-256";
    let data = sequences(case);
    let float = raw(&golden(case), &data, true, &context());
    let error = |name: &str, fit: &str, given: Option<&[Sequence]>| -> f64 {
        let out = dir.path().join(name);
        made(case, &out, &recipe(case, "weight-only-4bit", "int8", fit), given, &context()).unwrap();
        let found = raw(&out, &data, true, &context());
        found.iter().zip(&float).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let nearest = error("nearest", "", None);
    let fitted = error("fitted", FIT, Some(&data));
    assert!(fitted < 0.7 * nearest, "{fitted} of {nearest}");
}

#[test]
fn data_are_needed_for_fitting_and_refused_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (case, out) = ("v3-sequence", dir.path().join("x"));
    let data = sequences(case);
    let fitted = recipe(case, "w4a8", "int8", FIT);
    let error = made(case, &out, &fitted, None, &context()).unwrap_err().to_string();
    assert!(error.contains("needs calibration data"), "{error}");
    let error = made(case, &out, &fitted, Some(&[]), &context()).unwrap_err().to_string();
    assert!(error.contains("hold no row"), "{error}");
    let plain = recipe(case, "w4a8", "int8", "");
    let error = made(case, &out, &plain, Some(&data), &context()).unwrap_err().to_string();
    assert!(error.contains("uses no calibration data"), "{error}");
    assert!(!out.exists());
    // Static inputs and fitted weights go together, and int8 weights can be fitted too.
    let both = Recipe::parse(&format!("name = \"s\"\nbase = \"static\"\n{FIT}\n"), "s.toml").unwrap();
    let report = made(case, &out, &both, Some(&data), &context()).unwrap();
    assert!(report.calibration.is_some() && report.fitted.is_some());
    let manifest = Manifest::parse(&fs::read(out.join(manifest::NAME)).unwrap(), true).unwrap();
    assert_eq!(manifest.calibration.unwrap().observer.as_deref(), Some("minmax"));
    let source = Source::open(&out, None).unwrap();
    let int8 = &source.tensors["deberta.encoder.layer.0.output.dense.weight"];
    assert_eq!(int8.dtype(), Dtype::I8);
    assert!(int8.i8().unwrap().iter().all(|&c| c != -128));
}
