//! What one model answered to an exam.

use super::{Exam, Problem, Truth};
use crate::answer::{Answer, RawAnswer};
use crate::dataset::{Example, Target};
use crate::row::Row;
use crate::session::Session;
use crate::tasks::Options;
use qberta_kernels::Matrix;
use qberta_model::{Error, Result, Sequence};
use std::ops::Range;
use std::time::Instant;

/// Answers of one model.
#[derive(Clone, Debug)]
pub struct Trial {
    /// One for each example.
    pub outputs: Vec<Output>,
    /// Time for tokens and forward together.
    pub seconds: f64,
    /// Texts that were cut at the length limit.
    pub cut: usize,
}

/// The answer to one example.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The logits of a classifier, a score, or one of each choice.
    Logits(Vec<f32>),
    /// The label of each word (none where the text was cut before it), with its logits.
    Tags(Vec<(Option<usize>, Vec<f32>)>),
    /// The span that was found.
    Answer(String),
}

/// The first of the largest.
pub(super) fn best(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// Examples run between two reports of progress.
const CHUNK: usize = 256;

impl Exam {
    /// Lets a model answer. `step` is told how many examples were answered since it was last called.
    ///
    /// Errors: an example that the model cannot read, named by its line.
    pub fn run(&self, session: &Session, options: &Options, step: &mut dyn FnMut(usize)) -> Result<Trial> {
        let mut options = options.clone();
        options.no_answer |= self.truths.iter().any(|t| matches!(t, Truth::Answers(a) if a.is_empty()));
        let before = session.texts_cut();
        let mut trial = Trial { outputs: Vec::with_capacity(self.rows()), seconds: 0.0, cut: 0 };
        for chunk in self.examples.chunks(CHUNK) {
            let begin = Instant::now();
            match self.answer(session, chunk, &options) {
                Ok(outputs) => trial.outputs.extend(outputs),
                // Again one by one, so that the error names the line.
                Err(_) => {
                    for example in chunk {
                        let one = self.answer(session, std::slice::from_ref(example), &options);
                        trial.outputs.extend(one.map_err(|e| e.at(&example.place))?);
                    }
                }
            }
            trial.seconds += begin.elapsed().as_secs_f64();
            step(chunk.len());
        }
        trial.cut = session.texts_cut() - before;
        Ok(trial)
    }

    fn answer(&self, session: &Session, examples: &[Example], options: &Options) -> Result<Vec<Output>> {
        let rows = || examples.iter().map(|e| e.row.clone()).collect::<Vec<Row>>();
        match self.problem {
            Problem::Tags => tags(session, examples, options),
            Problem::Answers => Ok(session
                .answer(&rows(), options)?
                .into_iter()
                .map(|answer| match answer {
                    Answer::Span(found) => Output::Answer(found.answer),
                    _ => Output::Answer(String::new()),
                })
                .collect()),
            _ => session
                .raw(&rows(), options)?
                .into_iter()
                .map(|raw| match raw {
                    RawAnswer::Logits { logits } => Ok(Output::Logits(logits)),
                    _ => Err(Error::unsupported("the model gives no scores for this task")),
                })
                .collect(),
        }
    }
}

/// The label of each word is that of its first token, as models are trained.
fn tags(session: &Session, examples: &[Example], options: &Options) -> Result<Vec<Output>> {
    let mut sequences = Vec::with_capacity(examples.len());
    let mut firsts: Vec<Vec<Option<usize>>> = Vec::with_capacity(examples.len());
    for example in examples {
        let (Row::Text { text, .. }, Target::Tags { words, .. }) = (&example.row, &example.target) else {
            return Err(Error::input("example has no words with tags"));
        };
        let encoded = session.encode(text, None, options)?;
        firsts.push(words.iter().map(|word| first(word, &encoded.offsets, &encoded.segment)).collect());
        sequences.push(Sequence { ids: encoded.ids, types: encoded.type_ids });
    }
    let outputs = session.run(&sequences)?;
    let word = |y: &Matrix, token: &Option<usize>| match token {
        Some(t) => (Some(best(y.row(*t))), y.row(*t).to_vec()),
        None => (None, Vec::new()),
    };
    Ok(firsts
        .iter()
        .zip(&outputs)
        .map(|(tokens, y)| Output::Tags(tokens.iter().map(|t| word(y, t)).collect()))
        .collect())
}

/// The first token of a word. A token may begin with the space before the word, or be that space.
fn first(word: &Range<usize>, offsets: &[(usize, usize)], segment: &[Option<u8>]) -> Option<usize> {
    let start = word.start.saturating_sub(1);
    let inside = |&(a, b): &(usize, usize)| a < word.end && b > start;
    offsets.iter().zip(segment).position(|(span, segment)| segment.is_some() && inside(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_of_a_word_may_hold_the_space_before_it() {
        // [CLS] Ada| Love|lace| |x| and [SEP], in "Ada Lovelace x".
        let offsets = [(0, 0), (0, 3), (3, 8), (8, 12), (12, 13), (13, 14), (0, 0)];
        let segment = [None, Some(0), Some(0), Some(0), Some(0), Some(0), None];
        let found = [0..3, 4..12, 13..14, 15..16].map(|word| first(&word, &offsets, &segment));
        assert_eq!(found, [Some(1), Some(2), Some(4), None]);
    }
}
