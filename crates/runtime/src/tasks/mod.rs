//! Rows to sequences, outputs to answers: one file per task.

mod classify;
mod entities;
mod fill;
mod pool;
mod question;
mod raw;

use crate::answer::{Answer, RawAnswer};
use crate::row::Row;
use crate::session::Session;
use crate::tokenize::Encoded;
pub use entities::Aggregation;
pub use pool::{Pooling, Vectors};
use qberta_model::{Error, Result, Sequence, Task};

/// What a caller may choose about answers. Lengths in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Longest input; longer texts are cut.
    pub max_length: Option<usize>,
    /// Labels, words or answers to give.
    pub top_k: usize,
    /// How tokens become entities.
    pub aggregation: Aggregation,
    /// How hidden states become one vector; the model's own setting if `None`.
    pub pooling: Option<Pooling>,
    /// Labels for zero-shot classification with an NLI model; empty for plain classification.
    pub zero_shot: Vec<String>,
    /// The sentence a zero-shot label is put into, at `{}`.
    pub hypothesis: String,
    /// Zero-shot labels do not exclude each other.
    pub multi_label: bool,
    /// Overlap of neighbouring windows of a long context.
    pub stride: usize,
    /// Longest answer to a question.
    pub max_answer: usize,
    /// A question may have no answer.
    pub no_answer: bool,
}

impl Options {
    /// What Hugging Face pipelines do when nothing is said: best label, simple aggregation, windows of
    /// 384 tokens with 128 shared, answers of at most 15 tokens.
    pub fn standard() -> Options {
        Options {
            max_length: None,
            top_k: 1,
            aggregation: Aggregation::Simple,
            pooling: None,
            zero_shot: Vec::new(),
            hypothesis: "This example is {}.".into(),
            multi_label: false,
            stride: 128,
            max_answer: 15,
            no_answer: false,
        }
    }
}

/// Answers by task.
pub(crate) fn answer(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let task = session.architecture().head.task;
    if !options.zero_shot.is_empty() && task != Task::SequenceClassification {
        return Err(Error::input("zero-shot classification needs an NLI classifier").found(task.name()));
    }
    match task {
        Task::SequenceClassification if options.zero_shot.is_empty() => {
            classify::labels(session, rows, options)
        }
        Task::SequenceClassification => classify::zero_shot(session, rows, options),
        Task::TokenClassification => entities::entities(session, rows, options),
        Task::QuestionAnswering => question::answers(session, rows, options),
        Task::FillMask => fill::fills(session, rows, options),
        Task::MultipleChoice => classify::choices(session, rows, options),
        Task::Features => pool::vectors(session, rows, options),
    }
}

/// Untouched numbers.
pub(crate) fn raw(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<RawAnswer>> {
    raw::raw(session, rows, options)
}

/// A row as the sequences the model runs.
pub(crate) fn sequences(session: &Session, row: &Row, options: &Options) -> Result<Vec<Sequence>> {
    match row {
        Row::Choices { .. } | Row::TokenChoices(_) => raw::choice_sequences(session, row, options),
        _ => Ok(vec![single(session, row, options)?.0]),
    }
}

/// A row as one sequence, with what the tokenizer said about it.
fn single(session: &Session, row: &Row, options: &Options) -> Result<(Sequence, Option<Encoded>)> {
    let (text, pair) = match row {
        Row::Tokens(sequence) => return Ok((sequence.clone(), None)),
        Row::Text { text, pair } => (text, pair.as_deref()),
        Row::Question { question, context } => (question, Some(context.as_str())),
        other => return Err(wrong_row(session, other, "a text, a pair or token ids")),
    };
    let encoded = session.encode(text, pair, options)?;
    Ok((sequence(&encoded), Some(encoded)))
}

fn sequence(encoded: &Encoded) -> Sequence {
    Sequence { ids: encoded.ids.clone(), types: encoded.type_ids.clone() }
}

fn wrong_row(session: &Session, row: &Row, expected: &str) -> Error {
    Error::input(format!("row does not fit the task {}", session.architecture().head.task.name()))
        .expected(expected)
        .found(row.kind())
}

/// Applies `f` to every row, naming the row in errors; a row alone needs no name.
fn each<'r, T>(rows: &'r [Row], f: impl Fn(&'r Row) -> Result<T>) -> Result<Vec<T>> {
    let named = |i: usize, e: Error| if rows.len() == 1 { e } else { e.at(format!("row {i}")) };
    rows.iter().enumerate().map(|(i, row)| f(row).map_err(|e| named(i, e))).collect()
}

/// Softmax with the kernels' own arithmetic, so that scores are the same bits everywhere.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
    let mut p = logits.to_vec();
    qberta_kernels::softmax_row(&mut p);
    p
}

/// Logistic function as a two-way softmax against zero: the same bits everywhere.
pub(crate) fn sigmoid(x: f32) -> f32 {
    softmax(&[x, 0.0])[0]
}

/// Indices by descending score; equal scores keep their order.
fn ranked(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// The characters `start..end` of `text`.
fn chars(text: &str, start: usize, end: usize) -> String {
    text.chars().skip(start).take(end.saturating_sub(start)).collect()
}

/// A span without the white space at its edges: SentencePiece tokens carry the space before a word.
fn trimmed(text: &str, start: usize, end: usize) -> (usize, usize, String) {
    let word = chars(text, start, end);
    let left = word.chars().take_while(|c| c.is_whitespace()).count();
    let trimmed = word.trim();
    let start = start + left;
    (start, start + trimmed.chars().count(), trimmed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lose_the_space_before_them() {
        assert_eq!(trimmed("né à Paris.", 4, 10), (5, 10, "Paris".into()));
        assert_eq!(trimmed("a b", 0, 3), (0, 3, "a b".into()));
        assert_eq!(trimmed("a  ", 1, 3), (3, 3, String::new()));
    }

    #[test]
    fn sigmoid_is_logistic() {
        for x in [-40.0f32, -3.0, -0.1, 0.0, 0.1, 3.0, 40.0] {
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() < 2e-7, "{x}");
        }
    }
}
