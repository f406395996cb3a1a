//! `qberta demo`: the whole story on a model inside the program.

use crate::screen::{bytes, count, table};
use crate::{Outcome, World};
use clap::Args;
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use qberta_runtime::metrics::statistics::tango;
use qberta_runtime::{Answer, Options, RawAnswer, Row, Session, Tokenizer};
use qberta_store::load::{Source, parse_config};
use qberta_store::safetensors;
use qberta_toolkit::{Progress, Recipe, Request, quantize, verify};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Quantize, save, verify, reload and predict with a built-in model
///
/// A small DeBERTa-v3 (6 layers, hidden 192) trained to name the topic of a dictionary gloss, and 10 000
/// labelled glosses it has not seen. Nothing is downloaded.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  qberta demo\n  qberta demo --keep ./gloss   # keep the float model and the artefact"
)]
pub struct DemoArgs {
    /// Keep the files in this new directory (float/ and int8/)
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Labelled rows to run
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rows: u32,
}

/// The files of the built-in model. WordNet glosses, WORDNET-LICENSE.txt applies.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../assets/gloss/config.json")),
    ("model.safetensors", include_bytes!("../assets/gloss/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/gloss/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/gloss/tokenizer_config.json")),
    ("special_tokens_map.json", include_bytes!("../assets/gloss/special_tokens_map.json")),
];
const NOTICE: &[u8] = include_bytes!("../assets/gloss/WORDNET-LICENSE.txt");
const TEST_ROWS: &str = include_str!("../assets/gloss/test.jsonl");

/// What one model did on the test rows.
struct Trial {
    labels: Vec<String>,
    logits: Vec<Vec<f32>>,
    seconds: f64,
}

pub fn run(args: &DemoArgs, world: &World) -> Result<Outcome> {
    let scratch = tempfile::tempdir().map_err(|e| Error::io("cannot create", "a scratch directory", &e))?;
    let root: &Path = match &args.keep {
        Some(dir) => {
            qberta_store::atomic::check_target(dir)?;
            dir
        }
        None => scratch.path(),
    };
    let (float_dir, int8_dir) = (root.join("float"), root.join("int8"));
    unpack(&float_dir)?;
    let (rows, truth) = test_rows(args.rows as usize)?;
    let say = |text: String| {
        if !world.screen.json {
            world.screen.line(text);
        }
    };
    let options = Options::standard();

    say("1. quantize  a DeBERTa-v3 with 6 layers and 45 topics, recipe dynamic (W8A8)".into());
    let recipe = Recipe::new("dynamic", &[])?;
    let request = Request { model: &float_dir, out: &int8_dir, recipe: &recipe, task: None };
    let report = quantize(&request, &world.cx, &world.screen)?;
    say(format!("   saved     {}, already reopened and replayed", bytes(report.weight_bytes)));

    let verified = verify(&int8_dir, &world.cx)?;
    say(format!(
        "2. verify    {} files, {} tensors, {} probes: every digest and every output bit agrees",
        verified.files, verified.tensors, verified.probes
    ));

    let built_in = Source::from_parts(
        Path::new("built-in"),
        parse_config(FILES[0].1)?,
        None,
        safetensors::read_bytes(&Bytes::from_static(FILES[1].1))?,
        Vec::new(),
        None,
    )?;
    let tokenizer = Tokenizer::from_files(|name| {
        FILES.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.to_vec())
    })?;
    let float = Session::new(&built_in, tokenizer, world.cx.clone())?;
    let int8 = Session::open(&int8_dir, None, world.cx.clone())?;
    let example = Row::text("a small domesticated feline kept as a pet");
    if let Answer::Label { label, score, .. } = &int8.answer(std::slice::from_ref(&example), &options)?[0] {
        say(format!("3. predict   \"a small domesticated feline kept as a pet\" -> {label} ({score:.3})"));
    }

    say(format!(
        "4. compare   {} labelled glosses, {} threads, {}\n",
        count(rows.len()),
        world.cx.threads.count(),
        world.cx.isa.name()
    ));
    let a = trial(&float, &rows, &options, "float", world)?;
    let b = trial(&int8, &rows, &options, "int8", world)?;
    let c = compare(&a, &b, &truth);
    if world.screen.json {
        world.screen.value(&json!({
            "rows": rows.len(), "threads": world.cx.threads.count(), "isa": world.cx.isa.name(),
            "float32_bytes": report.float_bytes, "int8_bytes": report.weight_bytes,
            "float_accuracy": c.float, "int8_accuracy": c.int8,
            "accuracy_drop_points": c.drop, "accuracy_drop_interval_95": c.interval,
            "agreement": c.agreement, "largest_logit_difference": c.largest, "mean_logit_difference": c.mean,
            "float_seconds": a.seconds, "int8_seconds": b.seconds,
        }));
        return Ok(Outcome::Done);
    }
    let per_second = |t: &Trial| format!("{:.0} rows/s", rows.len() as f64 / t.seconds);
    let line = |a: &str, b: String, c: String| vec![a.to_owned(), b, c];
    let rows = [
        line("weights", format!("{} (float32)", bytes(report.float_bytes)), bytes(report.weight_bytes)),
        line("speed", per_second(&a), per_second(&b)),
        line("accuracy", format!("{:.2} %", c.float), format!("{:.2} %", c.int8)),
    ];
    world.screen.line(table(&["", ">float", ">int8"], rows).to_string());
    world.screen.line(format!(
        "accuracy drop {:+.2} points, 95 % interval [{:+.2}, {:+.2}]; same answer on {:.2} % of rows;\n\
         logit difference {:.4} on average, {:.4} at most",
        c.drop, c.interval[0], c.interval[1], c.agreement, c.mean, c.largest
    ));
    if let Some(dir) = &args.keep {
        world.screen.line(format!("kept: {0}/float and {0}/int8", dir.display()));
    }
    Ok(Outcome::Done)
}

/// Writes the built-in model as a checkpoint directory.
fn unpack(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("cannot create", dir.display(), &e))?;
    for (name, bytes) in FILES.iter().chain([&("LICENSE.txt", NOTICE)]) {
        let path = dir.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io("cannot write", path.display(), &e))?;
    }
    Ok(())
}

/// Test rows and their labels.
fn test_rows(n: usize) -> Result<(Vec<Row>, Vec<String>)> {
    let mut rows = Vec::with_capacity(n);
    let mut truth = Vec::with_capacity(n);
    for line in TEST_ROWS.lines().take(n) {
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| Error::corrupt("built-in test row").found(e))?;
        truth.push(value["label"].as_str().unwrap_or_default().to_owned());
        rows.push(Row::text(value["text"].as_str().unwrap_or_default()));
    }
    Ok((rows, truth))
}

/// Runs all rows, a few hundred at a time so that progress shows.
fn trial(session: &Session, rows: &[Row], options: &Options, name: &str, world: &World) -> Result<Trial> {
    const CHUNK: usize = 500;
    world.screen.stage(&format!("running {name}"), rows.len().div_ceil(CHUNK) as u64);
    let labels = &session.architecture().labels;
    let mut trial = Trial { labels: Vec::new(), logits: Vec::new(), seconds: 0.0 };
    for chunk in rows.chunks(CHUNK) {
        let begin = Instant::now();
        let raw = session.raw(chunk, options)?;
        trial.seconds += begin.elapsed().as_secs_f64();
        for answer in raw {
            let RawAnswer::Logits { logits } = answer else {
                return Err(Error::corrupt("built-in model is not a classifier"));
            };
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
            trial.labels.push(labels[best].clone());
            trial.logits.push(logits);
        }
        world.screen.step();
    }
    world.screen.finish();
    Ok(trial)
}

/// A paired comparison. Accuracies, drop and agreement in points (percent).
struct Comparison {
    float: f64,
    int8: f64,
    drop: f64,
    interval: [f64; 2],
    agreement: f64,
    largest: f64,
    mean: f64,
}

/// Paired over rows: `lost` float right and int8 wrong, `gained` the reverse; the drop is `(lost - gained) / n`,
/// with Tango's score interval, as in `evaluate`.
fn compare(float: &Trial, int8: &Trial, truth: &[String]) -> Comparison {
    let n = truth.len() as f64;
    let share = |f: &dyn Fn(usize) -> bool| (0..truth.len()).filter(|&i| f(i)).count() as f64;
    let (right_a, right_b) = (|i: usize| float.labels[i] == truth[i], |i: usize| int8.labels[i] == truth[i]);
    let lost = share(&|i| right_a(i) && !right_b(i));
    let gained = share(&|i| !right_a(i) && right_b(i));
    let [low, high] = tango(lost as usize, gained as usize, truth.len());
    let differences: Vec<f64> = float
        .logits
        .iter()
        .zip(&int8.logits)
        .map(|(x, y)| x.iter().zip(y).map(|(p, q)| f64::from((p - q).abs())).fold(0.0, f64::max))
        .collect();
    Comparison {
        float: 100.0 * share(&right_a) / n,
        int8: 100.0 * share(&right_b) / n,
        drop: 100.0 * (lost - gained) / n,
        interval: [100.0 * low, 100.0 * high],
        agreement: 100.0 * share(&|i| float.labels[i] == int8.labels[i]) / n,
        largest: differences.iter().copied().fold(0.0, f64::max),
        mean: differences.iter().sum::<f64>() / n,
    }
}
