//! Findings about the projection of a masked language model and the word table it is tied to.

use super::{Finding, View, problem};
use crate::doctor::subject::Form;
use qberta_store::torch::Entry;

/// The decoder's entry, the word table's, and whether the configuration is known to tie them.
fn tie<'v>(view: &'v View<'_>) -> Option<(&'v str, Option<&'v Entry>, &'v Entry, bool)> {
    const DECODERS: [&str; 4] =
        ["cls.predictions.decoder", "lm_head.decoder", "vocab_projector", "generator_lm_head"];
    let entries = &view.subject.entries;
    let under = |module: &str| {
        entries.iter().find(|(k, _)| {
            let rest = k.find(module).map(|at| &k[at + module.len()..]);
            rest.is_some_and(|r| r == ".weight" || r.starts_with("._packed_params._packed"))
        })
    };
    let (_, word) = under("embeddings.word_embeddings")?;
    match view.base {
        Some(base) => {
            let decoder = base.decoder().filter(|_| base.tied)?;
            let name = *DECODERS.iter().find(|d| **d == decoder)?;
            Some((name, under(name).map(|e| e.1), word, true))
        }
        None => {
            let (name, entry) = DECODERS.iter().find_map(|d| Some((*d, under(d)?.1)))?;
            Some((name, Some(entry), word, false))
        }
    }
}

pub(super) fn tied_twice(view: &View<'_>) -> Option<Finding> {
    let (name, decoder, word, known) = tie(view)?;
    let line = match (decoder?, word) {
        (Entry::Tensor { tensor: d, storage: a }, Entry::Tensor { tensor: w, storage: b }) => {
            // Without a configuration only equal values betray a tie.
            if a == b || (!known && d != w) {
                return None;
            }
            if d == w {
                format!(
                    "{name}.weight and the word table are equal and stored twice: {} bytes",
                    d.bytes().len()
                )
            } else {
                let far = match (d.to_f32(), w.to_f32()) {
                    (Ok(d), Ok(w)) => d.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max),
                    _ => f32::NAN,
                };
                format!("{name}.weight differs from the word table by up to {far}, and the config ties them")
            }
        }
        (Entry::Tensor { .. }, _) => format!("{name} is float, the word table is quantized"),
        (_, Entry::Tensor { .. }) => format!("{name} is quantized, the word table is float"),
        _ => format!("{name} and the word table are quantized separately"),
    };
    problem("tied-twice", vec![line])
}

pub(super) fn tied_missing(view: &View<'_>) -> Option<Finding> {
    // A safetensors file cannot share a storage, so there the twin is left out on purpose.
    let torch = matches!(view.subject.form, Form::Torch(_));
    let (name, decoder, _, known) = tie(view).filter(|_| torch)?;
    let gone = known && decoder.is_none();
    gone.then(|| problem("tied-missing", vec![format!("{name}.weight is missing")])).flatten()
}
