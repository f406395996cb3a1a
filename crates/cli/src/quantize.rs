//! `qberta quantize`: float checkpoint to proven artefact.

use crate::screen::{bytes, count, facts};
use crate::{Outcome, World, task};
use clap::Args;
use qberta_model::Result;
use qberta_store::manifest::Weight;
use qberta_toolkit::{Progress, Recipe, Report, Request, quantize};
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

Patterns of --skip match whole dotted parts of module names (`layer.3`, `intermediate.dense`, `*` inside
a part), or with re: a regular expression. `qberta inspect MODEL` lists the names.")]
pub struct QuantizeArgs {
    /// Directory of the float checkpoint
    model: PathBuf,
    /// Directory to create
    #[arg(short, long)]
    output: PathBuf,
    /// Recipe: dynamic
    #[arg(long, default_value = "dynamic")]
    recipe: String,
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
    let report = quantize(&request, &world.cx, &world.screen as &dyn Progress)?;
    let seconds = begin.elapsed().as_secs_f64();
    if world.screen.json {
        world.screen.value(&json!({
            "artefact": args.output,
            "artefact_bytes": report.artefact_bytes,
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
    let rows = [
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
    screen.line(format!("{} -> {}", args.model.display(), args.output.display()));
    screen.line(facts(rows));
}
