//! `qberta quantize`: float checkpoint to proven artefact.

use crate::data::read;
use crate::screen::{bytes, count, facts};
use crate::{Outcome, World, task};
use clap::Args;
use qberta_model::Result;
use qberta_runtime::Session;
use qberta_store::manifest::Weight;
use qberta_toolkit::{
    Calibration, CalibrationReport, Method, Progress, Recipe, Report, Request, quantize, quantize_calibrated,
};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Quantize a float checkpoint into an artefact that has reproduced its own outputs
///
/// Reads a Hugging Face directory (config.json, model.safetensors or pytorch_model.bin, sharded or not)
/// and writes a directory that is int8, a quarter of the size, readable by transformers with
/// compressed-tensors, and already reopened and replayed bit for bit. On any error nothing is written.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta quantize ./deberta-v3-base-mnli -o ./int8
  qberta quantize ./model -o ./int8 --skip layer.11 --skip 're:attention\\.output'
  qberta quantize ./model -o ./int8 --recipe static --calibration train.jsonl --rows 512

Patterns of --skip match whole dotted parts of module names (`layer.3`, `intermediate.dense`, `*` inside
a part), or with re: a regular expression. `qberta inspect MODEL` lists the names.")]
pub struct QuantizeArgs {
    /// Directory of the float checkpoint
    model: PathBuf,
    /// Directory to create
    #[arg(short, long)]
    output: PathBuf,
    /// Recipe: dynamic, static
    #[arg(long, default_value = "dynamic")]
    recipe: String,
    /// Unlabelled rows like those the model will see (.jsonl, .csv, .tsv, .parquet, .txt), for --recipe static
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Rows of the calibration file to use [default: all]
    #[arg(long, value_name = "N", requires = "calibration", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// How ranges are chosen: minmax, moving-average, histogram, percentile[:P], entropy, mse [default: minmax]
    #[arg(long, value_name = "NAME", requires = "calibration")]
    observer: Option<String>,
    /// Keep modules in float (repeatable); a pattern that matches nothing is an error
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    /// Head to use instead of the one config.json names (features, sequence-classification, ...)
    #[arg(long)]
    task: Option<String>,
}

pub fn run(args: &QuantizeArgs, world: &World) -> Result<Outcome> {
    let begin = Instant::now();
    let recipe = Recipe::new(&args.recipe, &args.skip)?;
    let request = Request { model: &args.model, out: &args.output, recipe: &recipe, task: task(&args.task)? };
    let progress = &world.screen as &dyn Progress;
    let report = match &args.calibration {
        None => quantize(&request, &world.cx, progress)?,
        Some(file) => {
            let method = args.observer.as_deref().map_or(Ok(Method::MinMax), Method::parse)?;
            let session = Session::open(&args.model, request.task, world.cx.clone())?;
            let data = read(&session, file, "--calibration", args.rows.map(|n| n as usize), world)?;
            let sequences = data.sequences.concat();
            drop(session);
            let data = Calibration { sequences: &sequences, method };
            quantize_calibrated(&request, data, &world.cx, progress)?
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    if world.screen.json {
        world.screen.value(&json!({
            "artefact": args.output,
            "artefact_bytes": report.artefact_bytes,
            "calibration": report.calibration,
            "float_bytes": report.float_bytes,
            "ignored": report.ignored,
            "plan": report.plan,
            "probes": report.probes,
            "seconds": seconds,
            "source_bytes": report.source_bytes,
            "weight_bytes": report.weight_bytes,
        }));
    } else {
        print(args, &report, seconds, world);
    }
    Ok(Outcome::Done)
}

fn print(args: &QuantizeArgs, report: &Report, seconds: f64, world: &World) {
    let int8 = report.plan.values().filter(|d| d.weight == Weight::Int8Channel).count();
    let float = report.plan.len() - int8;
    let share = 100.0 * report.weight_bytes as f64 / report.float_bytes as f64;
    let screen = &world.screen;
    for (name, reason) in report.ignored.iter().filter(|(_, r)| r.starts_with("unknown")) {
        screen.warn(&format!("{name} was left out: {reason}"));
    }
    let mut rows = vec![
        (
            "int8 modules",
            format!(
                "{} of {}{}",
                count(int8),
                count(report.plan.len()),
                if float > 0 { " (the rest skipped)" } else { "" }
            ),
        ),
        ("tensors left out", count(report.ignored.len())),
        ("weights as float32", bytes(report.float_bytes)),
        ("weights as written", format!("{} ({share:.1} % of float32)", bytes(report.weight_bytes))),
        ("proof", format!("reopened; {} probes gave the same bits, alone and in one batch", report.probes)),
        ("time", format!("{seconds:.1} s")),
    ];
    if let Some(c) = &report.calibration {
        rows.insert(1, ("calibration", calibration(c)));
        warn_of_clipping(c, world);
    }
    screen.line(format!("{} -> {}", args.model.display(), args.output.display()));
    screen.line(facts(rows));
}

/// What calibration saw, in a line.
fn calibration(c: &CalibrationReport) -> String {
    let seen = format!("{}, {} rows, {} tokens", c.observer, count(c.sequences), count(c.tokens));
    match c.held_out {
        0 => format!("{seen}; too few rows to hold some out and measure clipping"),
        n => {
            format!("{seen}; {:.4} % of the values of {} held-out rows clipped", 100.0 * c.clipped, count(n))
        }
    }
}

/// The part of held-out values outside a grid from which on it is worth a warning.
const CLIPPED: f64 = 1e-3;

fn warn_of_clipping(c: &CalibrationReport, world: &World) {
    if c.held_out == 0 {
        world
            .screen
            .warn("one calibration row cannot say how other rows differ from it; a few hundred are usual");
    }
    let clipping: Vec<_> = c.clipped_by_module.iter().filter(|(_, part)| **part > CLIPPED).collect();
    if let Some((module, part)) = clipping.iter().max_by(|a, b| a.1.total_cmp(b.1)) {
        world.screen.warn(&format!(
            "held-out calibration rows leave the calibrated range of {} inputs, worst {module} with {:.2} % of \
             its values; use more rows, rows more like these, or --observer minmax",
            count(clipping.len()),
            100.0 * **part,
        ));
    }
}
