//! The untouched numbers of each row: one sequence, no windows, no pooling.

use super::{Options, single, wrong_row};
use crate::answer::RawAnswer;
use crate::row::Row;
use crate::session::Session;
use qberta_kernels::Matrix;
use qberta_model::{Result, Sequence, Task};

pub(super) fn raw(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<RawAnswer>> {
    let task = session.architecture().head.task;
    if task == Task::MultipleChoice {
        let groups = super::each(rows, |row| choice_sequences(session, row, options))?;
        let outputs = session.run(&groups.concat())?;
        let mut outputs = outputs.iter().map(|y| y.row(0)[0]);
        let take = |n: usize, values: &mut dyn Iterator<Item = f32>| values.take(n).collect();
        return Ok(groups
            .iter()
            .map(|g| RawAnswer::Logits { logits: take(g.len(), &mut outputs) })
            .collect());
    }
    let sequences = super::each(rows, |row| Ok(single(session, row, options)?.0))?;
    Ok(session.run(&sequences)?.iter().map(|y| shaped(task, y)).collect())
}

fn shaped(task: Task, y: &Matrix) -> RawAnswer {
    let rows = || (0..y.rows()).map(|i| y.row(i).to_vec()).collect();
    let column = |c: usize| (0..y.rows()).map(|i| y.row(i)[c]).collect();
    match task {
        Task::SequenceClassification | Task::MultipleChoice => {
            RawAnswer::Logits { logits: y.row(0).to_vec() }
        }
        Task::TokenClassification | Task::FillMask => RawAnswer::TokenLogits { logits: rows() },
        Task::QuestionAnswering => RawAnswer::SpanLogits { start_logits: column(0), end_logits: column(1) },
        Task::Features => RawAnswer::Hidden { last_hidden_state: rows() },
    }
}

/// One sequence per choice.
pub(super) fn choice_sequences(session: &Session, row: &Row, options: &Options) -> Result<Vec<Sequence>> {
    match row {
        Row::TokenChoices(all) if !all.is_empty() => Ok(all.clone()),
        Row::Choices { text, choices } if !choices.is_empty() => choices
            .iter()
            .map(|choice| Ok(super::sequence(&session.encode(text, Some(choice), options)?)))
            .collect(),
        other => Err(wrong_row(session, other, "a text with at least one choice")),
    }
}
