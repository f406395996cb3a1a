//! `qberta quantize`: float checkpoint to proven artefact.

use crate::calibration::CalibrationArgs;
use crate::data::{DataArgs, advice, gates, verdict};
use crate::screen::{bytes, count, facts};
use crate::{Outcome, World, task};
use clap::Args;
use qberta_model::{Error, Result, Task};
use qberta_runtime::Session;
use qberta_runtime::evaluate::{Exam, Gate, Trial, Verdict};
use qberta_store::digest;
use qberta_store::manifest::{Decision, FileRecord, GateRecord, Rounding, Weight};
use qberta_toolkit::{Calibration, CalibrationReport, Conditions, Recipe, Report, Request, quantize_under};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
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
  qberta quantize ./model -o ./int8 --recipe my.toml
  qberta quantize ./model -o ./int8 --gate 'accuracy>=-0.2' --eval dev.jsonl
  qberta quantize ./model -o ./int8 --recipe static --calibration train.jsonl --rows 512

Patterns of --skip match whole dotted parts of module names (`layer.3`,
`intermediate.dense`, `*` inside a part), or with re: a regular expression.
`qberta inspect MODEL` lists the names.")]
pub struct QuantizeArgs {
    /// Directory of the float checkpoint
    model: PathBuf,
    /// Directory to create
    #[arg(short, long)]
    output: PathBuf,
    /// Recipe: dynamic, dynamic-attention, static, static-attention, w4a8, w4a8-gptq, weight-only, weight-only-4bit, or a
    /// file ending in .toml
    #[arg(long, default_value = "dynamic")]
    recipe: String,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Keep modules in float (repeatable); a pattern that matches nothing is an error
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    /// Head to use instead of the one config.json names (features, sequence-classification, ...)
    #[arg(long)]
    task: Option<String>,
    /// Write nothing unless METRIC>=-DROP (against the float model) or METRIC>=abs:VALUE holds, in points
    /// (repeatable; exit status 1 if one fails)
    #[arg(long = "gate", value_name = "GATE", requires = "eval")]
    gates: Vec<String>,
    /// Labelled examples that decide the gates
    #[arg(long, value_name = "FILE", requires = "gates")]
    eval: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
}

pub fn run(args: &QuantizeArgs, world: &World) -> Result<Outcome> {
    let begin = Instant::now();
    let recipe = Recipe::open(&args.recipe, &args.skip)?;
    let request = Request { model: &args.model, out: &args.output, recipe: &recipe, task: task(&args.task)? };
    let calibration = match args.calibration.file {
        Some(_) => {
            let session = Session::open(&args.model, request.task, world.cx.clone())?;
            args.calibration.read(&session, world)?
        }
        None => None,
    };
    let gated = match &args.eval {
        Some(data) => Some(Gated::prepare(args, data, request.task, world)?),
        None => None,
    };
    let gate = |staged: &Path| gated.as_ref().map_or_else(|| Ok(Vec::new()), |gated| gated.decide(staged));
    let conditions = Conditions {
        calibration: calibration
            .as_ref()
            .map(|(sequences, method)| Calibration { sequences, method: *method }),
        gate: gated.is_some().then_some(&gate),
    };
    let result = quantize_under(&request, conditions, &world.cx, &world.screen);
    let verdicts = gated.as_ref().map_or_else(Vec::new, |g| g.verdicts.borrow().clone());
    let report = match result {
        Err(error) if verdicts.iter().any(|v| !v.passed) => {
            return Ok(refused(args, &error, &verdicts, world));
        }
        other => other?,
    };
    let seconds = begin.elapsed().as_secs_f64();
    if world.screen.json {
        world.screen.value(&json!({
            "artefact": args.output,
            "artefact_bytes": report.artefact_bytes,
            "calibration": report.calibration,
            "fitted": report.fitted,
            "float_bytes": report.float_bytes,
            "gates": verdicts.iter().map(verdict).collect::<Vec<Value>>(),
            "ignored": report.ignored,
            "plan": report.plan,
            "probes": report.probes,
            "seconds": seconds,
            "source_bytes": report.source_bytes,
            "weight_bytes": report.weight_bytes,
            "written": true,
        }));
    } else {
        print(args, &report, seconds, world);
        verdicts.iter().for_each(|v| world.screen.line(format!("  {}", v.sentence())));
    }
    Ok(Outcome::Done)
}

/// Says which gate kept the artefact from being written.
fn refused(args: &QuantizeArgs, error: &Error, verdicts: &[Verdict], world: &World) -> Outcome {
    if world.screen.json {
        world.screen.value(&json!({
            "artefact": args.output,
            "gates": verdicts.iter().map(verdict).collect::<Vec<Value>>(),
            "hint": error.advice(),
            "written": false,
        }));
    } else {
        for passed in verdicts.iter().filter(|v| v.passed) {
            world.screen.line(passed.sentence());
        }
        world.screen.error(error);
    }
    Outcome::CheckFailed
}

/// Gates, the examples that decide them, and what the float model answered.
struct Gated<'a> {
    args: &'a QuantizeArgs,
    world: &'a World,
    gates: Vec<Gate>,
    exam: Exam,
    float: Trial,
    data: (String, FileRecord),
    verdicts: RefCell<Vec<Verdict>>,
}

impl<'a> Gated<'a> {
    /// Everything that can go wrong before any quantization goes wrong here.
    fn prepare(
        args: &'a QuantizeArgs,
        path: &Path,
        task: Option<Task>,
        world: &'a World,
    ) -> Result<Gated<'a>> {
        let gates = gates(&args.gates)?;
        qberta_store::atomic::check_target(&args.output)?;
        let session = args.data.session(Session::open(&args.model, task, world.cx.clone())?);
        let exam = args.data.exam(path, session.architecture(), world)?;
        gates.iter().try_for_each(|g| g.check(&exam.metrics()))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (sha256, bytes) = digest::of_file(path)?;
        let float = args.data.run(&exam, &session, "float", world)?;
        let data = (name, FileRecord { bytes, sha256 });
        Ok(Gated { args, world, gates, exam, float, data, verdicts: RefCell::default() })
    }

    fn decide(&self, staged: &Path) -> Result<Vec<GateRecord>> {
        let session = self.args.data.session(Session::open(staged, None, self.world.cx.clone())?);
        let int8 = self.args.data.run(&self.exam, &session, "int8", self.world)?;
        let report = self.args.data.report(&self.exam, &[&self.float, &int8], self.world);
        let on = self.args.data.gate_on;
        let verdicts: Vec<Verdict> =
            self.gates.iter().map(|g| g.decide(&report, on)).collect::<Result<_>>()?;
        *self.verdicts.borrow_mut() = verdicts.clone();
        if let Some(failed) = verdicts.iter().find(|v| !v.passed) {
            return Err(Error::mismatch(failed.sentence())
                .at(format!("{} (not written)", self.args.output.display()))
                .hint(advice(failed, self.exam.rows())));
        }
        Ok(verdicts.iter().map(|v| self.record(v)).collect())
    }

    fn record(&self, v: &Verdict) -> GateRecord {
        let text = |x: f64| format!("{x:.4}");
        GateRecord {
            data: [self.data.clone()].into(),
            decided_on: v.on.name().to_owned(),
            figure: v.figure.map_or_else(String::new, text),
            gate: v.gate.clone(),
            interval: v.interval.map_or_else(Vec::new, |ends| ends.map(text).to_vec()),
            reference: v.reference.map(text),
            rows: self.exam.rows() as u64,
            value: text(v.value),
        }
    }
}

fn print(args: &QuantizeArgs, report: &Report, seconds: f64, world: &World) {
    let stored = |f: fn(&Weight) -> bool| report.plan.values().filter(|d| f(&d.weight)).count();
    let (int8, int4) = (stored(|w| *w == Weight::Int8Channel), stored(|w| matches!(w, Weight::Int4(_))));
    // Attentions have no weights; the plan lists those whose scores, or context, are int8.
    let decided = |f: fn(&Decision) -> bool| report.plan.values().filter(|d| f(d)).count();
    let scores = decided(|d| d.of_scores());
    let context = decided(|d| *d == Decision::INT8_CONTEXT);
    let layers = |n: usize| format!("in {} {}", count(n), if n == 1 { "layer" } else { "layers" });
    let modules = report.plan.len() - scores - context;
    let bf16 = stored(|w| *w == Weight::Bf16);
    let float = modules - int8 - int4 - bf16;
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
                count(modules),
                match float {
                    0 => String::new(),
                    n => format!(", {} in float", count(n)),
                }
            ),
        ),
        ("tensors left out", count(report.ignored.len())),
        ("weights as float32", bytes(report.float_bytes)),
        ("weights as written", format!("{} ({share:.1} % of float32)", bytes(report.weight_bytes))),
        ("proof", format!("reopened; {} probes gave the same bits, alone and in one batch", report.probes)),
        ("time", format!("{seconds:.1} s")),
    ];
    if bf16 > 0 {
        rows.insert(1, ("bf16 modules", format!("{} of {}", count(bf16), count(modules))));
    }
    if int4 > 0 {
        rows.insert(0, ("4-bit modules", format!("{} of {}", count(int4), count(modules))));
    }
    if context > 0 {
        rows.insert(1, ("int8 context", layers(context)));
    }
    if scores > 0 {
        rows.insert(1, ("int8 scores", layers(scores)));
    }
    if let Some(fit) = &report.fitted {
        let rounded = match fit.rounding {
            Rounding::Nearest => "rounded to nearest",
            Rounding::Gptq => "rounded by GPTQ",
            Rounding::Quantease => "rounded by QuantEase",
        };
        let biases = if fit.bias_correction { ", biases corrected" } else { "" };
        rows.insert(1, ("weights", format!("{rounded}{biases}, on the calibration rows")));
    }
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
