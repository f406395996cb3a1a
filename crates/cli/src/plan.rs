//! `qberta plan`: which modules to quantize how, within what a user can spend.

mod bounds;
mod judge;
mod memo;
mod page;
mod plot;
mod search;
mod show;

use crate::bench::Shape;
use crate::calibration::CalibrationArgs;
use crate::data::DataArgs;
use crate::output::Pending;
use crate::{Outcome, World, task};
use bounds::{Bound, Bounds};
use clap::Args;
use judge::{Judge, Part};
use memo::Memo;
use qberta_model::{Error, Result, Sequence, Task};
use qberta_runtime::Session;
use qberta_store::load::CONFIG;
use qberta_store::{Source, digest};
use qberta_toolkit::select::{Axis, Choice, Palette, Search, Timed, costs, measure};
use qberta_toolkit::{Calibration, Method};
use search::Search as Planner;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Choose which modules to quantize how, and prove the choice
///
/// Measures what each choice of each module does to the outputs and what it costs on this machine, and finds the
/// best selection within the bounds: the fastest or smallest model within --max-drop, the most accurate within
/// --max-latency or --max-size. The model of the chosen recipe is built and compared with the float model on rows
/// that nothing was chosen on; if they do not prove it, more modules go to better choices, or nothing is written.
/// Without a bound the curve is shown and nothing is chosen.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta plan ./float --data dev.jsonl --max-drop 0.1 -o plan.toml
  qberta plan ./float --data dev.csv --calibration train.jsonl --max-latency 60% -o plan.toml --html plan.html
  qberta plan ./float --data dev.jsonl --max-drop 0.2 --max-size 80MB --tokens 128 --state plan.state -o plan.toml
  qberta quantize ./float -o ./int8 --recipe plan.toml

Drop is in points of the task's figure if the data have labels, else of rows whose answer changes. static is
among the choices if there are calibration data. Interrupted? The same command with the same --state goes on.")]
pub struct PlanArgs {
    /// Directory of the float checkpoint
    model: PathBuf,
    /// Rows like those the model will see, labelled or not (.jsonl, .csv, .tsv, .parquet, .txt)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Most points that may be lost against the float model, on rows that nothing was chosen on
    #[arg(long, value_name = "POINTS", value_parser = bounds::points)]
    max_drop: Option<f64>,
    /// Most time of a call: 12ms, or 60% of the float model's
    #[arg(long, value_name = "TIME", value_parser = bounds::latency)]
    max_latency: Option<Bound>,
    /// Most bytes of the weight file: 80MB, or 40% of the float model's
    #[arg(long, value_name = "SIZE", value_parser = bounds::size)]
    max_size: Option<Bound>,
    /// What to have least of within --max-drop: latency or size [default: latency; size if latency is bounded]
    #[arg(long, value_name = "WHAT", value_parser = objective)]
    objective: Option<Axis>,
    /// Write the recipe to this .toml file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a page with the curve that a browser shows, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Keep measurements in this file and go on from them
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Choices of a module: float, dynamic, static, bf16, weight-only, w4a8, weight-only-4bit; of attentions
    /// int8-scores, static-scores, int8-context, int8-attention (scores and context)
    /// [default: float, dynamic, static with --calibration]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    among: Vec<String>,
    /// How sensitivity is measured: fast (a layer a module), alone (every module quantized alone), exhaustive
    /// (also every module left out alone)
    #[arg(long, value_name = "HOW", default_value = "alone", value_parser = sensitivity)]
    sensitivity: Search,
    /// Rows that measure, at most half of all; the others are held out
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    measure: u32,
    /// Rows of those for sensitivity
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    probe: u32,
    /// Figure whose drop counts [default: the usual one of the task]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Time calls of one sequence of N tokens [default: rows of the data, nine lengths over their distribution]
    #[arg(long, value_name = "N", conflicts_with = "shape", value_parser = clap::value_parser!(u32).range(1..=8192))]
    tokens: Option<u32>,
    /// Time calls of this shape: BATCHxTOKENS, or ragged:BATCHxFROM..TO
    #[arg(long, value_name = "SHAPE")]
    shape: Option<String>,
    /// Points of the curve
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=100))]
    points: u16,
    /// Head to use instead of the one config.json names
    #[arg(long)]
    task: Option<String>,
    #[command(flatten)]
    data_args: DataArgs,
}

fn objective(text: &str) -> std::result::Result<Axis, String> {
    match text {
        "latency" => Ok(Axis::Latency),
        "size" => Ok(Axis::Size),
        _ => Err("expected latency or size".into()),
    }
}

fn sensitivity(text: &str) -> std::result::Result<Search, String> {
    let known: Vec<&str> = Search::ALL.iter().map(|(_, n)| *n).collect();
    let found = Search::ALL.iter().find(|(_, n)| *n == text).map(|(s, _)| *s);
    found.ok_or_else(|| format!("expected one of {}", known.join(", ")))
}

/// What a plan is made of.
struct Job<'a> {
    args: &'a PlanArgs,
    world: &'a World,
    bounds: Bounds,
    task: Option<Task>,
    calibration: Option<(Vec<Sequence>, Method)>,
    /// What is timed: calls, each of some sequences.
    calls: Vec<Vec<Sequence>>,
    /// The same in words.
    shape: String,
}

impl Job<'_> {
    fn calibration(&self) -> Option<Calibration<'_>> {
        let data = self.calibration.as_ref()?;
        Some(Calibration { sequences: &data.0, method: data.1 })
    }

    fn source(&self) -> Result<Source> {
        Source::open(&self.args.model, self.task)
    }
}

pub fn run(args: &PlanArgs, world: &World) -> Result<Outcome> {
    let (size, latency) = (args.max_size, args.max_latency);
    let bounds = Bounds { drop: args.max_drop, latency, size, objective: args.objective };
    check(args, &bounds)?;
    let task = task(&args.task)?;
    // What can be wrong with the request is found before anything is measured.
    let choices = Choice::named(&args.among, args.calibration.file.is_some())?;
    let read: Vec<&Path> =
        std::iter::once(&args.data).chain(&args.calibration.file).map(PathBuf::as_path).collect();
    let (recipe, html) = (pending(&args.output, "--output", &read)?, pending(&args.html, "--html", &read)?);
    if Source::open(&args.model, task)?.is_artefact() {
        return Err(Error::input("model is an artefact already: it is quantized")
            .at(args.model.display())
            .hint("start from the float checkpoint"));
    }
    let session = args.data_args.session(Session::open(&args.model, task, world.cx.clone())?);
    let calibration = args.calibration.read(&session, world)?;
    let mut judge = Judge::open(
        &args.data_args,
        &args.data,
        session,
        args.measure as usize,
        args.metric.as_deref(),
        world,
    )?;
    provable(args, &judge)?;
    let (calls, shape) = calls(args, &judge)?;
    let job = Job { args, world, bounds, task, calibration, calls, shape };

    let palette = Palette::new(&|| job.source(), choices, job.calibration(), &world.cx, &world.screen)?;
    let probes = judge.rows(Part::Measure).min(args.probe as usize);
    let subject = subject(&job, &judge, &palette)?;
    let mut memo = Memo::open(args.state.as_deref(), &subject, &palette, probes)?;
    let begin = Instant::now();
    let mut spent = measured(&job, &judge, &palette, &mut memo, probes)?;
    let found = Planner { job: &job, judge: &mut judge, palette: &palette, memo: &mut memo }.run()?;
    spent.search = begin.elapsed().as_secs_f64() - spent.sensitivity - spent.cost;
    world.screen.finish();
    if let Some(html) = html {
        html.write(page::page(&job, &judge, &palette, &memo, &found).as_bytes())?;
    }
    if let (Some(chosen), Some(recipe)) = (found.chosen.as_ref().filter(|c| c.proven), recipe) {
        recipe.write(chosen.recipe.as_bytes())?;
    }
    show::tell(&job, &judge, &palette, &memo, &found, &spent)?;
    let failed = found.chosen.as_ref().is_some_and(|c| !c.proven);
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

/// The file of an option, if it was given.
fn pending<'a>(path: &'a Option<PathBuf>, option: &str, read: &[&Path]) -> Result<Option<Pending<'a>>> {
    path.as_deref().map(|p| Pending::open(p, option, read)).transpose()
}

/// Options that do not go together.
fn check(args: &PlanArgs, bounds: &Bounds) -> Result<()> {
    if let Some(output) = &args.output {
        if output.extension().is_none_or(|e| e != "toml") {
            return Err(Error::input("recipe file does not end in .toml, so quantize would not read it")
                .at("--output")
                .found(output.display()));
        }
        if !bounds.any() {
            return Err(Error::input("there is nothing to choose by").at("--output").expected(
                "--max-drop, --max-latency or --max-size; without them the curve is shown and nothing is written",
            ));
        }
    }
    if args.objective.is_some() && args.max_drop.is_none() && bounds.any() {
        return Err(Error::input("without --max-drop a plan has the least damage within its bounds")
            .at("--objective")
            .hint("drop it, or say how much may be lost with --max-drop"));
    }
    Ok(())
}

/// Refuses a bound that no outcome on the held-out rows could prove.
fn provable(args: &PlanArgs, judge: &Judge<'_>) -> Result<()> {
    let (Some(most), least) = (args.max_drop, judge.resolution()) else { return Ok(()) };
    if args.data_args.gate_on == qberta_runtime::evaluate::On::Point || least <= most {
        return Ok(());
    }
    let held = judge.rows(Part::HeldOut);
    // The resolution is z^2 / (n + z^2).
    let z = least * held as f64 / (100.0 - least);
    let needed = (z * (100.0 / most - 1.0)).ceil();
    Err(Error::input(format!("{held} held-out rows cannot prove so small a drop, even if no answer changes"))
        .at("--max-drop")
        .expected(format!("at least {least:.2} points, or {needed:.0} held-out rows"))
        .found(most)
        .hint("use more rows, a larger bound, or --gate-on point to go by the estimate"))
}

/// The calls that are timed.
fn calls(args: &PlanArgs, judge: &Judge<'_>) -> Result<(Vec<Vec<Sequence>>, String)> {
    let asked = args.tokens.map(|n| format!("1x{n}")).or(args.shape.clone());
    if let Some(text) = asked {
        let shape = Shape::parse(&text)?;
        shape.fits(judge.architecture())?;
        return Ok((vec![shape.sequences(judge.architecture())], format!("calls of {shape} tokens")));
    }
    let mut rows: Vec<&Vec<Sequence>> = judge.sequences[Part::Measure as usize].iter().collect();
    let tokens = |row: &Vec<Sequence>| row.iter().map(|s| s.ids.len()).sum::<usize>();
    rows.sort_by_key(|r| tokens(r));
    const LENGTHS: usize = 9;
    let n = rows.len();
    let calls: Vec<Vec<Sequence>> =
        (0..LENGTHS).map(|i| rows[(2 * i + 1) * n / (2 * LENGTHS)].clone()).collect();
    let lengths: Vec<usize> = calls.iter().map(&tokens).collect();
    let words = format!("one row a call, {} to {} tokens as in the data", lengths[0], lengths[LENGTHS - 1]);
    Ok((calls, words))
}

/// What measurements depend on; a state of anything else is not used.
fn subject(job: &Job<'_>, judge: &Judge<'_>, palette: &Palette) -> Result<BTreeMap<String, String>> {
    let args = job.args;
    let mut files = job.source()?.files;
    files.push(args.model.join(CONFIG));
    let digests = files.iter().map(|f| Ok(digest::of_file(f)?.0)).collect::<Result<Vec<_>>>()?;
    let ids = |rows: &[Vec<Sequence>]| digest::of_bytes(format!("{rows:?}").as_bytes());
    let file = |path: &PathBuf| digest::of_file(path).map(|d| d.0);
    let mut subject = BTreeMap::from([
        ("model".to_owned(), digest::of_bytes(digests.concat().as_bytes())),
        ("data".to_owned(), file(&args.data)?),
        ("measuring part of the data".to_owned(), ids(&judge.sequences[0])),
        ("held-out part of the data".to_owned(), ids(&judge.sequences[1])),
        ("figure".to_owned(), judge.figure.clone()),
        ("reading of the data".to_owned(), args.data_args.reading()),
        ("list of choices".to_owned(), palette.choices.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")),
        ("kind of sensitivity".to_owned(), args.sensitivity.name().to_owned()),
        ("version of qberta".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    if let Some((sequences, _)) = &job.calibration {
        let ids = ids(std::slice::from_ref(sequences));
        subject.insert("calibration".to_owned(), format!("{} {ids}", args.calibration.observer));
    }
    Ok(subject)
}

/// Seconds that parts of the work took; nothing where a state file had the answer.
#[derive(Default)]
struct Spent {
    sensitivity: f64,
    cost: f64,
    /// Curve, proof and repair.
    search: f64,
}

/// Sensitivity and cost, as far as they are not known.
fn measured(
    job: &Job<'_>,
    judge: &Judge<'_>,
    palette: &Palette,
    memo: &mut Memo,
    probes: usize,
) -> Result<Spent> {
    let mut spent = Spent::default();
    let begin = Instant::now();
    let (cx, screen) = (&job.world.cx, &job.world.screen);
    let rows = &judge.sequences[Part::Measure as usize][..probes];
    let mut damages = memo.state.damages.clone();
    let begun = damages.examples;
    measure(palette, rows, job.args.sensitivity, &mut damages, cx, screen, &mut |damages| {
        memo.state.damages = damages.clone();
        memo.save()
    })?;
    if begun > 0 {
        crate::data::note(job.world, &format!("went on from {begun} of {probes} rows in the state file"));
    }
    spent.sensitivity = begin.elapsed().as_secs_f64();
    let machine = crate::bench::Machine::here(cx);
    let inputs = digest::of_bytes(format!("{:?}", job.calls).as_bytes());
    let on = format!("{}, {}, {} threads, {inputs}", machine.cpu, cx.isa.name(), cx.threads.count());
    if memo.state.timed.as_ref().is_none_or(|t| t.on != on) {
        let costs = costs(palette, &job.calls, cx, screen)?;
        memo.state.timed = Some(Timed { on, costs });
        memo.save()?;
    }
    spent.cost = begin.elapsed().as_secs_f64() - spent.sensitivity;
    Ok(spent)
}
