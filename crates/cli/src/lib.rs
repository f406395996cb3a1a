//! The verbs of the `qberta` command line: one file each over the libraries.
//!
//! Exit status: 0 done, 1 the check failed (`verify`, a gate), 2 the command could not run.

mod bench;
mod calibration;
mod data;
mod demo;
mod diagnose;
mod doctor;
mod evaluate;
mod export;
mod inspect;
mod output;
mod plan;
mod predict;
mod quantize;
mod rows;
mod screen;
mod verify;

use clap::{Args, Parser, Subcommand};
use qberta_kernels::{Context, Isa};
use qberta_model::{Error, Kind, Result, Task};
use screen::Screen;
use std::process::ExitCode;

/// Quantize DeBERTa and its family, save it, prove it, run it fast.
#[derive(Parser)]
#[command(name = "qberta", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  qberta demo                                         the whole story on a built-in model
  qberta quantize ./deberta-v3-base-mnli -o ./int8    float checkpoint to proven artefact
  qberta predict ./int8 \"A man eats.\" --pair \"Someone eats.\"
  qberta evaluate ./float ./int8 --data dev.jsonl     what int8 changed, with intervals
  qberta plan ./float --data dev.jsonl --max-drop 0.1 -o plan.toml
  qberta verify ./int8                                replay the recorded outputs bit for bit
  qberta bench ./int8                                 speed, memory, and the machine's limit

Environment:
  QBERTA_THREADS  threads to use (as --threads)
  QBERTA_ISA      instruction set: auto, scalar, avx2, avx512vnni, amxint8, neon (as --isa); never changes a result

Exit status: 0 done, 1 the check failed, 2 the command could not run.";

/// Options of every verb stand after its own in help texts.
const LAST: usize = 900;

/// In place of an instruction set: which there are.
const LIST: &str = "list";

#[derive(Args)]
struct Common {
    /// Threads to use; results do not depend on it [default: all cores]
    #[arg(long, global = true, env = "QBERTA_THREADS", value_name = "N", display_order = LAST)]
    threads: Option<String>,
    /// Instruction set: auto, scalar, avx2, avx512vnni, amxint8 or neon; results do not depend on it (`qberta bench --isa` lists them)
    #[arg(long, global = true, env = "QBERTA_ISA", value_name = "ISA", display_order = LAST)]
    #[arg(num_args = 0..=1, default_missing_value = LIST)]
    isa: Option<String>,
    /// Print JSON for machines
    #[arg(long, global = true, display_order = LAST)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    Inspect(inspect::InspectArgs),
    Quantize(Box<quantize::QuantizeArgs>),
    Verify(verify::VerifyArgs),
    Predict(Box<predict::PredictArgs>),
    Evaluate(Box<evaluate::EvaluateArgs>),
    Diagnose(diagnose::DiagnoseArgs),
    Plan(Box<plan::PlanArgs>),
    Doctor(doctor::DoctorArgs),
    Export(export::ExportArgs),
    Bench(Box<bench::BenchArgs>),
    Demo(demo::DemoArgs),
}

/// What every verb gets: kernels and a screen.
struct World {
    cx: Context,
    screen: Screen,
}

/// How a verb ended when there is nothing left to say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    CheckFailed,
    /// It could not run to its end, and has said so beside what it had found until then.
    Stopped,
}

/// Parses the command line, runs the verb, reports, and gives the exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new(cli.common.json);
    if let (Verb::Bench(_), Some(LIST)) = (&cli.verb, cli.common.isa.as_deref()) {
        bench::list_isas(&screen);
        return ExitCode::SUCCESS;
    }
    let result = world(&cli.common, screen).and_then(|world| match cli.verb {
        Verb::Inspect(args) => inspect::run(&args, &world),
        Verb::Quantize(args) => quantize::run(&args, &world),
        Verb::Verify(args) => verify::run(&args, &world),
        Verb::Predict(args) => predict::run(&args, &world),
        Verb::Evaluate(args) => evaluate::run(&args, &world),
        Verb::Diagnose(args) => diagnose::run(&args, &world),
        Verb::Plan(args) => plan::run(&args, &world),
        Verb::Doctor(args) => doctor::run(&args, &world),
        Verb::Export(args) => export::run(&args, &world),
        Verb::Bench(args) => bench::run(&args, &world),
        Verb::Demo(args) => demo::run(&args, &world),
    });
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Ok(Outcome::Stopped) => ExitCode::from(2),
        Err(error) => {
            Screen::new(cli.common.json).error(&error);
            ExitCode::from(2)
        }
    }
}

fn world(common: &Common, screen: Screen) -> Result<World> {
    let isa = match common.isa.as_deref() {
        None | Some("") => Isa::best(),
        Some(LIST) => {
            return Err(Error::input("no instruction set was named")
                .at("--isa")
                .hint("`qberta bench --isa` lists them"));
        }
        Some(name) => Isa::parse(name).map_err(|e| Error::input(e).at("--isa / QBERTA_ISA"))?,
    };
    let threads = match common.threads.as_deref() {
        None | Some("") => std::thread::available_parallelism().map_or(1, |n| n.get()),
        Some(text) => thread_count(text)?,
    };
    let cx = Context::new(isa, threads).map_err(|e| Error::new(Kind::Io, e).at("--threads"))?;
    Ok(World { cx, screen })
}

/// Parses `--threads`: the message names the variable too, for whoever set it long ago.
fn thread_count(text: &str) -> Result<usize> {
    text.trim().parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| {
        Error::input("number of threads cannot be used")
            .at("--threads / QBERTA_THREADS")
            .expected("1 to 1024")
            .found(format!("{text:?}"))
    })
}

/// Parses `--task`.
fn task(name: &Option<String>) -> Result<Option<Task>> {
    let Some(name) = name else { return Ok(None) };
    let known = || Task::ALL.iter().map(|(_, n)| *n).collect::<Vec<_>>().join(", ");
    Task::parse(name)
        .map(Some)
        .ok_or_else(|| Error::input("task is not known").at("--task").expected(known()).found(name))
}
