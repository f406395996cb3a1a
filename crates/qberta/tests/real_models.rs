//! The fetched models (tools/fetch_models.py) against float64 references, and the whole journey of a real
//! DeBERTa-v3: quantize, save, reopen, verify, agree with float.
//!
//! Skipped with a printed reason where the models are absent; QBERTA_REQUIRE_MODELS=1 makes that a failure.

mod common;

use common::*;
use qberta::model::Sequence;
use qberta::runtime::{Options, Tokenizer};
use qberta::store::Source;
use qberta::toolkit::quantize_in_memory;
use qberta::{Context, Isa, Recipe, Request, Row, Session, quantize, verify};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Absolute, float32 against float64, on outputs of order one.
const MAX_DIFFERENCE: f32 = 1e-4;

/// Weights of an artefact, as a share of the same weights in float32.
const LARGEST_SHARE: f64 = 0.30;

/// Sentence pairs on which int8 and float are compared, and how many must give the same label.
const PAIRS: usize = 500;
const LEAST_AGREEMENT: f64 = 0.99;

const XSMALL: &str = "deberta-v3-xsmall";
const MINILM: &str = "minilm-l6";

fn models() -> PathBuf {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models");
    std::env::var_os("QBERTA_MODELS").map_or_else(fetched, PathBuf::from)
}

/// The directory of a fetched model, or `None` after saying why not.
fn fetched(name: &str) -> Option<PathBuf> {
    let dir = models().join(name);
    if dir.join("config.json").is_file() && models().join("reference").is_dir() {
        return Some(dir);
    }
    let missing = format!("{} is not there; `cargo xtask models` fetches it", dir.display());
    assert!(std::env::var("QBERTA_REQUIRE_MODELS").as_deref() != Ok("1"), "{missing}");
    println!("skipped: {missing}");
    None
}

fn reference(name: &str) -> Vec<Value> {
    let path = models().join("reference").join(format!("{name}.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() >= 20, "the reference has shrunk to {} rows", rows.len());
    rows
}

fn row(value: &Value) -> Row {
    let list = |key: &str| -> Vec<u32> {
        value.get(key).map_or_else(Vec::new, |v| serde_json::from_value(v.clone()).unwrap())
    };
    Row::Tokens(Sequence { ids: list("input_ids"), types: list("token_type_ids") })
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// All cores: these models are large enough to be slow in a test.
fn all_cores() -> Context {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    Context::new(Isa::from_env().unwrap(), threads).unwrap()
}

#[test]
fn float_deberta_v3_equals_the_reference() {
    let Some(dir) = fetched(XSMALL) else { return };
    let session = Session::open(&dir, None, all_cores()).unwrap();
    let mut worst = 0.0f32;
    let mut longest = 0;
    for expected in reference(XSMALL) {
        let raw = session.raw(&[row(&expected)], &Options::standard()).unwrap();
        worst = worst.max(largest_difference(&raw[0].values(), &floats(&expected["raw"]["logits"])));
        longest = longest.max(expected["input_ids"].as_array().unwrap().len());
    }
    println!("{XSMALL}: largest difference {worst:.1e}, longest input {longest} tokens");
    assert!(longest > 512, "no input goes past the relative table");
    assert!(worst <= MAX_DIFFERENCE, "{worst:e}");
}

#[test]
fn float_minilm_equals_the_reference() {
    let Some(dir) = fetched(MINILM) else { return };
    let session = Session::open(&dir, None, all_cores()).unwrap();
    let width = session.architecture().hidden;
    let mut worst = 0.0f32;
    for expected in reference(MINILM) {
        let states = session.raw(&[row(&expected)], &Options::standard()).unwrap()[0].values();
        let tokens = states.len() / width;
        let mean: Vec<f32> = (0..width)
            .map(|c| (0..tokens).map(|t| f64::from(states[t * width + c])).sum::<f64>() / tokens as f64)
            .map(|m| m as f32)
            .collect();
        worst = worst.max(largest_difference(&states[..width], &floats(&expected["raw"]["first"])));
        worst = worst.max(largest_difference(&mean, &floats(&expected["raw"]["mean"])));
    }
    println!("{MINILM}: largest difference {worst:.1e}");
    assert!(worst <= MAX_DIFFERENCE, "{worst:e}");
}

/// Logits of `rows`, row by row.
fn logits(session: &Session, rows: &[Row]) -> Vec<Vec<u32>> {
    session.raw(rows, &Options::standard()).unwrap().iter().map(|r| bits(&r.values())).collect()
}

/// The xsmall as an artefact, made once for the tests that read it. It replaces that of the last run:
/// statics are never dropped, so a temporary directory would stay behind each time.
fn artefact(source: &Path) -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xsmall-int8");
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        let recipe = Recipe::new("dynamic", &[]).unwrap();
        let request = Request { model: source, out: &out, recipe: &recipe, task: None };
        // Also compares bits: the model in memory records its answers, the reopened file must repeat them.
        let report = quantize(&request, &all_cores(), &()).unwrap();
        let share = report.weight_bytes as f64 / report.float_bytes as f64;
        println!(
            "{XSMALL}: {} of {} bytes ({:.1} %)",
            report.weight_bytes,
            report.float_bytes,
            100.0 * share
        );
        assert!(share <= LARGEST_SHARE, "weights are {:.1} % of float32", 100.0 * share);
        out
    })
}

#[test]
fn the_artefact_of_a_real_model_is_small_and_verifies() {
    let Some(source) = fetched(XSMALL) else { return };
    let dir = artefact(&source);
    let float = std::fs::metadata(source.join("model.safetensors")).unwrap().len();
    let int8 = std::fs::metadata(dir.join("model.safetensors")).unwrap().len();
    assert!(int8 as f64 <= LARGEST_SHARE * float as f64, "{int8} of {float} bytes");
    let verified = verify(dir, &all_cores()).unwrap();
    assert!(verified.probes > 0 && verified.unlisted.is_empty(), "{verified:?}");
}

/// Texts of the gloss data: half the pairs mix two rows, half split one row at its middle word.
fn pairs() -> Vec<Row> {
    let mut texts = Vec::new();
    for file in ["validation.jsonl", "calibration.jsonl"] {
        let lines = std::fs::read_to_string(testdata().join("gloss").join(file)).unwrap();
        texts.extend(
            lines
                .lines()
                .map(|l| serde_json::from_str::<Value>(l).unwrap()["text"].as_str().unwrap().to_owned()),
        );
    }
    (0..PAIRS)
        .map(|i| {
            let text = &texts[i * 3 % texts.len()];
            if i % 2 == 0 {
                let other = &texts[(i * 7 + 11) % texts.len()];
                return Row::Text { text: text.clone(), pair: Some(other.clone()) };
            }
            let words: Vec<&str> = text.split(' ').collect();
            let (a, b) = words.split_at(words.len() / 2);
            Row::Text { text: a.join(" "), pair: Some(b.join(" ")) }
        })
        .collect()
}

fn first_of_largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

#[test]
fn int8_agrees_with_float_on_a_real_model() {
    let Some(source) = fetched(XSMALL) else { return };
    let rows = pairs();
    let run = |dir: &Path| -> Vec<Vec<f32>> {
        let session = Session::open(dir, None, all_cores()).unwrap();
        session.raw(&rows, &Options::standard()).unwrap().iter().map(|r| r.values()).collect()
    };
    let (float, int8) = (run(&source), run(artefact(&source)));
    let same = float.iter().zip(&int8).filter(|(f, i)| first_of_largest(f) == first_of_largest(i)).count();
    let differences: Vec<f32> = float.iter().zip(&int8).map(|(f, i)| largest_difference(f, i)).collect();
    let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / PAIRS as f64;
    let worst = differences.iter().copied().fold(0.0, f32::max);
    let agreement = same as f64 / PAIRS as f64;
    // Where they differ, how sure float was: an honest quantizer flips close calls only.
    let margin = |f: &[f32]| (f[0] - f[1]).abs();
    let flipped = float.iter().zip(&int8).filter(|(f, i)| first_of_largest(f) != first_of_largest(i));
    let widest = flipped.map(|(f, _)| margin(f)).fold(0.0, f32::max);
    println!(
        "{XSMALL}: int8 and float agree on {same} of {PAIRS}; logit difference mean {mean:.4}, worst {worst:.4}; \
         largest float margin that flipped {widest:.3}"
    );
    assert!(agreement >= LEAST_AGREEMENT, "{:.1} %", 100.0 * agreement);
}

#[test]
fn no_bit_of_a_real_artefact_depends_on_saving_batch_or_threads() {
    let Some(source) = fetched(XSMALL) else { return };
    let dir = artefact(&source);
    let rows = pairs();
    // Before the save: quantized in memory, never written.
    let recipe = Recipe::new("dynamic", &[]).unwrap();
    let float = Source::open(&source, None).unwrap();
    let unsaved = quantize_in_memory(float, &recipe, &all_cores(), &()).unwrap();
    let tokenizer = Tokenizer::open(&source).unwrap();
    let before = logits(&Session::new(&unsaved, tokenizer, all_cores()).unwrap(), &rows);
    for (threads, batch) in [(1, 1), (1, 32), (2, 1), (2, 32)] {
        let cx = Context::new(Isa::from_env().unwrap(), threads).unwrap();
        let session = Session::open(dir, None, cx).unwrap().with_batch_rows(batch);
        assert!(logits(&session, &rows) == before, "{threads} threads, batches of {batch}");
    }
    println!(
        "{XSMALL}: {} pairs, equal bits before the save and after, 1 and 2 threads, batches of 1 and 32",
        rows.len()
    );
}
