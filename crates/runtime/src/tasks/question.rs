//! Extractive question answering: windows over long contexts, the best span over all of them.

use super::{Options, each, sequence, softmax, trimmed, wrong_row};
use crate::answer::{Answer, Found};
use crate::row::Row;
use crate::session::Session;
use crate::tokenize::Encoded;
use qberta_kernels::Matrix;
use qberta_model::Result;

/// Windows are no longer than this unless `max_length` says otherwise, as in Hugging Face's pipeline.
const WINDOW: usize = 384;

/// A span of one window: character offsets in the context and a score.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Candidate {
    start: usize,
    end: usize,
    score: f32,
}

/// The best answer of each row.
pub(super) fn answers(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let limit = session
        .length_limit(options.max_length)
        .map_or(WINDOW, |l| l.min(options.max_length.unwrap_or(WINDOW)));
    let windows: Vec<(&str, Vec<Encoded>)> = each(rows, |row| {
        let Row::Question { question, context } = row else {
            return Err(wrong_row(session, row, "a question with a context (token ids: pass --raw)"));
        };
        // Half a window at most, or windows would stop moving forward.
        let stride = options.stride.min(limit / 2);
        Ok((context.as_str(), session.tokenizer()?.windows(question, context, limit, stride)?))
    })?;
    let sequences: Vec<_> = windows.iter().flat_map(|(_, w)| w.iter().map(sequence)).collect();
    let outputs = session.run(&sequences)?;
    let mut outputs = outputs.iter();
    Ok(windows
        .iter()
        .map(|(context, windows)| {
            let mut none = f32::MAX;
            let mut found: Vec<Candidate> = Vec::new();
            for (window, y) in windows.iter().zip(&mut outputs) {
                let (candidates, null) = spans(window, y, options);
                none = none.min(null);
                found.extend(candidates);
            }
            Answer::Span(best(context, found, none, options))
        })
        .collect())
}

/// The best spans of one window, and the score of no answer (both ends at the first token).
fn spans(window: &Encoded, y: &Matrix, options: &Options) -> (Vec<Candidate>, f32) {
    // The first token stands for "no answer"; the question and other special tokens cannot answer.
    let allowed = |i: usize| i == 0 || window.segment[i] == Some(1);
    let column = |c: usize| -> Vec<f32> {
        let masked: Vec<f32> =
            (0..y.rows()).map(|i| if allowed(i) { y.row(i)[c] } else { -10000.0 }).collect();
        softmax(&masked)
    };
    let (start, end) = (column(0), column(1));
    let mut found = Vec::new();
    for i in (1..y.rows()).filter(|&i| allowed(i)) {
        for j in (i..y.rows().min(i + options.max_answer)).filter(|&j| allowed(j)) {
            let score = start[i] * end[j];
            found.push(Candidate { start: window.offsets[i].0, end: window.offsets[j].1, score });
        }
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(options.top_k.max(1));
    (found, start[0] * end[0])
}

/// The best candidates as text; the same span from two windows counts once.
fn best(context: &str, mut found: Vec<Candidate>, none: f32, options: &Options) -> Found {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut answers: Vec<Found> = Vec::new();
    for c in found {
        let (start, end, answer) = trimmed(context, c.start, c.end);
        if !answers.iter().any(|a| (a.start, a.end) == (start, end)) {
            answers.push(Found { answer, score: c.score, start, end, others: Vec::new() });
        }
    }
    let empty = |score| Found { answer: String::new(), score, start: 0, end: 0, others: Vec::new() };
    if answers.is_empty() {
        return empty(if none == f32::MAX { 0.0 } else { none });
    }
    if options.no_answer {
        let place = answers.iter().position(|a| a.score < none).unwrap_or(answers.len());
        answers.insert(place, empty(none));
    }
    answers.truncate(options.top_k.max(1));
    let mut answers = answers.into_iter();
    match answers.next() {
        Some(first) => Found { others: answers.collect(), ..first },
        None => empty(none),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_span_of_two_windows_counts_once() {
        let options = Options { top_k: 3, ..Options::standard() };
        let c = |start, end, score| Candidate { start, end, score };
        let found =
            best("He was born in Rome.", vec![c(14, 19, 0.4), c(14, 19, 0.6), c(0, 2, 0.1)], 0.0, &options);
        assert_eq!((found.answer.as_str(), found.score, found.start, found.end), ("Rome", 0.6, 15, 19));
        assert_eq!(found.others.len(), 1);
    }

    #[test]
    fn no_answer_wins_only_when_allowed() {
        let c = Candidate { start: 0, end: 2, score: 0.2 };
        let plain = best("He was", vec![c], 0.9, &Options::standard());
        assert_eq!(plain.answer, "He");
        let allowed = best("He was", vec![c], 0.9, &Options { no_answer: true, ..Options::standard() });
        assert_eq!((allowed.answer.as_str(), allowed.score), ("", 0.9));
    }
}
