//! Static quantization: calibrated or refused, stored and then used, verified like any other artefact.

mod common;

use common::*;
use qberta::kernels::Matrix;
use qberta::model::{Batch, InputGrid, Linear, Observe, Observed, Operand, Sequence, Tap, forward};
use qberta::runtime::Options;
use qberta::store::manifest::{self, Decision, Input, Manifest, Weight};
use qberta::store::{Source, Tensor, safetensors};
use qberta::toolkit::export::{Target, export};
use qberta::toolkit::{Calibration, Conditions, Method, Report, quantize_under};
use qberta::{Kind, Recipe, Request, Session, quantize, verify};
use std::fs;
use std::path::Path;

fn calibrated(case: &str, out: &Path, method: Method, data: &[Sequence]) -> qberta::Result<Report> {
    calibrated_by("static", case, out, method, data)
}

fn artefact(case: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    calibrated(case, &out, Method::MinMax, &sequences(case)).unwrap();
    (dir, out)
}

/// Calibrated on the rows it answers here, a static model stays as near as a dynamic one has to.
fn stays_near_float(case: &str, out: &Path) {
    let int8 = Session::open(out, None, context()).unwrap();
    for (row, numbers) in expected(&golden(case)) {
        let raw = int8.raw(&[row], &Options::standard()).unwrap();
        let largest = numbers.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let difference = largest_difference(&raw[0].values(), &numbers) / largest;
        assert!(difference < 0.35, "{case}: static int8 is {difference} away from float");
    }
}

#[test]
fn every_golden_checkpoint_becomes_a_verified_static_artefact() {
    let dir = tempfile::tempdir().unwrap();
    for (case, _) in golden_cases() {
        let out = dir.path().join(&case);
        let report = calibrated(&case, &out, Method::MinMax, &sequences(&case))
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(report.plan.values().all(|d| d.weight == Weight::Int8Channel), "{case}");
        verify(&out, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
        // Everything but tables, decoders and position projections has a grid, and only those.
        let source = Source::open(&out, None).unwrap();
        let stored = |module: &str| {
            ["input_scale", "input_zero_point"].map(|t| source.tensors.contains_key(&format!("{module}.{t}")))
        };
        for (module, decision) in &report.plan {
            let float = module.contains("embeddings")
                || module.contains(".pos_")
                || ["decoder", "vocab_projector", "generator_lm_head"].iter().any(|d| module.ends_with(d));
            assert_eq!(decision.input == Input::Float, float, "{case}: {module}");
            assert_eq!(stored(module), [!float; 2], "{case}: {module}");
        }
        stays_near_float(&case, &out);
    }
}

#[test]
fn every_golden_checkpoint_becomes_an_artefact_with_static_scores() {
    let dir = tempfile::tempdir().unwrap();
    for (case, _) in golden_cases() {
        let out = dir.path().join(&case);
        let report = calibrated_by("static-attention", &case, &out, Method::MinMax, &sequences(&case))
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        verify(&out, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let source = Source::open(&out, None).unwrap();
        let manifest = source.manifest.as_ref().unwrap();
        let attentions: Vec<_> =
            report.plan.iter().filter(|(_, d)| **d == Decision::STATIC_SCORES).map(|(m, _)| m).collect();
        assert_eq!((manifest.format_version, attentions.len()), (5, source.arch.layers), "{case}");
        stays_near_float(&case, &out);
    }
}

/// How far each head of an operand reaches on the calibration data of a case, the long way.
fn reach(case: &str, layer: u16, operand: Operand) -> Vec<f32> {
    struct Most(Tap, usize, Vec<f32>);
    impl Observe for &mut Most {
        fn wants(&self, tap: Tap) -> bool {
            tap == self.0
        }
        fn see(&mut self, _: Tap, x: &Matrix) {
            for (c, v) in (0..x.rows()).flat_map(|i| x.row(i).iter().enumerate()) {
                self.2[c / self.1] = self.2[c / self.1].max(v.abs());
            }
        }
    }
    let cx = context();
    let model = Source::open(&golden(case), None).unwrap().load(&cx).unwrap().model;
    let arch = model.architecture();
    let mut most = Most(Tap::Operand(layer, operand), arch.head_size, vec![0.0; arch.heads]);
    for sequence in sequences(case) {
        let batch = Batch::new(arch, &[sequence]).unwrap();
        forward(arch, &mut Observed::new(&model, &cx, &mut most), &batch);
    }
    most.2
}

#[test]
fn heads_are_stored_with_the_scales_of_what_they_showed() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["v3-sequence", "v1-sequence"] {
        let out = dir.path().join(case);
        calibrated_by("static-attention", case, &out, Method::MinMax, &sequences(case)).unwrap();
        let source = Source::open(&out, None).unwrap();
        let layers = source.arch.layers as u16;
        for layer in [0, layers - 1] {
            for (operand, end) in [(Operand::Query, "q_scale"), (Operand::Key, "k_scale")] {
                let name = format!("deberta.encoder.layer.{layer}.attention.self.{end}");
                let expected: Vec<f32> = reach(case, layer, operand).iter().map(|m| m / 127.0).collect();
                assert_eq!(source.tensors[&name].to_f32().unwrap(), expected, "{case}: {name}");
            }
        }
    }
}

#[test]
fn static_scores_without_grids_or_with_wrong_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    let case = "v3-sequence";
    calibrated_by("static-attention", case, &out, Method::MinMax, &sequences(case)).unwrap();
    let module = "deberta.encoder.layer.1.attention.self";
    let open = || Source::open(&out, None).unwrap();
    let heads = open().arch.heads;
    for end in ["q_scale", "k_scale"] {
        let name = format!("{module}.{end}");
        let wrong = |scales: &[f32]| Some(Tensor::from_f32(vec![scales.len()], scales).unwrap());
        let codes = Tensor::from_i8(vec![heads], &vec![1; heads]).unwrap();
        let bad = [0.0, -0.5, f32::NAN, f32::INFINITY, 1e-44].map(|s| wrong(&vec![s; heads]));
        for with in bad.into_iter().chain([None, wrong(&vec![0.1; heads + 1]), Some(codes)]) {
            let mut source = open();
            assert!(source.tensors.remove(&name).is_some());
            source.tensors.extend(with.clone().map(|t| (name.clone(), t)));
            let error = source.load(&context()).expect_err(&name);
            assert!(matches!(error.kind(), Kind::Corrupt | Kind::Unsupported), "{error}");
            assert!(error.to_string().contains(module), "{error} does not name {module}");
        }
    }
    // Without the manifest that says what they are.
    let lost = dir.path().join("lost");
    fs::create_dir(&lost).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(out.join(file), lost.join(file)).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(lost.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    fs::write(lost.join("config.json"), config.to_string()).unwrap();
    let error = Source::open(&lost, None).unwrap_err().to_string();
    assert!(error.contains("qberta.json") && error.contains("_scale"), "{error}");
    // A float export has no use for them.
    let float = dir.path().join("float");
    export(&out, &float, Target::HuggingFace, &context()).unwrap();
    assert!(!Source::open(&float, None).unwrap().tensors.keys().any(|n| n.ends_with("_scale")));
    // Grids of heads where there are none, and a grid of tensors for an attention.
    let planned = |module: &str, decision: Decision| {
        let mut source = open();
        source.manifest.as_mut().unwrap().plan.insert(module.to_owned(), decision);
        source.load(&context()).expect_err(module).to_string()
    };
    let linear = "deberta.encoder.layer.1.intermediate.dense";
    let heads = Decision { input: Input::HeadStatic, weight: Weight::Int8Channel };
    assert!(planned(linear, heads).contains(linear));
    assert!(planned("deberta.embeddings.word_embeddings", heads).contains("word_embeddings"));
    let tensor = Decision { input: Input::TensorStatic, weight: Weight::Float };
    assert!(planned(module, tensor).contains("products of an attention"));
}

#[test]
fn no_data_no_static_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    let error = calibrated("v3-sequence", &out, Method::Mse, &[]).unwrap_err();
    assert!(error.to_string().contains("--calibration") && !out.exists(), "{error}");
    // A recipe that needs data without any, and one that uses none with some.
    let model = golden("v3-sequence");
    for preset in ["static", "static-attention"] {
        let recipe = Recipe::new(preset, &[]).unwrap();
        let request = Request { model: &model, out: &out, recipe: &recipe, task: None };
        let error = quantize(&request, &context(), &()).unwrap_err();
        assert!(error.to_string().contains("--calibration") && !out.exists(), "{error}");
    }
    let recipe = Recipe::new("dynamic", &[]).unwrap();
    let request = Request { model: &model, out: &out, recipe: &recipe, task: None };
    let data = sequences("v3-sequence");
    let calibration = Some(Calibration { sequences: &data, method: Method::Mse });
    let error =
        quantize_under(&request, Conditions { calibration, gate: None }, &context(), &()).unwrap_err();
    assert!(error.to_string().contains("dynamic") && !out.exists(), "{error}");
    // A sequence the model cannot take is named.
    let bad = [Sequence::of(vec![1, 2]), Sequence::of(vec![u32::MAX])];
    let error = calibrated("v3-sequence", &out, Method::Mse, &bad).unwrap_err();
    assert!(error.to_string().contains("outside the vocabulary") && !out.exists(), "{error}");
}

#[test]
fn an_uncalibrated_static_model_cannot_be_loaded() {
    let (_dir, out) = artefact("v3-sequence");
    let module = "deberta.encoder.layer.1.intermediate.dense";
    let broken = |name: &str, with: Option<Tensor>| {
        let mut source = Source::open(&out, None).unwrap();
        let name = format!("{module}.{name}");
        assert!(source.tensors.remove(&name).is_some());
        source.tensors.extend(with.map(|t| (name.clone(), t)));
        let error = source.load(&context()).expect_err(&name);
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::Unsupported), "{error}");
        assert!(error.to_string().contains(&name), "{error} does not name {name}");
    };
    broken("input_scale", None);
    broken("input_zero_point", None);
    for scale in [0.0, -0.5, f32::NAN, f32::INFINITY, 1e-44] {
        broken("input_scale", Some(Tensor::from_f32(vec![1], &[scale]).unwrap()));
    }
    broken("input_scale", Some(Tensor::from_f32(vec![2], &[0.1, 0.1]).unwrap()));
    broken("input_zero_point", Some(Tensor::from_f32(vec![1], &[0.0]).unwrap()));
    broken("input_zero_point", Some(Tensor::from_i8(vec![2], &[0, 0]).unwrap()));
}

#[test]
fn manifests_that_contradict_themselves_are_refused() {
    let (_dir, out) = artefact("v3-sequence");
    let bytes = fs::read(out.join(manifest::NAME)).unwrap();
    let good = Manifest::parse(&bytes, true).unwrap();
    assert_eq!(
        (good.format_version, good.calibration.as_ref().unwrap().observer.as_deref()),
        (2, Some("minmax"))
    );
    let refused = |edit: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        edit(&mut manifest);
        let bytes = manifest.seal();
        Manifest::parse(&bytes, true).expect_err("a contradiction").to_string()
    };
    let text = String::from_utf8(bytes).unwrap();
    for version in [1, 3] {
        let other = text.replace("\"format_version\": 2", &format!("\"format_version\": {version}"));
        assert_ne!(other, text);
        assert!(Manifest::parse(other.as_bytes(), true).unwrap_err().to_string().contains("version"));
    }
    assert!(refused(&|m| m.calibration = None).contains("no calibration"));
    assert!(refused(&|m| m.calibration.as_mut().unwrap().sequences = 0).contains("nothing"));
    let dynamic = |m: &mut Manifest| {
        m.plan.values_mut().filter(|d| d.input == Input::TensorStatic).for_each(|d| {
            d.input = Input::TokenAsymmetric;
        });
    };
    assert!(refused(&dynamic).contains("no input of the plan is static"));
    // A static input where there is no int8 linear is refused when the model is built.
    let mut source = Source::open(&out, None).unwrap();
    let plan = &mut source.manifest.as_mut().unwrap().plan;
    plan.get_mut("deberta.embeddings.word_embeddings").unwrap().input = Input::TensorStatic;
    assert!(source.load(&context()).unwrap_err().to_string().contains("word_embeddings"));
}

#[test]
fn dynamic_artefacts_are_still_version_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    let (model, recipe) = (golden("v3-sequence"), Recipe::new("dynamic", &[]).unwrap());
    quantize(&Request { model: &model, out: &out, recipe: &recipe, task: None }, &context(), &()).unwrap();
    let text = fs::read_to_string(out.join(manifest::NAME)).unwrap();
    assert!(text.contains("\"format_version\": 1,") && !text.contains("\"calibration\""), "{text}");
}

#[test]
fn static_artefacts_repeat_and_survive_a_round_trip() {
    let (_a, first) = artefact("v1-sequence");
    let (_b, second) = artefact("v1-sequence");
    for name in ["model.safetensors", "config.json", manifest::NAME] {
        assert_eq!(fs::read(first.join(name)).unwrap(), fs::read(second.join(name)).unwrap(), "{name}");
    }
    let source = Source::open(&first, None).unwrap();
    assert_eq!(
        safetensors::write(&source.tensors).unwrap(),
        fs::read(first.join("model.safetensors")).unwrap()
    );
    // A float export has no use for grids.
    let float = first.with_file_name("float");
    export(&first, &float, Target::HuggingFace, &context()).unwrap();
    let names: Vec<String> = Source::open(&float, None).unwrap().tensors.into_keys().collect();
    assert!(names.len() > 20 && !names.iter().any(|n| n.contains("input_")), "{names:?}");
}

/// One value the long way: every input quantized with the stored grid, split columns and all, in f64.
fn expected_output(x: &[f32], source: &Source, module: &str, out: usize) -> f64 {
    let tensor = |name: &str| &source.tensors[&format!("{module}.{name}")];
    let scale = f64::from(tensor("input_scale").to_f32().unwrap()[0]);
    let zero = f64::from(tensor("input_zero_point").i8().unwrap()[0]) + 128.0;
    let r = f64::from(1.0f32 / scale as f32);
    let weight = &tensor("weight").i8().unwrap()[out * x.len()..(out + 1) * x.len()];
    let splits = source.manifest.as_ref().unwrap().splits.get(module).cloned().unwrap_or_default();
    let sum: f64 = x
        .iter()
        .zip(weight)
        .enumerate()
        .map(|(channel, (x, w))| {
            let parts = 1.0 + splits.iter().filter(|c| **c as usize == channel).count() as f64;
            // The code of the sum: what the columns together can hold.
            let steps = f64::from(*x * r as f32).round_ties_even();
            steps.clamp(-zero * parts, (255.0 - zero) * parts) * f64::from(*w)
        })
        .sum();
    let bias = f64::from(tensor("bias").to_f32().unwrap()[out]);
    sum * scale * f64::from(tensor("weight_scale").to_f32().unwrap()[out]) + bias
}

#[test]
fn the_stored_grid_is_the_one_that_runs() {
    let (_dir, out) = artefact("v3-sequence");
    let source = Source::open(&out, None).unwrap();
    let model = source.load(&context()).unwrap().model;
    let mut compared = 0;
    for (module, site) in [
        ("attention.self.value_proj", "value"),
        ("intermediate.dense", "ffn_up"),
        ("output.dense", "ffn_down"),
    ] {
        let module = format!("deberta.encoder.layer.0.{module}");
        let (_, linear) =
            model.weights().linears.iter().find(|(s, _)| s.to_string() == format!("layer.0.{site}")).unwrap();
        let Linear::Int8 { input: InputGrid::Fixed(grid), .. } = linear else {
            panic!("{module} does not run on a stored grid")
        };
        let (outputs, inputs) = linear.shape();
        // From far inside the range to far outside.
        let reach = grid.range().1 - grid.range().0;
        let x: Vec<f32> = (0..inputs).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * reach).collect();
        let y = linear.forward(&context(), &Matrix::from_vec(1, inputs, x.clone()));
        for o in 0..outputs {
            let exact = expected_output(&x, &source, &module, o);
            let found = f64::from(y.row(0)[o]);
            assert!((found - exact).abs() <= 1e-5 * exact.abs().max(1.0), "{module} {o}: {found} {exact}");
            compared += 1;
        }
    }
    assert!(compared >= 96);
}

#[test]
fn clipping_of_held_out_rows_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let usual: Vec<Sequence> = (0..16).map(|i| Sequence::of(vec![5, 6, 7 + i % 2])).collect();
    let same = calibrated("v3-sequence", &dir.path().join("a"), Method::MinMax, &usual).unwrap();
    let same = same.calibration.unwrap();
    assert_eq!((same.sequences, same.held_out, same.tokens), (16, 2, 48));
    assert_eq!(same.clipped, 0.0, "rows like the calibrated ones lie inside");
    // The tail holds tokens that were never seen before it.
    let mut shifted = usual.clone();
    for s in &mut shifted[14..] {
        s.ids = (20..40).collect();
    }
    let other = calibrated("v3-sequence", &dir.path().join("b"), Method::MinMax, &shifted).unwrap();
    let other = other.calibration.unwrap();
    assert!(other.clipped > 1e-3, "{}", other.clipped);
    assert!(other.clipped_by_module.values().any(|part| *part > other.clipped));
    // The stored grids come from all rows: nothing of the data lies outside them.
    let grid = |dir: &Path| {
        let source = Source::open(dir, None).unwrap();
        source.tensors["deberta.encoder.layer.0.attention.self.query_proj.input_scale"].to_f32().unwrap()[0]
    };
    assert!(grid(&dir.path().join("b")) > grid(&dir.path().join("a")));
}

#[test]
fn every_observer_makes_a_model_that_answers() {
    let dir = tempfile::tempdir().unwrap();
    for (method, name, _) in Method::ALL {
        let out = dir.path().join(name);
        let report = calibrated("v3-sequence", &out, method, &sequences("v3-sequence")).unwrap();
        assert_eq!(report.calibration.unwrap().observer, name);
        verify(&out, &context()).unwrap();
    }
}
