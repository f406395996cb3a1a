//! The rows of a plan and what they say about a model: how far it drops from the float model.

use crate::World;
use crate::data::{DataArgs, note};
use qberta_kernels::Matrix;
use qberta_model::{Architecture, Error, Model, Reading, Result, Sequence, Task};
use qberta_runtime::dataset::Target;
use qberta_runtime::evaluate::{Exam, On, Trial};
use qberta_runtime::metrics::Figure;
use qberta_runtime::metrics::statistics::{bootstrap, percentiles, resolution, wilson};
use qberta_runtime::{Example, Session};
use qberta_toolkit::Progress;
use qberta_toolkit::diagnose::decisions;
use qberta_toolkit::select::Drop;
use std::collections::HashSet;
use std::path::Path;

/// Which rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Those that everything is measured and chosen on.
    Measure,
    /// Those that nothing was chosen on.
    HeldOut,
}

impl Part {
    pub fn name(self) -> &'static str {
        ["measuring", "held-out"][self as usize]
    }
}

/// What a drop is a drop in.
enum Kind {
    /// A figure of labelled examples.
    Figure { exams: Box<[Exam; 2]>, float: [Option<Trial>; 2] },
    /// The share of rows with the answer of the float model.
    Agreement { float: [Option<Vec<Vec<usize>>>; 2] },
    /// The error of the outputs in percent of the outputs, for tasks without answers.
    OutputError,
}

/// Rows in two parts, and the session that models are put into.
pub struct Judge<'a> {
    args: &'a DataArgs,
    world: &'a World,
    session: Session,
    /// What the model sees of each row.
    pub sequences: [Vec<Vec<Sequence>>; 2],
    /// Rows of neither part: they repeat a row of the measuring part.
    pub repeated: usize,
    /// The figure whose drop counts.
    pub figure: String,
    kind: Kind,
}

impl<'a> Judge<'a> {
    /// Reads the rows of `path` and sets `measure` of them, evenly spread and at most half, apart for measuring.
    ///
    /// Errors: rows that cannot be read, fewer than two, a figure that the task does not have.
    pub fn open(
        args: &'a DataArgs,
        path: &Path,
        session: Session,
        measure: usize,
        figure: Option<&str>,
        world: &'a World,
    ) -> Result<Judge<'a>> {
        let arch = session.architecture();
        let (examples, names) = args.examples(path, arch, world)?;
        if examples.len() < 2 {
            return Err(Error::input("data hold too few rows: some measure, others prove")
                .at(path.display())
                .expected("2, and a few hundred for a useful plan")
                .found(examples.len()));
        }
        let encode =
            |e: &Example| session.sequences(&e.row, &args.options()).map_err(|error| error.at(&e.place));
        let sequences = examples.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let (parts, repeated) = split(&sequences, measure);
        let kind =
            kind(arch, &examples, names.as_deref(), &parts, world).map_err(|e| e.at(path.display()))?;
        let some = |rows: &Vec<usize>| rows.iter().map(|&i| sequences[i].clone()).collect();
        let sequences = [some(&parts[0]), some(&parts[1])];
        let figure = named(&kind, figure)?;
        Ok(Judge { args, world, session, sequences, repeated, figure, kind })
    }

    /// Rows of a part.
    pub fn rows(&self, part: Part) -> usize {
        self.sequences[part as usize].len()
    }

    pub fn architecture(&self) -> &Architecture {
        self.session.architecture()
    }

    /// The least drop that the held-out rows can exclude, if no answer changes at all.
    pub fn resolution(&self) -> f64 {
        let continuous = ["auc", "pearson", "spearman"].contains(&self.figure.as_str());
        if continuous || matches!(self.kind, Kind::OutputError) {
            0.0
        } else {
            100.0 * resolution(self.rows(Part::HeldOut))
        }
    }

    /// Whether a drop is proven (or estimated) to be at most `most`.
    pub fn passes(&self, drop: &Drop, most: f64) -> bool {
        let decides = match self.args.gate_on {
            On::Interval => drop.interval[1],
            On::Point => drop.value,
        };
        decides <= most + 1e-9
    }

    /// How far `model` drops from the float model on `part`.
    ///
    /// Errors: a row that cannot be run, a figure that is undefined on these rows.
    pub fn drop(&mut self, model: Model, part: Part, name: &str) -> Result<Drop> {
        self.ask_float(part)?;
        let float = self.session.exchange(model)?;
        let found = match &self.kind {
            Kind::Figure { exams, float } => {
                self.figure_drop(&exams[part as usize], &float[part as usize], part, name)
            }
            Kind::Agreement { float } => self.agreement(&float[part as usize], part, name),
            Kind::OutputError => Ok(None),
        };
        let other = self.session.exchange(float)?;
        match found? {
            Some(drop) => Ok(drop),
            None => self.output_error(other, part, name),
        }
    }

    /// What the float model answers, once.
    fn ask_float(&mut self, part: Part) -> Result<()> {
        let i = part as usize;
        match &self.kind {
            Kind::Figure { exams, float } if float[i].is_none() => {
                let trial = self.args.run(&exams[i], &self.session, "float", self.world)?;
                if let Kind::Figure { float, .. } = &mut self.kind {
                    float[i] = Some(trial);
                }
            }
            Kind::Agreement { float } if float[i].is_none() => {
                let answers = self.decisions(part, "float")?;
                if let Kind::Agreement { float } = &mut self.kind {
                    float[i] = Some(answers);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn figure_drop(
        &self,
        exam: &Exam,
        float: &Option<Trial>,
        part: Part,
        name: &str,
    ) -> Result<Option<Drop>> {
        let Some(float) = float else { return Ok(None) };
        let trial =
            self.args.run(exam, &self.session, &format!("{name} on {} rows", part.name()), self.world)?;
        let report = self.args.report(exam, &[float, &trial], self.world);
        let found = report
            .comparison
            .as_ref()
            .and_then(|c| c.differences.iter().find(|d| d.metric.name == self.figure));
        match found.map(|d| d.estimate) {
            Some(e) if e.value.is_some() && e.interval.is_some() => {
                let (value, [low, high]) = (e.value.unwrap_or(0.0), e.interval.unwrap_or([0.0; 2]));
                // A drop is a difference turned round; + 0.0 makes no change print without a sign.
                Ok(Some(Drop { value: 0.0 - value, interval: [0.0 - high, 0.0 - low] }))
            }
            _ => Err(Error::input(format!("{} is undefined on the {} rows", self.figure, part.name()))
                .hint("it needs more rows, or rows of more than one kind; --metric names another figure")),
        }
    }

    fn agreement(&self, float: &Option<Vec<Vec<usize>>>, part: Part, name: &str) -> Result<Option<Drop>> {
        let Some(float) = float else { return Ok(None) };
        let answers = self.decisions(part, name)?;
        let same = float.iter().zip(&answers).filter(|(a, b)| a == b).count();
        let [low, high] = wilson(same, answers.len());
        let points = |share: f64| 100.0 * (1.0 - share);
        Ok(Some(Drop {
            value: points(same as f64 / answers.len() as f64),
            interval: [points(high), points(low)],
        }))
    }

    fn decisions(&self, part: Part, name: &str) -> Result<Vec<Vec<usize>>> {
        let mut all = Vec::with_capacity(self.rows(part));
        self.each(part, name, |session, rows| {
            let outputs = session.run(&rows.concat())?;
            for example in per_example(rows, &outputs) {
                all.push(decisions(session.architecture(), &example.iter().collect::<Vec<_>>()));
            }
            Ok(())
        })?;
        Ok(all)
    }

    fn output_error(&mut self, other: Model, part: Part, name: &str) -> Result<Drop> {
        let mut sums = OutputError::default();
        let mut other = Some(other);
        let rows = std::mem::take(&mut self.sequences[part as usize]);
        let run = |session: &mut Session,
                   rows: &[Vec<Sequence>],
                   sums: &mut OutputError,
                   other: &mut Option<Model>| {
            let float = session.run(&rows.concat())?;
            let Some(model) = other.take() else { return Ok(()) };
            let kept = session.exchange(model)?;
            let found = session.run(&rows.concat());
            *other = Some(session.exchange(kept)?);
            for (a, b) in per_example(rows, &float).iter().zip(per_example(rows, &found?)) {
                sums.see(a, b);
            }
            Ok(())
        };
        self.world.screen.stage(&format!("evaluating {name} on {} rows", part.name()), rows.len() as u64);
        for chunk in rows.chunks(CHUNK) {
            run(&mut self.session, chunk, &mut sums, &mut other)?;
            (0..chunk.len()).for_each(|_| self.world.screen.step());
        }
        self.sequences[part as usize] = rows;
        let ones = vec![1; sums.0.len()];
        let draws = bootstrap(&[&sums], ones.len(), 2000, 0, self.world.cx.threads.count());
        let interval = draws.into_iter().next().and_then(percentiles).unwrap_or([sums.at(&ones); 2]);
        Ok(Drop { value: sums.at(&ones), interval })
    }

    fn each(
        &self,
        part: Part,
        name: &str,
        mut work: impl FnMut(&Session, &[Vec<Sequence>]) -> Result<()>,
    ) -> Result<()> {
        let rows = &self.sequences[part as usize];
        self.world.screen.stage(&format!("evaluating {name} on {} rows", part.name()), rows.len() as u64);
        for chunk in rows.chunks(CHUNK) {
            work(&self.session, chunk)?;
            (0..chunk.len()).for_each(|_| self.world.screen.step());
        }
        self.world.screen.finish();
        Ok(())
    }
}

/// Rows run between two reports of progress.
const CHUNK: usize = 128;

/// Squared error and squared output of each row.
#[derive(Default)]
struct OutputError(Vec<[f64; 2]>);

impl OutputError {
    fn see(&mut self, float: &[Matrix], other: &[Matrix]) {
        let mut sums = [0.0; 2];
        for (a, b) in float.iter().flat_map(|m| m.as_slice()).zip(other.iter().flat_map(|m| m.as_slice())) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            sums[0] += (a - b).powi(2);
            sums[1] += a * a;
        }
        self.0.push(sums);
    }
}

impl Figure for OutputError {
    fn at(&self, weights: &[u32]) -> f64 {
        let sum = |i: usize| self.0.iter().zip(weights).map(|(s, w)| s[i] * f64::from(*w)).sum::<f64>();
        100.0 * (sum(0) / sum(1).max(f64::MIN_POSITIVE)).sqrt()
    }
}

fn per_example<'m>(rows: &[Vec<Sequence>], outputs: &'m [Matrix]) -> Vec<&'m [Matrix]> {
    let mut rest = outputs;
    let mut next = |row: &Vec<Sequence>| {
        let (these, later) = rest.split_at(row.len().min(rest.len()));
        rest = later;
        these
    };
    rows.iter().map(&mut next).collect()
}

/// Indices of the two parts, and how many rows are in neither.
fn split(sequences: &[Vec<Sequence>], measure: usize) -> ([Vec<usize>; 2], usize) {
    let n = sequences.len();
    let m = measure.min(n / 2).max(1);
    let measured: Vec<usize> = (0..m).map(|i| i * n / m).collect();
    let key = |i: usize| sequences[i].iter().map(|s| (&s.ids, &s.types)).collect::<Vec<_>>();
    let known: HashSet<_> = measured.iter().map(|&i| key(i)).collect();
    let chosen: HashSet<usize> = measured.iter().copied().collect();
    let others = (0..n).filter(|i| !chosen.contains(i));
    let (repeated, held): (Vec<usize>, Vec<usize>) = others.partition(|&i| known.contains(&key(i)));
    ([measured, held], repeated.len())
}

fn kind(
    arch: &Architecture,
    examples: &[Example],
    names: Option<&[String]>,
    parts: &[Vec<usize>; 2],
    world: &World,
) -> Result<Kind> {
    if parts[1].is_empty() {
        return Err(Error::input("every row repeats one that measures, so none is left to prove anything"));
    }
    let answered = !matches!(arch.head.task, Task::FillMask | Task::Features);
    if answered && examples.iter().any(|e| e.target != Target::None) {
        let exam = Exam::new(arch, examples.to_vec(), names)?;
        exam.remarks.iter().for_each(|remark| note(world, remark));
        let part = |rows: &Vec<usize>| Exam {
            examples: rows.iter().map(|&i| exam.examples[i].clone()).collect(),
            truths: rows.iter().map(|&i| exam.truths[i].clone()).collect(),
            problem: exam.problem,
            labels: exam.labels.clone(),
            remarks: Vec::new(),
        };
        return Ok(Kind::Figure { exams: Box::new([part(&parts[0]), part(&parts[1])]), float: [None, None] });
    }
    let undecided = arch.head.task == Task::Features
        || arch.head.task == Task::SequenceClassification && arch.reading == Reading::Regression;
    Ok(if undecided { Kind::OutputError } else { Kind::Agreement { float: [None, None] } })
}

/// The figure that counts: the one asked for, else the usual headline.
fn named(kind: &Kind, asked: Option<&str>) -> Result<String> {
    let known: Vec<&str> = match kind {
        Kind::Figure { exams, .. } => {
            exams[0].metrics().iter().filter(|m| !m.lower_is_better).map(|m| m.name).collect()
        }
        Kind::Agreement { .. } => vec!["agreement"],
        Kind::OutputError => vec!["output-error"],
    };
    let Some(name) = asked else { return Ok(known[0].to_owned()) };
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    let error =
        Error::input("these data have no such figure").at("--metric").expected(known.join(", ")).found(name);
    Err(match kind {
        Kind::Figure { .. } => error,
        _ => error.hint("the data have no labels"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_share_no_row_that_is_the_same() {
        let row = |id: u32| vec![Sequence::of(vec![1, id, 2])];
        let rows: Vec<_> = (0..100).map(|i| row(if i == 51 { 50 } else { i })).collect();
        let ([measured, held], repeated) = split(&rows, 10);
        assert_eq!((measured.len(), held.len(), repeated), (10, 89, 1));
        assert!(measured.iter().all(|i| !held.contains(i)) && !held.contains(&51));
        let ([measured, held], _) = split(&rows[..3], 256);
        assert_eq!((measured, held), (vec![0], vec![1, 2]));
    }
}
