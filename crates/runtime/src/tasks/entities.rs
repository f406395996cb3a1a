//! Token classification: tokens to entities with character offsets.

use super::{Options, each, ranked, single, softmax, trimmed};
use crate::answer::{Answer, Entity};
use crate::row::Row;
use crate::session::Session;
use crate::tokenize::Encoded;
use qberta_kernels::Matrix;
use qberta_model::{Error, Result};

/// How tokens become entities; the strategies of Hugging Face's token-classification pipeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aggregation {
    /// Every token with a label other than `O` on its own.
    None,
    /// Neighbouring tokens of one entity together.
    Simple,
    /// Words take the label of their first token, then as `Simple`.
    First,
    /// Words take the label with the highest mean over their tokens, then as `Simple`.
    Average,
    /// Words take the label of their surest token, then as `Simple`.
    Max,
}

impl Aggregation {
    /// Every strategy by name.
    pub const ALL: [(Aggregation, &'static str); 5] = [
        (Aggregation::None, "none"),
        (Aggregation::Simple, "simple"),
        (Aggregation::First, "first"),
        (Aggregation::Average, "average"),
        (Aggregation::Max, "max"),
    ];
}

/// Entities of each row.
pub(super) fn entities(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let encoded = each(rows, |row| match row {
        Row::Text { text, pair: None } => Ok((text, single(session, row, options)?)),
        Row::Tokens(_) => Err(Error::input("entities need the text; token ids have no character offsets")
            .hint("pass --raw for the logits of every token")),
        other => Err(super::wrong_row(session, other, "a text")),
    })?;
    let sequences: Vec<_> = encoded.iter().map(|(_, (s, _))| s.clone()).collect();
    let labels = &session.architecture().labels;
    let outputs = session.run(&sequences)?;
    Ok(encoded
        .iter()
        .zip(outputs)
        .map(|((text, (_, encoded)), y)| {
            let pieces = encoded.as_ref().map_or_else(Vec::new, |e| pieces(e, &y, options.aggregation));
            Answer::Entities { entities: spans(text, &pieces, labels, options.aggregation) }
        })
        .collect())
}

/// A token or word with the label it was given.
struct Piece {
    label: usize,
    score: f32,
    start: usize,
    end: usize,
}

/// Tokens, or words if the aggregation works on words.
fn pieces(encoded: &Encoded, y: &Matrix, aggregation: Aggregation) -> Vec<Piece> {
    let tokens: Vec<usize> = (0..encoded.ids.len()).filter(|&i| encoded.segment[i].is_some()).collect();
    let by_word = !matches!(aggregation, Aggregation::None | Aggregation::Simple);
    let groups: Vec<&[usize]> = if by_word {
        tokens.chunk_by(|&a, &b| encoded.words[a].is_some() && encoded.words[a] == encoded.words[b]).collect()
    } else {
        tokens.chunks(1).collect()
    };
    groups
        .into_iter()
        .map(|group| {
            let probabilities: Vec<Vec<f32>> = group.iter().map(|&i| softmax(y.row(i))).collect();
            let scores = match aggregation {
                Aggregation::Max => {
                    let surest = |p: &Vec<f32>| p.iter().copied().fold(f32::MIN, f32::max);
                    let mut best = &probabilities[0];
                    for p in &probabilities {
                        if surest(p) > surest(best) {
                            best = p;
                        }
                    }
                    best.clone()
                }
                Aggregation::Average => mean(&probabilities),
                _ => probabilities[0].clone(),
            };
            let label = ranked(&scores)[0];
            let (first, last) = (group[0], group[group.len() - 1]);
            Piece {
                label,
                score: scores[label],
                start: encoded.offsets[first].0,
                end: encoded.offsets[last].1,
            }
        })
        .collect()
}

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let n = rows.len() as f32;
    (0..rows[0].len()).map(|c| rows.iter().map(|r| r[c]).sum::<f32>() / n).collect()
}

/// The tag and type of a label: `B-PER` is (`B`, `PER`), `PER` is (`I`, `PER`).
fn parts(label: &str) -> (&str, &str) {
    match label.split_once('-') {
        Some((tag @ ("B" | "I"), kind)) => (tag, kind),
        _ => ("I", label),
    }
}

/// Pieces to spans: neighbours of one type together, a `B` beginning anew.
fn spans(text: &str, pieces: &[Piece], labels: &[String], aggregation: Aggregation) -> Vec<Entity> {
    let joins = |a: &Piece, b: &Piece| {
        let (_, kind) = parts(&labels[a.label]);
        let (tag, next) = parts(&labels[b.label]);
        aggregation != Aggregation::None && kind == next && tag != "B"
    };
    pieces
        .chunk_by(joins)
        .filter(|group| labels[group[0].label] != "O")
        .filter_map(|group| {
            let (start, end, word) = trimmed(text, group[0].start, group[group.len() - 1].end);
            let label = &labels[group[0].label];
            let entity = if aggregation == Aggregation::None { label } else { parts(label).1 };
            let score = group.iter().map(|p| p.score).sum::<f32>() / group.len() as f32;
            // A piece of nothing but white space has no text to show.
            (end > start).then(|| Entity { entity: entity.to_owned(), score, word, start, end })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(aggregation: Aggregation, tags: &[(usize, usize, usize)]) -> Vec<(String, String)> {
        let labels: Vec<String> = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"].map(str::to_owned).into();
        let pieces: Vec<Piece> =
            tags.iter().map(|&(label, start, end)| Piece { label, score: 0.5, start, end }).collect();
        let text = "Ada Lovelace met Byron in London";
        spans(text, &pieces, &labels, aggregation).into_iter().map(|e| (e.entity, e.word)).collect()
    }

    #[test]
    fn neighbours_join_and_a_b_begins_anew() {
        let tags = [(1, 0, 3), (2, 3, 12), (0, 12, 16), (1, 16, 22), (1, 22, 25), (4, 25, 32)];
        let found = run(Aggregation::Simple, &tags);
        let expected = [("PER", "Ada Lovelace"), ("PER", "Byron"), ("PER", "in"), ("LOC", "London")];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(run(Aggregation::None, &tags).len(), 5);
        assert_eq!(run(Aggregation::None, &tags)[1].0, "I-PER");
    }

    #[test]
    fn labels_without_a_tag_join_too() {
        let found = run(Aggregation::Simple, &[(5, 0, 3), (5, 3, 12)]);
        assert_eq!(found, [("MISC".to_owned(), "Ada Lovelace".to_owned())]);
    }
}
