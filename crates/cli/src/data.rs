//! Labelled data on the command line: shared by `evaluate` and the gates of `quantize`.

use crate::World;
use clap::Args;
use qberta_model::{Architecture, Result};
use qberta_runtime::evaluate::{Exam, Gate, On, Plan, Report, Trial, Verdict};
use qberta_runtime::{Columns, Dataset, Example, Form, Options, Session};
use qberta_toolkit::Progress;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Which columns, how many rows, how they are run.
#[derive(Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Column of the text, the question or the words [default: guessed from the usual names, and said]
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Column of the second text, or of the context
    #[arg(long, value_name = "COLUMN")]
    text_pair: Option<String>,
    /// Column of the label, the answers or the tags
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Columns of the choices, or one column with a list
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    choices: Vec<String>,
    /// What the ids 0, 1, .. of the data are called by the model
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    label_names: Vec<String>,
    /// Use the first rows only
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Rows run together; no result depends on it
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Longest input in tokens; longer texts are cut, and said to be
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// Longest answer to a question, as the SQuAD scripts have it
    #[arg(long, value_name = "TOKENS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_answer: u32,
    /// Bootstrap resamples for the intervals of figures that are not shares
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    resamples: u32,
    /// What decides a gate: the lower end of the 95 % interval, or the estimate alone (interval, point)
    #[arg(long, value_name = "WHAT", default_value = "interval", value_parser = on)]
    pub gate_on: On,
}

fn on(name: &str) -> std::result::Result<On, String> {
    let known: Vec<&str> = On::ALL.iter().map(|(_, n)| *n).collect();
    let found = On::ALL.iter().find(|(_, n)| *n == name).map(|(o, _)| *o);
    found.ok_or_else(|| format!("expected one of {}", known.join(", ")))
}

/// A remark that is not a warning, on standard error.
pub fn note(world: &World, text: &str) {
    world.screen.finish();
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

impl DataArgs {
    /// Reads the examples of `path` for models like `arch`, and says what was guessed. The second part are the
    /// names of its label ids, if they are known.
    pub fn examples(
        &self,
        path: &Path,
        arch: &Architecture,
        world: &World,
    ) -> Result<(Vec<Example>, Option<Vec<String>>)> {
        let columns = Columns {
            text: self.text.clone(),
            pair: self.text_pair.clone(),
            label: self.label.clone(),
            choices: self.choices.clone(),
        };
        let data = Dataset::open(path, Form::of(arch.head.task), &columns)?;
        for remark in data.remarks() {
            note(world, &remark);
        }
        let recorded = data.label_names().map(<[String]>::to_vec);
        let names = if self.label_names.is_empty() { recorded } else { Some(self.label_names.clone()) };
        let examples =
            data.take(self.limit.map_or(usize::MAX, |n| n as usize)).collect::<Result<Vec<_>>>()?;
        Ok((examples, names))
    }

    /// Reads the labelled examples of `path` for models like `arch`.
    pub fn exam(&self, path: &Path, arch: &Architecture, world: &World) -> Result<Exam> {
        let (examples, names) = self.examples(path, arch, world)?;
        let exam = Exam::new(arch, examples, names.as_deref()).map_err(|e| {
            if e.to_string().contains(&path.display().to_string()) { e } else { e.at(path.display()) }
        })?;
        for remark in &exam.remarks {
            note(world, remark);
        }
        Ok(exam)
    }

    /// What figures depend on beside rows and models, in words.
    pub fn reading(&self) -> String {
        let DataArgs { label, label_names, max_answer, resamples, .. } = self;
        format!(
            "label {label:?}, names {label_names:?}, answers of {max_answer} tokens, {resamples} resamples"
        )
    }

    /// How texts become answers.
    pub fn options(&self) -> Options {
        Options {
            max_length: self.max_length.map(|n| n as usize),
            max_answer: self.max_answer as usize,
            ..Options::standard()
        }
    }

    /// Opens a model as these options say.
    pub fn session(&self, session: Session) -> Session {
        match self.batch {
            Some(rows) => session.with_batch_rows(rows as usize),
            None => session,
        }
    }

    /// Lets a model answer, with a progress bar.
    pub fn run(&self, exam: &Exam, session: &Session, name: &str, world: &World) -> Result<Trial> {
        world.screen.stage(&format!("evaluating {name}"), exam.rows() as u64);
        let trial =
            exam.run(session, &self.options(), &mut |rows| (0..rows).for_each(|_| world.screen.step()));
        world.screen.finish();
        let trial = trial?;
        match trial.cut {
            0 => {}
            1 => world
                .screen
                .warn(&format!("{name}: 1 text was longer than the limit and was cut; see --max-length")),
            n => world.screen.warn(&format!(
                "{name}: {n} texts were longer than the limit and were cut; see --max-length"
            )),
        }
        Ok(trial)
    }

    /// Figures and intervals of one or two trials.
    pub fn report(&self, exam: &Exam, trials: &[&Trial], world: &World) -> Report {
        let plan = Plan { resamples: self.resamples as usize, ..Plan::standard(world.cx.threads.count()) };
        qberta_runtime::evaluate::report(exam, trials, &plan)
    }
}

/// Parses the gates of a command line.
pub fn gates(texts: &[String]) -> Result<Vec<Gate>> {
    texts.iter().map(|t| Gate::parse(t)).collect()
}

/// A verdict for machines.
pub fn verdict(v: &Verdict) -> Value {
    json!({
        "decided_on": v.on.name(), "figure": v.figure, "gate": v.gate, "interval": v.interval,
        "least": v.least, "metric": v.metric, "passed": v.passed, "reference": v.reference,
        "relative": v.relative, "value": v.value,
    })
}

/// What to do about a gate that failed.
pub fn advice(v: &Verdict, rows: usize) -> String {
    if v.on == On::Interval && v.value >= v.least {
        format!(
            "the estimate is within the gate, but {} not prove it: use more rows, a wider gate, or --gate-on point",
            if rows == 1 { "1 row does".to_owned() } else { format!("{rows} rows do") }
        )
    } else {
        "a recipe with more float (--recipe weight-only, or --skip of modules) loses less".to_owned()
    }
}
