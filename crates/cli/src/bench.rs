//! `qberta bench`: how fast a model runs here, against what this machine could do.

mod machine;
mod measure;
mod record;
mod report;
mod serve;
mod shape;

use crate::screen::Screen;
use crate::{Outcome, World};
use clap::Args;
pub use machine::Machine;
use machine::{Limits, Memory};
use measure::Timing;
use qberta_model::{Error, Linear, Result};
use qberta_runtime::Session;
use qberta_store::Source;
use qberta_toolkit::export::{Target, export_source};
use qberta_toolkit::{
    Progress, Recipe, Shape as Named, needs_calibration, quantize_in_memory, quantize_source,
};
pub use shape::Shape;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Measure how fast a model runs here, and how near to the machine's limit
///
/// MODEL is a float checkpoint or an artefact; --arch draws random weights for a published shape instead (speed
/// does not depend on the values). Every repeat must give the same bits as the first, or the run is an error.
/// Load time and memory are measured on MODEL, in this process; with --arch, --save writes the model first and
/// measures it in a fresh process.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// Directory of a float checkpoint or an artefact
    model: Option<PathBuf>,
    /// Published shape with random weights: v3-xsmall, v3-small, v3-base, v3-large, v1-base, mdeberta-base,
    /// bert-base, minilm
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    arch: Option<String>,
    /// Inputs: BATCHxTOKENS, or ragged:BATCHxFROM..TO for lengths spread evenly between two
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_value = shape::DEFAULT)]
    shapes: Vec<String>,
    /// Quantize in memory with this recipe [default: dynamic with --arch, else MODEL as it is]
    #[arg(long)]
    recipe: Option<String>,
    /// Keep the weights of --arch in float
    #[arg(long, conflicts_with = "recipe", requires = "arch")]
    float: bool,
    /// Write the model of --arch to this new directory and measure it from there
    #[arg(long, value_name = "DIR", requires = "arch")]
    save: Option<PathBuf>,
    /// Seed of the weights of --arch
    #[arg(long, default_value_t = 0, requires = "arch")]
    seed: u64,
    /// Timed repeats of each shape
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeats: Option<u32>,
    /// Seconds of timed repeats of each shape, at least 5 repeats
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Also time each stage of the network
    #[arg(long)]
    stages: bool,
    /// Append the measurements to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Answer timing requests on standard input instead (see bench/README.md)
    #[arg(long, conflicts_with_all = ["stages", "csv", "save"])]
    serve: bool,
}

const EXAMPLES: &str = "\
Examples:
  qberta bench ./int8                                        load, memory, six shapes
  qberta bench --arch v3-base --shapes 1x128,8x384 --threads 2 --stages
  qberta bench --arch v3-base --save ./base-int8             write it, then measure it in a fresh process
  qberta bench ./int8 --shapes ragged:8x64..128 --repeats 50 --json
  qberta bench --isa                                         instruction sets of this machine";

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 3600.0 => Ok(s),
        _ => Err("expected seconds, above 0 and at most 3600".to_owned()),
    }
}

/// Prints which instruction sets kernels can use here.
pub fn list_isas(screen: &Screen) {
    report::isas(screen);
}

/// What was loaded, and how.
struct Subject {
    session: Session,
    /// What to call it.
    name: String,
    /// Seconds to open it, with the memory after that; absent for a model made in memory.
    load: Option<(f64, Memory)>,
}

/// Everything measured.
struct Measured {
    machine: Machine,
    limits: Limits,
    name: String,
    weights: &'static str,
    load: Option<(f64, Memory)>,
    /// After the last shape, before the machine itself was measured.
    peak: Option<u64>,
    runs: Vec<Run>,
}

/// One shape.
struct Run {
    shape: Shape,
    timing: Timing,
    work: measure::Work,
}

pub fn run(args: &BenchArgs, world: &World) -> Result<Outcome> {
    let shapes = args.shapes.iter().map(|text| Shape::parse(text)).collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.csv {
        record::check(path)?;
    }
    if let (Some(dir), Some(name)) = (&args.save, &args.arch) {
        save(args, Named::named(name)?, dir, world)?;
        return measure_saved(args, dir, world);
    }
    let subject = open(args, world)?;
    for (shape, text) in shapes.iter().zip(&args.shapes) {
        shape.fits(subject.session.architecture()).map_err(|e| e.at(format!("--shapes {text}")))?;
    }
    if args.serve {
        serve::serve(&subject.session, subject.load.as_ref())?;
        return Ok(Outcome::Done);
    }
    let mut runs = Vec::with_capacity(shapes.len());
    for shape in shapes {
        let sequences = shape.sequences(subject.session.architecture());
        let plan = measure::Plan { repeats: args.repeats, seconds: args.seconds, stages: args.stages };
        let timing = measure::time(&subject.session, &sequences, &plan, &shape.to_string(), &world.screen)
            .map_err(|e| e.at(format!("shape {shape}")))?;
        runs.push(Run { work: measure::work(subject.session.model(), &shape), shape, timing });
    }
    let peak = Memory::now().map(|m| m.peak);
    world.screen.stage("measuring the machine", 1);
    let limits = Limits::measure(&world.cx)?;
    let weights = weights(&subject.session);
    let Subject { name, load, .. } = subject;
    let measured = Measured { machine: Machine::here(&world.cx), limits, name, weights, load, peak, runs };
    if let Some(path) = &args.csv {
        record::append(path, &measured)?;
    }
    if world.screen.json {
        world.screen.value(&report::json(&measured));
    } else {
        report::print(&measured, &world.screen);
    }
    Ok(Outcome::Done)
}

fn recipe(args: &BenchArgs, source: &Source) -> Result<Recipe> {
    let recipe = Recipe::open(args.recipe.as_deref().unwrap_or("dynamic"), &[])?;
    if needs_calibration(&source.arch, &recipe)? {
        return Err(Error::input("recipe needs calibration data, and bench has none")
            .at("--recipe")
            .found(&recipe.name)
            .hint("quantize a model with it and measure the artefact: qberta bench OUT"));
    }
    Ok(recipe)
}

fn open(args: &BenchArgs, world: &World) -> Result<Subject> {
    let in_memory = |source: Source, name: String| -> Result<Subject> {
        let session = Session::new(&source, None, world.cx.clone())?;
        Ok(Subject { session, name, load: None })
    };
    match (&args.model, &args.arch) {
        (Some(dir), _) if args.recipe.is_some() => {
            let source = Source::open(dir, None)?;
            let recipe = recipe(args, &source)?;
            let source = quantize_in_memory(source, &recipe, &world.cx, &world.screen)?;
            in_memory(source, format!("{}, quantized in memory", dir.display()))
        }
        (Some(dir), _) => {
            let begin = Instant::now();
            let session = Session::open(dir, None, world.cx.clone())?;
            let seconds = begin.elapsed().as_secs_f64();
            let load = Memory::now().map(|memory| (seconds, memory));
            Ok(Subject { session, name: dir.display().to_string(), load })
        }
        (None, Some(name)) => {
            let shape = Named::named(name)?;
            let mut source = shape.random(args.seed, &world.screen)?;
            if !args.float {
                let recipe = recipe(args, &source)?;
                source = quantize_in_memory(source, &recipe, &world.cx, &world.screen)?;
            }
            in_memory(source, format!("{name}, random weights"))
        }
        (None, None) => Err(Error::input("nothing to measure")
            .expected("a model directory, or --arch with the name of a shape")
            .hint("`qberta bench --arch v3-base` needs no model; `qberta bench --help` has examples")),
    }
}

fn save(args: &BenchArgs, shape: Named, dir: &Path, world: &World) -> Result<()> {
    qberta_store::atomic::check_target(dir)?;
    let source = shape.random(args.seed, &world.screen)?;
    if args.float {
        export_source(&source, dir, Target::HuggingFace, &world.cx)?;
    } else {
        let recipe = recipe(args, &source)?;
        quantize_source(source, dir, &recipe, &world.cx, &world.screen)?;
    }
    Ok(())
}

/// Measures `dir` in a process that has done nothing else, so that its memory is that of the model alone.
fn measure_saved(args: &BenchArgs, dir: &Path, world: &World) -> Result<Outcome> {
    world.screen.finish();
    let failed = |e: &std::io::Error| Error::io("cannot start", "a fresh qberta", e);
    let mut command = Command::new(std::env::current_exe().map_err(|e| failed(&e))?);
    command.arg("bench").arg(dir).arg("--shapes").arg(args.shapes.join(","));
    command.arg("--threads").arg(world.cx.threads.count().to_string()).arg("--isa").arg(world.cx.isa.name());
    match args.repeats {
        Some(n) => command.arg("--repeats").arg(n.to_string()),
        None => command.arg("--seconds").arg(args.seconds.to_string()),
    };
    if let Some(path) = &args.csv {
        command.arg("--csv").arg(path);
    }
    for (flag, wanted) in [("--stages", args.stages), ("--json", world.screen.json)] {
        if wanted {
            command.arg(flag);
        }
    }
    let status = command.status().map_err(|e| failed(&e))?;
    match status.code() {
        Some(0) => Ok(Outcome::Done),
        _ => Err(Error::mismatch("the fresh process failed; its message is above")
            .at(dir.display())
            .found(status)
            .hint("the model was written; `qberta bench` on that directory repeats the measurement")),
    }
}

/// How the encoder's weights are stored, in one word.
fn weights(session: &Session) -> &'static str {
    let linears = &session.model().weights().linears;
    let any = |wanted: fn(&Linear) -> bool| linears.values().any(wanted);
    if !any(|l| l.float().is_none()) {
        if any(|l| matches!(l, Linear::Bf16 { .. })) { "bfloat16" } else { "float32" }
    } else if any(|l| matches!(l, Linear::Int4 { .. } | Linear::WeightInt4 { .. })) {
        "int4"
    } else {
        "int8"
    }
}
