//! `qberta evaluate`: task figures of a model on labelled data, or of two models on the same rows.

use crate::data::{DataArgs, advice, gates, note, verdict};
use crate::screen::{bytes, count, table};
use crate::{Outcome, World, output, task};
use clap::Args;
use qberta_model::{Error, Result};
use qberta_runtime::evaluate::{Comparison, Estimate, Exam, Metric, Output, Report, Trial, Verdict};
use qberta_runtime::{Row, Session};
use qberta_store::Source;
use qberta_toolkit::check_digests;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Task figures of a model on labelled data, or of two models compared row by row
///
/// Figures come with 95 % intervals, in points of 100. With two models (float and int8), also: difference of
/// each figure with its paired interval, same and changed answers, McNemar's test, examples that flipped.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta evaluate ./int8 --data dev.jsonl
  qberta evaluate ./float ./int8 --data dev.parquet
  qberta evaluate ./float ./int8 --data dev.csv --text premise --text-pair hypothesis --label gold
  qberta evaluate ./float ./int8 --data dev.jsonl --gate 'accuracy>=-0.2'   # exit status 1 if it fails

Data: .jsonl (an object a line), .csv, .tsv (with a header), .parquet. Labels are names or ids. Columns:
text[, pair], label; question, context, answers; text, choices, label; tokens, ner_tags.")]
pub struct EvaluateArgs {
    /// Directory of a float checkpoint or an artefact
    model: PathBuf,
    /// A second one, compared with the first
    second: Option<PathBuf>,
    /// Labelled examples
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Require METRIC>=-DROP (second against first) or METRIC>=abs:VALUE, in points (repeatable)
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<String>,
    /// Examples with changed answers to show
    #[arg(long, value_name = "N", default_value_t = 5)]
    flips: usize,
    /// Write the answers to each example as JSONL
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Head to use instead of the one config.json names
    #[arg(long)]
    task: Option<String>,
    #[command(flatten)]
    data_args: DataArgs,
}

/// One model and what it answered.
struct Candidate {
    path: PathBuf,
    name: String,
    trial: Trial,
    bytes: u64,
}

pub fn run(args: &EvaluateArgs, world: &World) -> Result<Outcome> {
    let gates = gates(&args.gates)?;
    if let Some(gate) = gates.iter().find(|g| g.is_relative() && args.second.is_none()) {
        return Err(Error::input("gate compares two models, and there is one")
            .at("--gate")
            .found(gate.text())
            .hint(format!("name a second model, or write {}>=abs:VALUE", gate.metric())));
    }
    let paths: Vec<&PathBuf> = [Some(&args.model), args.second.as_ref()].into_iter().flatten().collect();
    // What can be wrong with the request is found before any model runs.
    let task = task(&args.task)?;
    let exam = args.data_args.exam(&args.data, &Source::open(&args.model, task)?.arch, world)?;
    gates.iter().try_for_each(|g| g.check(&exam.metrics()))?;
    if let Some(second) = &args.second {
        exam.fits(&Source::open(second, task)?.arch).map_err(|e| e.at(second.display()))?;
    }
    let mut answers = args.output.as_deref().map(|path| Answers::open(path, &args.data)).transpose()?;
    let mut candidates = Vec::new();
    // Figures of a damaged artefact would prove nothing.
    paths.iter().try_for_each(|path| check_digests(path))?;
    // One model in memory at a time.
    for (path, name) in paths.iter().zip(names(&paths)) {
        let session = args.data_args.session(Session::open(path, task, world.cx.clone())?);
        let trial = args.data_args.run(&exam, &session, &name, world)?;
        candidates.push(Candidate { path: path.to_path_buf(), name, trial, bytes: weight_bytes(path) });
    }
    let trials: Vec<&Trial> = candidates.iter().map(|c| &c.trial).collect();
    let report = args.data_args.report(&exam, &trials, world);
    let verdicts: Vec<Verdict> =
        gates.iter().map(|g| g.decide(&report, args.data_args.gate_on)).collect::<Result<_>>()?;
    if let Some(answers) = &mut answers {
        answers.write(&exam, &trials)?;
    }
    if world.screen.json {
        world.screen.value(&machine(args, &exam, &candidates, &report, &verdicts));
    } else {
        print(args, &exam, &candidates, &report, &verdicts, world);
    }
    match verdicts.iter().find(|v| !v.passed) {
        Some(failed) => {
            note(world, &advice(failed, exam.rows()));
            Ok(Outcome::CheckFailed)
        }
        None => Ok(Outcome::Done),
    }
}

/// Short names: the last parts of the paths, the whole paths where those are the same.
fn names(paths: &[&PathBuf]) -> Vec<String> {
    let last = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let short: Vec<String> =
        paths.iter().map(|p| last(p).unwrap_or_else(|| p.display().to_string())).collect();
    match &short[..] {
        [_, _] if paths[0] == paths[1] => vec!["first".into(), "second".into()],
        [a, b] if a == b => paths.iter().map(|p| p.display().to_string()).collect(),
        _ => short,
    }
}

/// Size of the files that hold weights.
fn weight_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".bin");
    let files = entries.flatten().filter(|e| weights(&e.file_name().to_string_lossy()));
    files.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

fn points(value: Option<f64>) -> String {
    value.map_or_else(|| "undefined".to_owned(), |v| format!("{v:.2}"))
}

fn interval(range: Option<[f64; 2]>, signed: bool) -> String {
    match range {
        Some([a, b]) if signed => format!("[{a:+.2}, {b:+.2}]"),
        Some([a, b]) => format!("[{a:.2}, {b:.2}]"),
        None => "unknown".to_owned(),
    }
}

fn speed(exam: &Exam, trial: &Trial) -> f64 {
    exam.rows() as f64 / trial.seconds.max(1e-9)
}

fn print(
    args: &EvaluateArgs,
    exam: &Exam,
    candidates: &[Candidate],
    report: &Report,
    verdicts: &[Verdict],
    world: &World,
) {
    let screen = &world.screen;
    screen.line(format!(
        "{} examples of {}, {} threads, {}; figures in points, 95 % intervals",
        count(exam.rows()),
        args.data.display(),
        world.cx.threads.count(),
        world.cx.isa.name()
    ));
    let sizes = candidates.iter().map(|c| bytes(c.bytes));
    let speeds = candidates.iter().map(|c| format!("{:.0} rows/s", speed(exam, &c.trial)));
    let row = |head: &str, cells: Vec<String>, rest: &[&str]| -> Vec<String> {
        std::iter::once(head.to_owned()).chain(cells).chain(rest.iter().map(|s| s.to_string())).collect()
    };
    match &report.comparison {
        None => {
            let figures = report.figures.iter().map(|(m, e)| {
                row(m.name, vec![points(e[0].value), interval(e[0].interval, false)], &[m.about])
            });
            let tail =
                [row("weights", sizes.collect(), &["", ""]), row("speed", speeds.collect(), &["", ""])];
            let head = ["", &format!(">{}", candidates[0].name), ">interval", ""];
            screen.line(table(&head, figures.chain(tail)).to_string());
        }
        Some(c) => {
            let figures = report.figures.iter().zip(&c.differences).map(|((m, e), d)| {
                let difference = d.estimate.value.map_or_else(|| "undefined".into(), |v| format!("{v:+.2}"));
                let cells = vec![points(e[0].value), points(e[1].value), difference];
                row(m.name, cells, &[&interval(d.estimate.interval, true)])
            });
            let tail =
                [row("weights", sizes.collect(), &["", ""]), row("speed", speeds.collect(), &["", ""])];
            let heads = candidates.iter().map(|c| format!(">{}", c.name)).collect::<Vec<_>>();
            let head = ["", &heads[0], &heads[1], ">difference", ">its interval"];
            screen.line(table(&head, figures.chain(tail)).to_string());
            for line in sentences(candidates, c) {
                screen.line(line);
            }
            let shown = c.flips.iter().take(args.flips);
            let flipped: Vec<Vec<String>> = shown
                .map(|&i| {
                    let outputs =
                        candidates.iter().map(|c| shortened(&exam.spelled(&c.trial.outputs[i]), 40));
                    let line = exam.examples[i].place.number.to_string();
                    let head = vec![
                        line,
                        shortened(&text(&exam.examples[i].row), 60),
                        shortened(&exam.truth(i), 40),
                    ];
                    head.into_iter().chain(outputs).collect()
                })
                .collect();
            if !flipped.is_empty() {
                screen.line(format!("\nchanged answers ({} of {})", flipped.len(), count(c.flips.len())));
                let head = [">line", "text", "right", &candidates[0].name, &candidates[1].name];
                screen.line(table(&head, flipped).to_string());
            }
        }
    }
    for verdict in verdicts {
        screen.line(verdict.sentence());
    }
}

fn sentences(candidates: &[Candidate], c: &Comparison) -> Vec<String> {
    let mut out = Vec::new();
    let (a, b) = (&candidates[0].name, &candidates[1].name);
    if let (Some(same), Some([both, lost, gained, neither])) = (&c.agreement, c.counts) {
        out.push(format!(
            "same answer on {:.2} % of rows {}; right: both {}, only {a} {}, only {b} {}, neither {}",
            same.value,
            interval(Some(same.interval), false),
            count(both),
            count(lost),
            count(gained),
            count(neither)
        ));
    }
    if let Some(test) = c.mcnemar {
        out.push(format!(
            "McNemar: p = {:.3} exact, {:.3} mid-p (a large p does not prove that nothing was lost; the interval bounds it)",
            test.exact, test.mid
        ));
    }
    let headline = c.differences.first().and_then(|d| Some((d.metric.name, d.estimate.interval?)));
    if let Some((name, [low, _])) = headline {
        out.push(match low >= 0.0 {
            true => format!("{b} is proven at least as good as {a} in {name}"),
            false => format!("{b} is proven at most {:.2} points worse than {a} in {name}", -low),
        });
    }
    if let Some([mean, worst]) = c.scores {
        let kl = c
            .divergence
            .map_or_else(String::new, |[m, w]| format!("; KL {m:.1e} on average, {w:.1e} at most"));
        out.push(format!("scores differ by {mean:.4} on average, {worst:.4} at most{kl}"));
    }
    out
}

/// What a row shows of itself.
fn text(row: &Row) -> String {
    match row {
        Row::Text { text, pair: None } => text.clone(),
        Row::Text { text, pair: Some(pair) } => format!("{text} // {pair}"),
        Row::Question { question, context } => format!("{question} // {context}"),
        Row::Choices { text, choices } => format!("{text} // {}", choices.join(" / ")),
        Row::Tokens(sequence) => format!("{} token ids", sequence.ids.len()),
        Row::TokenChoices(all) => format!("token ids of {} choices", all.len()),
    }
}

/// At most `most` characters, on one line.
fn shortened(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}..", &line[..end]),
        None => line,
    }
}

fn by_name<'a>(all: impl Iterator<Item = (&'a Metric, &'a Estimate)>) -> Value {
    all.map(|(m, e)| (m.name.to_owned(), json!(e))).collect::<Map<_, _>>().into()
}

fn machine(
    args: &EvaluateArgs,
    exam: &Exam,
    candidates: &[Candidate],
    report: &Report,
    verdicts: &[Verdict],
) -> Value {
    let models: Vec<Value> = candidates
        .iter()
        .enumerate()
        .map(|(i, c)| {
            json!({
                "figures": by_name(report.figures.iter().map(|(m, e)| (m, &e[i]))),
                "model": c.path, "rows_per_second": speed(exam, &c.trial), "seconds": c.trial.seconds,
                "texts_cut": c.trial.cut, "weight_bytes": c.bytes,
            })
        })
        .collect();
    let comparison = report.comparison.as_ref().map(|c| {
        let flips: Vec<Value> = c
            .flips
            .iter()
            .take(args.flips)
            .map(|&i| {
                json!({
                    "first": exam.spelled(&candidates[0].trial.outputs[i]), "line": exam.examples[i].place.number,
                    "second": exam.spelled(&candidates[1].trial.outputs[i]),
                    "text": text(&exam.examples[i].row), "truth": exam.truth(i),
                })
            })
            .collect();
        json!({
            "agreement": c.agreement,
            "counts": c.counts.map(|[both, first, second, neither]| json!({
                "both": both, "first_only": first, "neither": neither, "second_only": second})),
            "differences": by_name(c.differences.iter().map(|d| (&d.metric, &d.estimate))),
            "flips": flips,
            "flips_in_all": c.flips.len(),
            "kl_divergence": c.divergence.map(|[mean, worst]| json!({"mean": mean, "worst": worst})),
            "mcnemar": c.mcnemar.map(|m| json!({"exact": m.exact, "mid_p": m.mid})),
            "score_difference": c.scores.map(|[mean, worst]| json!({"mean": mean, "worst": worst})),
        })
    });
    json!({
        "comparison": comparison, "data": args.data, "gates": verdicts.iter().map(verdict).collect::<Vec<_>>(),
        "models": models, "remarks": exam.remarks, "rows": exam.rows(),
    })
}

/// The file of answers: one line an example with where it stands, the right answer, and what each model gave.
struct Answers {
    out: BufWriter<File>,
    name: String,
}

impl Answers {
    fn open(path: &Path, data: &Path) -> Result<Answers> {
        let file = output::open(path, "--output", &[data])?;
        Ok(Answers { out: BufWriter::new(file), name: path.display().to_string() })
    }

    fn write(&mut self, exam: &Exam, trials: &[&Trial]) -> Result<()> {
        output::begin(self.out.get_ref(), &self.name)?;
        for (i, example) in exam.examples.iter().enumerate() {
            let answers: Vec<Value> = trials
                .iter()
                .map(|t| match &t.outputs[i] {
                    Output::Logits(logits) => {
                        json!({"answer": exam.spelled(&t.outputs[i]), "logits": logits})
                    }
                    other => json!({"answer": exam.spelled(other)}),
                })
                .collect();
            let line = json!({"answers": answers, "line": example.place.number, "truth": exam.truth(i)});
            writeln!(self.out, "{line}").map_err(|e| Error::io("cannot write", &self.name, &e))?;
        }
        self.out.flush().map_err(|e| Error::io("cannot write", &self.name, &e))
    }
}
