//! What comes out: one JSON object a row. Floats are written with the fewest digits that read back to
//! the same f32 bits.

use serde::Serialize;

/// The answer of a task to one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The best label of a classifier, and the runners-up when more than one was asked for.
    Label {
        /// The label with the highest score.
        label: String,
        /// Its probability.
        score: f32,
        /// The best labels in order, itself included.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        top: Vec<Scored>,
    },
    /// Independent labels, best first (multi-label and zero-shot).
    Labels {
        /// Each label with its own probability.
        labels: Vec<Scored>,
    },
    /// A regression score.
    Score {
        /// The logit.
        score: f32,
    },
    /// Spans of a token classifier.
    Entities {
        /// In order of position.
        entities: Vec<Entity>,
    },
    /// The best answer span of a question.
    Span(Found),
    /// Words for each mask, best first; one list per mask.
    Fills {
        /// One list per `[MASK]`, in order.
        masks: Vec<Vec<Fill>>,
    },
    /// The best of several choices.
    Choice {
        /// Its index.
        choice: usize,
        /// Its probability.
        score: f32,
        /// Probability of each choice.
        scores: Vec<f32>,
    },
    /// A pooled vector.
    Embedding {
        /// `[hidden]`.
        embedding: Vec<f32>,
    },
    /// Hidden states of every token.
    Hidden {
        /// `[tokens][hidden]`.
        last_hidden_state: Vec<Vec<f32>>,
    },
}

/// A label with its probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// The label.
    pub label: String,
    /// Its probability.
    pub score: f32,
}

/// A span of text with a label. `start` and `end` are character offsets, end exclusive.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entity {
    /// The label, without its `B-` or `I-` when tokens were aggregated.
    pub entity: String,
    /// Probability: of the token, or the mean (or as the aggregation says) over the span.
    pub score: f32,
    /// The text of the span.
    pub word: String,
    /// First character.
    pub start: usize,
    /// One past the last character.
    pub end: usize,
}

/// An answer found in a context. `start` and `end` are character offsets, end exclusive.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The text of the span; empty when no answer is the best answer.
    pub answer: String,
    /// Probability of start times probability of end.
    pub score: f32,
    /// First character.
    pub start: usize,
    /// One past the last character.
    pub end: usize,
    /// Further answers, best first, when more than one was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Found>,
}

/// A word for a mask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fill {
    /// Its id.
    pub token: u32,
    /// Its text; absent for ids without a token (spare rows of the vocabulary).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_str: Option<String>,
    /// Its probability.
    pub score: f32,
    /// The whole text with the mask filled, when it is the only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<String>,
}

/// The untouched numbers of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum RawAnswer {
    /// One score per label or choice.
    Logits {
        /// `[outputs]`.
        logits: Vec<f32>,
    },
    /// Scores of every token.
    TokenLogits {
        /// `[tokens][outputs]`.
        logits: Vec<Vec<f32>>,
    },
    /// Start and end scores of every token.
    SpanLogits {
        /// `[tokens]`.
        start_logits: Vec<f32>,
        /// `[tokens]`.
        end_logits: Vec<f32>,
    },
    /// Hidden states of every token.
    Hidden {
        /// `[tokens][hidden]`.
        last_hidden_state: Vec<Vec<f32>>,
    },
}

impl RawAnswer {
    /// Every number, row by row (start before end), for comparison.
    pub fn values(&self) -> Vec<f32> {
        match self {
            RawAnswer::Logits { logits } => logits.clone(),
            RawAnswer::TokenLogits { logits: rows } | RawAnswer::Hidden { last_hidden_state: rows } => {
                rows.concat()
            }
            RawAnswer::SpanLogits { start_logits, end_logits } => [&start_logits[..], end_logits].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_floats_read_back_to_the_same_bits() {
        let mut x = 0x0000_0001u32;
        for _ in 0..20_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(x);
            if !value.is_finite() {
                continue;
            }
            let text = serde_json::to_string(&RawAnswer::Logits { logits: vec![value] }).unwrap();
            let back: serde_json::Value = serde_json::from_str(&text).unwrap();
            let read = back["logits"][0].as_f64().unwrap() as f32;
            assert_eq!(read.to_bits(), value.to_bits(), "{text}");
        }
    }
}
