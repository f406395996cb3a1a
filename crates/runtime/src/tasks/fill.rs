//! Masked language models: words for each mask.

use super::{Options, each, ranked, single, softmax};
use crate::answer::{Answer, Fill};
use crate::row::Row;
use crate::session::Session;
use qberta_model::{Error, Result};

/// The likeliest words for every mask of each row.
pub(super) fn fills(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let (mask, spelled) = session.tokenizer()?.mask().ok_or_else(|| {
        Error::input("tokenizer has no mask token")
            .hint("pass --raw with token ids for the logits of every token")
    })?;
    let sequences = each(rows, |row| {
        let (sequence, _) = single(session, row, options)?;
        if !sequence.ids.contains(&mask) {
            return Err(Error::input("row has no mask to fill").expected(format!("{spelled} in the text")));
        }
        Ok(sequence)
    })?;
    let masked: Vec<Vec<usize>> =
        sequences.iter().map(|s| (0..s.ids.len()).filter(|&i| s.ids[i] == mask).collect()).collect();
    let outputs = session.run_rows(&sequences, &masked)?;
    let tokenizer = session.tokenizer()?;
    let mut answers = Vec::with_capacity(rows.len());
    for ((sequence, masked), y) in sequences.iter().zip(&masked).zip(&outputs) {
        let mut masks = Vec::with_capacity(masked.len());
        for (i, &at) in masked.iter().enumerate() {
            let scores = softmax(y.row(i));
            let fill = |token: usize| -> Result<Fill> {
                let mut ids = sequence.ids.clone();
                ids[at] = token as u32;
                let text = tokenizer.decode(&[token as u32])?;
                Ok(Fill {
                    token: token as u32,
                    // Special tokens decode to nothing; their own spelling says which one it is.
                    token_str: if text.is_empty() { tokenizer.token(token as u32) } else { Some(text) },
                    score: scores[token],
                    sequence: (masked.len() == 1).then(|| tokenizer.decode(&ids)).transpose()?,
                })
            };
            masks
                .push(ranked(&scores).into_iter().take(options.top_k).map(fill).collect::<Result<Vec<_>>>()?);
        }
        answers.push(Answer::Fills { masks });
    }
    Ok(answers)
}
