//! Features: hidden states, or one pooled vector a row.

use super::{Options, each, single};
use crate::answer::Answer;
use crate::row::Row;
use crate::session::Session;
use qberta_kernels::Matrix;
use qberta_model::{Error, Result};

/// How hidden states become one vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pooling {
    /// The mean over all tokens, special tokens included (sentence-transformers' `mean`).
    Mean,
    /// The first token.
    Cls,
    /// No pooling: every token.
    None,
}

impl Pooling {
    /// Every pooling by name.
    pub const ALL: [(Pooling, &'static str); 3] =
        [(Pooling::Mean, "mean"), (Pooling::Cls, "cls"), (Pooling::None, "none")];

    /// The pooling of a sentence-transformers `1_Pooling/config.json`.
    ///
    /// Errors: malformed JSON, or a mode other than mean and CLS.
    pub fn from_sentence_transformers(bytes: &[u8]) -> Result<Pooling> {
        let at = |e: Error| e.at("1_Pooling/config.json");
        let config: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| at(Error::corrupt("settings are not JSON").found(e)))?;
        let on = |key: &str| config.get(key).and_then(|v| v.as_bool()).unwrap_or(false);
        match (on("pooling_mode_mean_tokens"), on("pooling_mode_cls_token")) {
            (true, false) => Ok(Pooling::Mean),
            (false, true) => Ok(Pooling::Cls),
            _ => Err(at(Error::unsupported("pooling mode is not supported").expected("mean or CLS alone"))),
        }
    }
}

/// Vectors of each row.
pub(super) fn vectors(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let sequences = each(rows, |row| Ok(single(session, row, options)?.0))?;
    let pooling = options.pooling.unwrap_or(session.pooling());
    Ok(session
        .run(&sequences)?
        .iter()
        .map(|y| match pooling {
            Pooling::Mean => Answer::Embedding { embedding: mean(y) },
            Pooling::Cls => Answer::Embedding { embedding: y.row(0).to_vec() },
            Pooling::None => {
                Answer::Hidden { last_hidden_state: (0..y.rows()).map(|i| y.row(i).to_vec()).collect() }
            }
        })
        .collect())
}

/// Column means, rows added in order.
fn mean(y: &Matrix) -> Vec<f32> {
    let mut sum = vec![0.0; y.cols()];
    for i in 0..y.rows() {
        for (s, &v) in sum.iter_mut().zip(y.row(i)) {
            *s += v;
        }
    }
    sum.iter().map(|s| s / y.rows() as f32).collect()
}
