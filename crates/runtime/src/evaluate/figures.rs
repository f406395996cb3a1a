//! Which figures each problem has, and how they follow from right answers and given ones.

use super::trial::best;
use super::{Exam, Output, Problem, Trial, Truth};
use crate::metrics::{
    Area, Calibration, Confusion, Counts, Figure, Finder, LabelSets, Mean, Pearson, Spearman, answer_f1,
    entities, entity_counts, exact_match, normalized, strict_entities,
};
use crate::tasks::{sigmoid, softmax};

/// A figure that can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Its name in options and JSON.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Whether less of it is better.
    pub lower_is_better: bool,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The share of rows that are right.
    Share,
    WordAccuracy,
    MacroF1,
    Matthews,
    SetMacroF1,
    SetMicroF1,
    Area,
    Calibration,
    Pearson,
    Spearman,
    EntityF1,
    EntityPrecision,
    EntityRecall,
    StrictF1,
    AnswerF1,
}

impl Kind {
    /// Follows from rows being right or wrong, so that rows without a change leave something open.
    pub fn is_decided(self) -> bool {
        !matches!(self, Kind::Area | Kind::Calibration | Kind::Pearson | Kind::Spearman)
    }
}

const fn metric(name: &'static str, kind: Kind, about: &'static str) -> Metric {
    Metric { name, about, lower_is_better: matches!(kind, Kind::Calibration), kind }
}

const ACCURACY: Metric = metric("accuracy", Kind::Share, "rows answered right");
const ECE: Metric = metric("ece", Kind::Calibration, "expected calibration error, 15 bins");
const AREA: Metric = metric("auc", Kind::Area, "area under the ROC curve");

impl Exam {
    /// The figures of this exam, the usual headline first.
    pub fn metrics(&self) -> Vec<Metric> {
        match self.problem {
            Problem::Classes => {
                let mut all = vec![
                    ACCURACY,
                    metric("macro-f1", Kind::MacroF1, "mean F1 of the labels"),
                    metric("mcc", Kind::Matthews, "Matthews' correlation"),
                ];
                all.extend((self.labels.len() == 2).then_some(AREA));
                all.push(ECE);
                all
            }
            Problem::Choices => vec![ACCURACY, ECE],
            Problem::Sets => vec![
                metric("accuracy", Kind::Share, "rows with every label right"),
                metric("micro-f1", Kind::SetMicroF1, "F1 of all labels together"),
                metric("macro-f1", Kind::SetMacroF1, "mean F1 of the labels"),
            ],
            Problem::Score { binary, sigmoid } => {
                let mut all = vec![
                    metric("spearman", Kind::Spearman, "correlation of ranks"),
                    metric("pearson", Kind::Pearson, "correlation"),
                ];
                if binary {
                    all.insert(0, AREA);
                }
                if binary && sigmoid {
                    all.insert(0, ACCURACY);
                    all.push(ECE);
                }
                all
            }
            Problem::Tags => {
                let mut all = vec![
                    metric("f1", Kind::EntityF1, "entities, as seqeval counts them"),
                    metric("precision", Kind::EntityPrecision, "found entities that are right"),
                    metric("recall", Kind::EntityRecall, "true entities that are found"),
                ];
                // IOB2 knows no other tags.
                if self.labels.iter().all(|l| l == "O" || l.starts_with("B-") || l.starts_with("I-")) {
                    all.push(metric("strict-f1", Kind::StrictF1, "entities by the letter of IOB2"));
                }
                all.push(metric("accuracy", Kind::WordAccuracy, "words tagged right"));
                all
            }
            Problem::Answers => vec![
                metric("em", Kind::Share, "exact match, as the SQuAD script counts it"),
                metric("f1", Kind::AnswerF1, "F1 of words, as the SQuAD script counts it"),
            ],
        }
    }

    /// A figure of one trial.
    pub(super) fn figure<'a>(&'a self, kind: Kind, trial: &'a Trial) -> Box<dyn Figure + 'a> {
        let classes = || -> (Vec<usize>, Vec<usize>) {
            let truth = self.truths.iter().map(|t| if let Truth::Class(c) = t { *c } else { 0 });
            (truth.collect(), trial.outputs.iter().map(|o| best(logits(o))).collect())
        };
        let scores = || -> (Vec<f64>, Vec<f64>) {
            let truth = self.truths.iter().map(|t| if let Truth::Score(x) = t { *x } else { 0.0 });
            (truth.collect(), trial.outputs.iter().map(|o| f64::from(logits(o)[0])).collect())
        };
        match kind {
            Kind::Share => {
                Box::new(Mean(self.right(trial).iter().map(|r| f64::from(u8::from(*r))).collect()))
            }
            Kind::MacroF1 => {
                let (truth, found) = classes();
                Box::new(Confusion::macro_f1(&truth, &found))
            }
            Kind::Matthews => {
                let (truth, found) = classes();
                Box::new(Confusion::matthews(&truth, &found))
            }
            Kind::SetMacroF1 => {
                let (truth, found) = self.sets(trial).unzip();
                Box::new(LabelSets::macro_f1(truth, found))
            }
            Kind::SetMicroF1 => {
                let count = |(truth, found): (Vec<bool>, Vec<bool>)| {
                    let n = |f: &dyn Fn(bool, bool) -> bool| {
                        truth.iter().zip(&found).filter(|&(&t, &p)| f(t, p)).count() as u32
                    };
                    [n(&|t, p| t && p), n(&|_, p| p), n(&|t, _| t)]
                };
                Box::new(Counts::f1(self.sets(trial).map(count).collect()))
            }
            Kind::Area if self.problem == Problem::Classes => {
                let (truth, _) = classes();
                let margin = |o: &Output| f64::from(logits(o)[1]) - f64::from(logits(o)[0]);
                let margins: Vec<f64> = trial.outputs.iter().map(margin).collect();
                Box::new(Area::new(&margins, truth.iter().map(|t| *t == 1).collect()))
            }
            Kind::Area => {
                let (truth, found) = scores();
                Box::new(Area::new(&found, truth.iter().map(|t| *t == 1.0).collect()))
            }
            Kind::Pearson => {
                let (truth, found) = scores();
                Box::new(Pearson::new(truth, found))
            }
            Kind::Spearman => {
                let (truth, found) = scores();
                Box::new(Spearman::new(&truth, &found))
            }
            Kind::Calibration => {
                let confidence = trial.outputs.iter().map(|o| match self.problem {
                    Problem::Score { .. } => f64::from(sigmoid(logits(o)[0].abs())),
                    _ => f64::from(softmax(logits(o))[best(logits(o))]),
                });
                Box::new(Calibration::new(confidence.collect(), self.right(trial)))
            }
            Kind::EntityF1 => Box::new(Counts::f1(self.entities(trial, entities))),
            Kind::EntityPrecision => Box::new(Counts::precision(self.entities(trial, entities))),
            Kind::EntityRecall => Box::new(Counts::recall(self.entities(trial, entities))),
            Kind::StrictF1 => Box::new(Counts::f1(self.entities(trial, strict_entities))),
            Kind::WordAccuracy => {
                let count = |(truth, found): (&Truth, &Output)| {
                    let (truth, found) = tagged(truth, found);
                    let right = truth.iter().zip(&found).filter(|(t, p)| Some(**t) == **p).count();
                    [right as u32, truth.len() as u32, truth.len() as u32]
                };
                Box::new(Counts::precision(self.truths.iter().zip(&trial.outputs).map(count).collect()))
            }
            Kind::AnswerF1 => {
                let score = |(truth, found): (&Truth, &Output)| match (truth, found) {
                    (Truth::Answers(all), Output::Answer(answer)) => answer_f1(all, answer),
                    _ => 0.0,
                };
                Box::new(Mean(self.truths.iter().zip(&trial.outputs).map(score).collect()))
            }
        }
    }

    fn sets<'a>(&'a self, trial: &'a Trial) -> impl Iterator<Item = (Vec<bool>, Vec<bool>)> + 'a {
        self.truths.iter().zip(&trial.outputs).map(|(truth, found)| {
            let truth = if let Truth::Set(flags) = truth { flags.clone() } else { Vec::new() };
            (truth, flags(found))
        })
    }

    fn entities(&self, trial: &Trial, find: Finder) -> Vec<[u32; 3]> {
        let name = |i: usize| self.labels.get(i).map_or("O", String::as_str);
        let count = |(truth, found): (&Truth, &Output)| {
            let (truth, found) = tagged(truth, found);
            let truth: Vec<&str> = truth.iter().map(|&t| name(t)).collect();
            let found: Vec<&str> = found.iter().map(|t| t.map_or("O", name)).collect();
            entity_counts(&find(&truth), &find(&found))
        };
        self.truths.iter().zip(&trial.outputs).map(count).collect()
    }

    /// Whether one answer is right: all of it, where it has parts.
    fn is_right(&self, truth: &Truth, output: &Output) -> bool {
        match (truth, output) {
            (Truth::Class(truth), Output::Logits(found)) => best(found) == *truth,
            (Truth::Set(truth), found) => flags(found) == *truth,
            (Truth::Score(truth), Output::Logits(found)) => (found[0] > 0.0) == (*truth == 1.0),
            (Truth::Answers(all), Output::Answer(answer)) => exact_match(all, answer) > 0.0,
            (Truth::Tags(truth), Output::Tags(found)) => {
                truth.iter().zip(found).all(|(t, (p, _))| Some(*t) == *p)
            }
            _ => false,
        }
    }

    /// Whether each row is right.
    pub(super) fn right(&self, trial: &Trial) -> Vec<bool> {
        self.truths.iter().zip(&trial.outputs).map(|(t, o)| self.is_right(t, o)).collect()
    }

    /// Whether answers to this exam are decisions, which two models share or not.
    pub(super) fn decides(&self) -> bool {
        !matches!(self.problem, Problem::Score { binary: false, .. } | Problem::Score { sigmoid: false, .. })
    }

    /// Whether two answers are the same decision.
    pub(super) fn is_same(&self, a: &Output, b: &Output) -> bool {
        match (a, b) {
            (Output::Logits(x), Output::Logits(y)) => match self.problem {
                Problem::Sets | Problem::Score { .. } => flags(a) == flags(b),
                _ => best(x) == best(y),
            },
            (Output::Tags(x), Output::Tags(y)) => x.iter().map(|t| t.0).eq(y.iter().map(|t| t.0)),
            (Output::Answer(x), Output::Answer(y)) => normalized(x) == normalized(y),
            _ => false,
        }
    }

    /// An answer in words.
    pub fn spelled(&self, output: &Output) -> String {
        match (self.problem, output) {
            (Problem::Classes, Output::Logits(x)) => {
                format!("{} ({:.3})", self.name(best(x)), softmax(x)[best(x)])
            }
            (Problem::Choices, Output::Logits(x)) => format!("{} ({:.3})", best(x), softmax(x)[best(x)]),
            (Problem::Sets, found) => self.named(&flags(found)),
            (_, Output::Logits(x)) => format!("{:.4}", x[0]),
            (_, Output::Tags(tags)) => {
                let names = tags.iter().map(|t| t.0.map_or("(cut)", |t| self.name(t)));
                names.collect::<Vec<_>>().join(" ")
            }
            (_, Output::Answer(answer)) if answer.is_empty() => "(no answer)".to_owned(),
            (_, Output::Answer(answer)) => answer.clone(),
        }
    }

    /// The right answer in words.
    pub fn truth(&self, row: usize) -> String {
        match &self.truths[row] {
            Truth::Class(c) if self.problem == Problem::Choices => c.to_string(),
            Truth::Class(c) => self.name(*c).to_owned(),
            Truth::Set(flags) => self.named(flags),
            Truth::Score(x) => x.to_string(),
            Truth::Tags(tags) => tags.iter().map(|&t| self.name(t)).collect::<Vec<_>>().join(" "),
            Truth::Answers(all) if all.is_empty() => "(no answer)".to_owned(),
            Truth::Answers(all) => all.join(" | "),
        }
    }

    fn name(&self, label: usize) -> &str {
        self.labels.get(label).map_or("?", String::as_str)
    }

    fn named(&self, flags: &[bool]) -> String {
        let on = flags.iter().enumerate().filter(|(_, f)| **f).map(|(i, _)| self.name(i));
        let all = on.collect::<Vec<_>>().join(", ");
        if all.is_empty() { "(none)".to_owned() } else { all }
    }
}

fn logits(output: &Output) -> &[f32] {
    match output {
        Output::Logits(x) => x,
        _ => &[0.0],
    }
}

/// A label is given when its probability is above one half.
fn flags(output: &Output) -> Vec<bool> {
    logits(output).iter().map(|x| *x > 0.0).collect()
}

fn tagged<'t>(truth: &'t Truth, found: &Output) -> (&'t [usize], Vec<Option<usize>>) {
    match (truth, found) {
        (Truth::Tags(truth), Output::Tags(found)) => (truth, found.iter().map(|t| t.0).collect()),
        _ => (&[], Vec::new()),
    }
}
