//! Plans are what they say: a selection is its artefact, and a planted fault is routed around.

mod common;

use common::*;
use qberta::model::{Batch, Native, Sequence, forward};
use qberta::store::Source;
use qberta::toolkit::select::{
    Axis, Choice, Costs, Damages, Palette, Search, UNBOUNDED, amounts, measure, solve, total,
};
use qberta::toolkit::{Calibration, Conditions, Method, quantize_under};
use qberta::{Recipe, Request, Row, Task};
use std::fs;
use std::path::{Path, PathBuf};

fn case(name: &str) -> (PathBuf, Option<Task>, Vec<Vec<Sequence>>) {
    let record = golden_cases().into_iter().find(|(c, _)| c == name).unwrap().1;
    let rows = expected(&golden(name)).into_iter().map(|(row, _)| match row {
        Row::Tokens(s) => vec![s],
        Row::TokenChoices(all) => all,
        other => panic!("{name}: a golden row is {}", other.kind()),
    });
    (golden(name), Some(task(&record)), rows.collect())
}

fn palette(dir: &Path, task: Option<Task>, rows: &[Vec<Sequence>], names: &[&str]) -> Palette {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let sequences = rows.concat();
    let data = names
        .iter()
        .any(|n| n.starts_with("static"))
        .then_some(Calibration { sequences: &sequences, method: Method::MinMax });
    let choices = Choice::named(&names, data.is_some()).unwrap();
    Palette::new(&|| Source::open(dir, task), choices, data, &context(), &()).unwrap()
}

#[test]
fn a_selection_answers_with_the_bits_of_the_artefact_its_recipe_makes() {
    let cases = [
        "v3-sequence",
        "v3-conv3",
        "v3-multiple-choice",
        "v1-talking-head",
        "bert-mlm",
        "electra-sequence",
        "distilbert-qa",
        "bert-features",
    ];
    for name in cases {
        let (model, task, rows) = case(name);
        let mut all = vec!["dynamic", "static", "bf16", "weight-only", "int8-scores", "static-scores"];
        if name != "v1-talking-head" {
            all.extend(["int8-context", "int8-attention"]); // talking heads leave no choice about the context
        }
        let palette = palette(&model, task, &rows, &all);
        for turn in 0..2 {
            // Every choice somewhere, differently each turn.
            let mixed: Vec<usize> = palette
                .units
                .iter()
                .enumerate()
                .map(|(u, unit)| (u * 7 / 3 + turn) % unit.offers.len())
                .collect();
            let plan = palette.plan(&mixed);
            let text = Recipe::text_of("mixed", "a test", palette.architecture(), &plan).unwrap();
            let recipe = Recipe::parse(&text, "mixed.toml").unwrap();
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("mixed");
            let sequences = rows.concat();
            let data = text
                .contains("static")
                .then_some(Calibration { sequences: &sequences, method: Method::MinMax });
            let conditions = Conditions { calibration: data, gate: None };
            let request = Request { model: &model, out: &out, recipe: &recipe, task };
            let report = quantize_under(&request, conditions, &context(), &()).unwrap();
            assert_eq!(report.plan, plan, "{name}\n{text}");
            let artefact = Source::open(&out, task).unwrap().load(&context()).unwrap().model;
            let assembled = palette.model(&mixed, &context()).unwrap();
            for row in &rows {
                let batch = Batch::new(assembled.architecture(), row).unwrap();
                let run = |m: &qberta::model::Model| {
                    bits(forward(m.architecture(), &mut Native::new(m, &context()), &batch).as_slice())
                };
                assert_eq!(run(&artefact), run(&assembled), "{name} turn {turn}\n{text}");
            }
            let scores = palette.units.iter().filter(|u| u.is_attention()).count();
            assert_eq!(scores, assembled.architecture().layers, "{name}");
            // What is said about its size is near what the file has: headers and a bias or two apart.
            let (said, real) = (palette.bytes(&mixed) as f64, report.weight_bytes as f64);
            assert!((said - real).abs() < 0.08 * real, "{name}: {said} said, {real} real");
        }
    }
}

/// A copy of `model` in which one input channel of `module` weighs a hundred times as much.
fn planted(model: &Path, module: &str, dir: &Path) -> PathBuf {
    let out = dir.join("planted");
    fs::create_dir(&out).unwrap();
    for file in fs::read_dir(model).unwrap().flatten() {
        fs::copy(file.path(), out.join(file.file_name())).unwrap();
    }
    let source = Source::open(model, None).unwrap();
    let mut tensors = source.tensors.clone();
    let name = format!("{module}.weight");
    let weight = &tensors[&name];
    let (shape, mut values) = (weight.shape().to_vec(), weight.to_f32().unwrap());
    values.chunks_exact_mut(shape[1]).for_each(|row| row[3] *= 100.0);
    tensors.insert(name, qberta::store::Tensor::from_f32(shape, &values).unwrap());
    fs::write(out.join("model.safetensors"), qberta::store::safetensors::write(&tensors).unwrap()).unwrap();
    out
}

#[test]
fn a_planted_outlier_channel_is_routed_around() {
    let (model, task, rows) = case("v3-sequence");
    for module in ["layer.1.output.dense", "layer.0.attention.self.value_proj", "layer.2.intermediate.dense"]
    {
        let dir = tempfile::tempdir().unwrap();
        let plain = palette(&model, task, &rows, &["dynamic"]);
        let Some(unit) = plain.units.iter().find(|u| u.name.ends_with(module)) else { continue };
        let model = planted(&model, &unit.name, dir.path());
        let palette = palette(&model, task, &rows, &["dynamic"]);
        for search in [Search::Fast, Search::Alone, Search::Exhaustive] {
            let mut damages = Damages::default();
            measure(&palette, &rows, search, &mut damages, &context(), &(), &mut |_| Ok(())).unwrap();
            let units = amounts(&palette, &damages, &Costs::default());
            let int8 = total(&units, &palette.throughout(1));
            // Room for the largest module in float, and for no two.
            let mut bounds = UNBOUNDED;
            let extra = |u: &qberta::toolkit::select::Unit| u.offers[0].bytes - u.offers[1].bytes;
            let linears = palette.units.iter().filter(|u| !u.name.contains("word"));
            bounds[Axis::Size as usize] = int8[2] + linears.map(extra).max().unwrap() as f64;
            let chosen = solve(&units, Axis::Damage, &bounds).unwrap();
            let float = palette.in_float(&chosen);
            assert!(float.contains(&unit.name.as_str()), "{search:?} {module}: {float:?}");
            // And with a bound on the damage, it is among the first to go back.
            let mut bounds = UNBOUNDED;
            bounds[Axis::Damage as usize] = 0.5 * int8[0];
            let chosen = solve(&units, Axis::Size, &bounds).unwrap();
            let float = palette.in_float(&chosen);
            assert!(float.contains(&unit.name.as_str()), "{search:?} {module}: {float:?}");
        }
    }
}
