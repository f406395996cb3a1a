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

/// What a model directory says about its vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// How hidden states become one.
    pub pooling: Pooling,
    /// Whether it is brought to length 1.
    pub normalized: bool,
    /// A further module of sentence-transformers that is not run here.
    pub foreign: Option<String>,
}

impl Default for Vectors {
    fn default() -> Vectors {
        Vectors { pooling: Pooling::Mean, normalized: false, foreign: None }
    }
}

impl Vectors {
    /// Takes in a sentence-transformers `modules.json`.
    ///
    /// Errors: malformed JSON.
    pub fn modules(&mut self, bytes: &[u8]) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Module {
            #[serde(rename = "type")]
            kind: String,
        }
        let modules: Vec<Module> = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt("settings are not JSON").at("modules.json").found(e))?;
        for Module { kind } in modules {
            match kind.rsplit('.').next() {
                Some("Transformer" | "Pooling") => {}
                Some("Normalize") => self.normalized = true,
                _ => self.foreign = Some(kind),
            }
        }
        Ok(())
    }

    /// `vector` as the modules after the pooling leave it (torch's `normalize`).
    fn finished(&self, mut vector: Vec<f32>) -> Vec<f32> {
        if self.normalized {
            let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
            vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
        vector
    }
}

/// Vectors of each row.
pub(super) fn vectors(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let sequences = each(rows, |row| Ok(single(session, row, options)?.0))?;
    let of_model = session.vectors();
    let pooling = options.pooling.unwrap_or(of_model.pooling);
    if let (Some(module), Pooling::Mean | Pooling::Cls) = (&of_model.foreign, pooling) {
        return Err(Error::unsupported("a module after the pooling is not run")
            .at("modules.json")
            .expected("Transformer, Pooling and Normalize")
            .found(module)
            .hint("--pooling none or --raw gives what the encoder computes"));
    }
    Ok(session
        .run(&sequences)?
        .iter()
        .map(|y| match pooling {
            Pooling::Mean => Answer::Embedding { embedding: of_model.finished(mean(y)) },
            Pooling::Cls => Answer::Embedding { embedding: of_model.finished(y.row(0).to_vec()) },
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
