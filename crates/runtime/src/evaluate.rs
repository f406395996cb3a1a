//! Models on labelled examples: figures with intervals, one model or two on the same rows.
//!
//! An [`Exam`] is a list of examples with right answers, checked against what a model can answer. A
//! [`Trial`] is what one model answered. [`report`] turns one trial into figures, two into figures and a
//! paired comparison; [`gate`] decides whether a figure is good enough.
//!
//! All figures are in points: hundredths of the figure as papers print it.

mod compare;
mod figures;
pub mod gate;
mod trial;
mod truth;

pub use compare::{Comparison, Difference, Estimate, Plan, Report, Share, report};
pub use figures::Metric;
pub use gate::{Gate, On, Verdict};
pub use trial::{Output, Trial};
pub use truth::Truth;

use crate::dataset::Example;
use qberta_model::{Architecture, Error, Reading, Result, Task};
use truth::Labels;

/// What is asked of a model, which decides what can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// One of several labels.
    Classes,
    /// Any number of several labels.
    Sets,
    /// A number. `binary`: every right answer is 0 or 1; `sigmoid`: the model gives the logit of a probability.
    Score {
        /// Every right answer is 0 or 1.
        binary: bool,
        /// The model gives the logit of a probability.
        sigmoid: bool,
    },
    /// A tag for each word.
    Tags,
    /// A span of a context.
    Answers,
    /// One of several continuations.
    Choices,
}

impl Problem {
    /// What models like `arch` are asked.
    ///
    /// Errors: a task without right answers.
    pub fn of(arch: &Architecture) -> Result<Problem> {
        Ok(match (arch.head.task, arch.reading) {
            (Task::SequenceClassification, Reading::Exclusive) => Problem::Classes,
            (Task::SequenceClassification, Reading::Independent) if arch.labels.len() > 1 => Problem::Sets,
            (Task::SequenceClassification, reading) if arch.labels.len() == 1 => {
                Problem::Score { binary: false, sigmoid: reading == Reading::Independent }
            }
            (Task::SequenceClassification, _) => {
                return Err(Error::unsupported("regression with several outputs cannot be evaluated")
                    .expected("one output")
                    .found(arch.labels.len()));
            }
            (Task::TokenClassification, _) => Problem::Tags,
            (Task::QuestionAnswering, _) => Problem::Answers,
            (Task::MultipleChoice, _) => Problem::Choices,
            (task @ (Task::FillMask | Task::Features), _) => {
                return Err(Error::unsupported(format!(
                    "the task {} has no right answers to compare with",
                    task.name()
                ))
                .expected(
                    "sequence-classification, token-classification, question-answering or multiple-choice",
                )
                .hint("a checkpoint with such a head can be opened with --task"));
            }
        })
    }

    /// For messages.
    fn name(self) -> &'static str {
        match self {
            Problem::Classes => "one of several labels",
            Problem::Sets => "any number of labels",
            Problem::Score { sigmoid: true, .. } => "one score, the logit of a probability",
            Problem::Score { sigmoid: false, .. } => "one score",
            Problem::Tags => "a tag for each word",
            Problem::Answers => "an answer to a question",
            Problem::Choices => "one of several choices",
        }
    }
}

/// Examples with right answers, fit for a model.
#[derive(Debug)]
pub struct Exam {
    /// The examples.
    pub examples: Vec<Example>,
    /// The right answer of each.
    pub truths: Vec<Truth>,
    /// What is asked.
    pub problem: Problem,
    /// Names of the outputs.
    pub labels: Vec<String>,
    /// What a reader of the figures should know about the labels.
    pub remarks: Vec<String>,
}

impl Exam {
    /// An exam for models like `arch`. `names` are the names of label ids in the data, if they are known.
    ///
    /// Errors: a task without right answers, no examples, an example without a right answer or with one
    /// the model cannot give; each names its line.
    pub fn new(arch: &Architecture, examples: Vec<Example>, names: Option<&[String]>) -> Result<Exam> {
        let mut problem = Problem::of(arch)?;
        if examples.is_empty() {
            return Err(Error::input("there are no examples"));
        }
        let labels = Labels::new(&arch.labels, names)?;
        let read = |e: &Example| labels.truth(problem, e).map_err(|error| error.at(&e.place));
        let truths = examples.iter().map(read).collect::<Result<Vec<_>>>()?;
        let mut remarks = labels.remarks(problem, &examples);
        if let Problem::Score { binary, .. } = &mut problem {
            let flag = |t: &Truth| matches!(t, Truth::Score(x) if *x == 0.0 || *x == 1.0);
            *binary = truths.iter().all(flag) && truths.iter().any(|t| *t != truths[0]);
        }
        if problem == Problem::Answers
            && truths.iter().any(|t| matches!(t, Truth::Answers(a) if a.is_empty()))
        {
            remarks.push("some questions have no answer, so the models may give none".into());
        }
        Ok(Exam { examples, truths, problem, labels: arch.labels.clone(), remarks })
    }

    /// Number of examples.
    pub fn rows(&self) -> usize {
        self.examples.len()
    }

    /// Whether a second model answers the same questions.
    ///
    /// Errors: another task, other labels.
    pub fn fits(&self, arch: &Architecture) -> Result<()> {
        let other = Problem::of(arch)?;
        // Whether scores are 0 or 1 is a matter of the data, and has no part in the name.
        if other.name() != self.problem.name() {
            return Err(Error::input("the two models do different tasks")
                .expected(self.problem.name())
                .found(other.name()));
        }
        if arch.labels != self.labels {
            return Err(Error::input("the two models have different labels")
                .expected(self.labels.join(", "))
                .found(arch.labels.join(", ")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
