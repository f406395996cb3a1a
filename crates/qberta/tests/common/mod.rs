//! Shared by the integration tests: where the test data lies and how golden rows are read.
#![allow(dead_code)] // each test file uses its part

use qberta::model::Sequence;
use qberta::store::manifest::Manifest;
use qberta::store::{Source, Tensor};
use qberta::toolkit::{Calibration, Conditions, Method, Report, quantize_under};
use qberta::{Context, Isa, Recipe, Request, Row, Task};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `testdata/` of the repository.
pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

/// The golden case called `name`.
pub fn golden(name: &str) -> PathBuf {
    testdata().join("golden").join(name)
}

/// Names of all golden cases with the whole record of each.
pub fn golden_cases() -> Vec<(String, Value)> {
    let text =
        std::fs::read_to_string(testdata().join("golden/index.json")).expect("testdata/golden/index.json");
    let index: Vec<Value> = serde_json::from_str(&text).expect("index.json is a list");
    assert!(index.len() >= 100, "the golden set has shrunk to {}", index.len());
    index.into_iter().map(|c| (c["case"].as_str().unwrap().to_owned(), c)).collect()
}

/// The task of a golden case, for checkpoints whose configuration names none.
pub fn task(record: &Value) -> Task {
    match record["head"].as_str().unwrap() {
        "sequence" => Task::SequenceClassification,
        "token" => Task::TokenClassification,
        "question-answering" => Task::QuestionAnswering,
        "multiple-choice" => Task::MultipleChoice,
        "masked-lm" => Task::FillMask,
        "features" => Task::Features,
        other => panic!("unknown head {other}"),
    }
}

/// Rows of an `expected.jsonl` with the numbers transformers gave, row by row.
pub fn expected(dir: &Path) -> Vec<(Row, Vec<f32>)> {
    let text = std::fs::read_to_string(dir.join("expected.jsonl")).expect("expected.jsonl");
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            let raw = value.as_object_mut().unwrap().remove("raw").unwrap();
            (Row::parse(&value.to_string()).unwrap(), numbers(&raw))
        })
        .collect()
}

/// All numbers of a raw answer: start logits before end logits, otherwise in reading order.
fn numbers(raw: &Value) -> Vec<f32> {
    fn flat(v: &Value, out: &mut Vec<f32>) {
        match v {
            Value::Array(items) => items.iter().for_each(|i| flat(i, out)),
            number => out.push(number.as_f64().unwrap() as f32),
        }
    }
    let mut out = Vec::new();
    for key in ["logits", "start_logits", "end_logits", "last_hidden_state"] {
        if let Some(v) = raw.get(key) {
            flat(v, &mut out);
        }
    }
    out
}

/// Kernels with one thread on the instruction set of `QBERTA_ISA`, the best one if it is unset.
pub fn context() -> Context {
    Context::new(Isa::from_env().unwrap(), 1).unwrap()
}

/// The dynamic recipe with products of attention from codes, or in float; the context of talking heads always is.
pub fn attention(case: &str, [scores, context]: [&str; 2]) -> Recipe {
    let context = if case.contains("talking") { "float" } else { context };
    let section = format!("[attention]\nscores = \"{scores}\"\ncontext = \"{context}\"\n");
    let text = format!("name = \"attention\"\nbase = \"dynamic\"\n{section}");
    Recipe::parse(&text, "attention.toml").unwrap()
}

/// Which products of attention are from codes.
pub const ATTENTIONS: [[&str; 2]; 3] = [["int8", "float"], ["float", "int8"], ["int8", "int8"]];

/// The token rows of a golden case, and others of the same kind.
pub fn sequences(case: &str) -> Vec<Sequence> {
    let mut all = Vec::new();
    for (row, _) in expected(&golden(case)) {
        match row {
            Row::Tokens(s) => all.push(s),
            Row::TokenChoices(many) => all.extend(many),
            other => panic!("{case}: a golden row is {}", other.kind()),
        }
    }
    all
}

/// Quantizes a golden case by a preset that takes calibration data.
pub fn calibrated_by(
    preset: &str,
    case: &str,
    out: &Path,
    method: Method,
    data: &[Sequence],
) -> qberta::Result<Report> {
    let record = golden_cases().into_iter().find(|(c, _)| c == case).unwrap().1;
    let (model, recipe) = (golden(case), Recipe::new(preset, &[])?);
    let request = Request { model: &model, out, recipe: &recipe, task: Some(task(&record)) };
    let calibration = Some(Calibration { sequences: data, method });
    quantize_under(&request, Conditions { calibration, gate: None }, &context(), &())
}

/// A change to what an artefact says and holds.
pub type Edit<'e> = dyn Fn(&mut Manifest, &mut BTreeMap<String, Tensor>) + 'e;

/// Whether an artefact still loads with `edit` made to it.
pub fn load_edited(source: &Source, edit: &Edit) -> qberta::Result<()> {
    let (mut manifest, mut tensors) = (source.manifest.clone().unwrap(), source.tensors.clone());
    edit(&mut manifest, &mut tensors);
    let config = source.config.clone();
    Source::from_parts(&source.dir, config, Some(manifest), tensors, Vec::new(), None)
        .and_then(|s| s.load(&context()).map(drop))
}

/// The largest absolute difference of two equally long lists of finite numbers.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "outputs have different sizes");
    // max() passes over NaN, so that broken numbers would count as equal.
    assert!(a.iter().chain(b).all(|v| v.is_finite()), "an output is not finite");
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// Bits of a list, for equality.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// What PyTorch's quantization left.
pub fn fixtures() -> PathBuf {
    testdata().join("doctor")
}

/// The fixture called `case`: its file and its base.
pub fn fixture(case: &str) -> (PathBuf, PathBuf) {
    let record = index().into_iter().find(|c| c["case"] == case).unwrap();
    let base = record["base"].as_str().unwrap_or("");
    (fixtures().join(case).join(record["file"].as_str().unwrap()), fixtures().join(base))
}

/// The record of each fixture.
pub fn index() -> Vec<Value> {
    let text = std::fs::read_to_string(fixtures().join("index.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Runs `qberta doctor`: standard output, standard error, status.
pub fn doctor(args: &[&str]) -> (String, String, i32) {
    let output = assert_cmd::Command::cargo_bin("qberta").unwrap().arg("doctor").args(args).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

/// A path as an argument.
pub fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}
