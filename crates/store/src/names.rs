//! Names as found to names as Hugging Face writes them today: wrapper prefixes, bare encoders, `gamma`
//! and `beta`, Microsoft's language-model head. And the reason why a tensor is left out.

use crate::int4::PACKED;
use crate::layout::backbone_prefix;
use crate::tensor::Tensor;
use qberta_model::{Architecture, Error, Family, Result, Task};
use std::collections::BTreeMap;

const WORD_TABLE: &str = "embeddings.word_embeddings.weight";

/// Marks a legacy head beside Microsoft's own, which is the trained one (transformers #15216).
const SUPERSEDED: &str = "superseded.";

/// Renames every tensor to its present-day name under the head of `arch`.
///
/// Errors: no word table, more than one, or two tensors that come to the same name.
pub fn canonical(arch: &Architecture, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let table = |n: &str| ends_in_module(n.strip_suffix(PACKED).unwrap_or(n), WORD_TABLE);
    let found: Vec<&str> = tensors.keys().map(String::as_str).filter(|n| table(n)).collect();
    let word = match found[..] {
        [one] => one,
        [] => {
            return Err(Error::corrupt("checkpoint has no word table")
                .expected(format!("a tensor *{WORD_TABLE}"))
                .hint("is this an encoder checkpoint of the family that config.json names?"));
        }
        _ => {
            return Err(Error::unsupported("checkpoint holds more than one encoder").found(found.join(", ")));
        }
    };
    let word = word.strip_suffix(PACKED).unwrap_or(word);
    let prefix = word[..word.len() - WORD_TABLE.len()].to_owned();
    // `module.deberta.` is the backbone under a wrapper: the head's names carry `module.` alone.
    let wrapper = prefix.strip_suffix(arch.family.prefix()).unwrap_or("").to_owned();
    let to = backbone_prefix(arch);
    let microsoft =
        arch.head.task == Task::FillMask && tensors.keys().any(|n| n.contains("lm_predictions.lm_head."));
    let mut renamed = BTreeMap::new();
    for (name, tensor) in tensors {
        let mut new = rename(arch, &name, &prefix, &wrapper, to);
        if microsoft && new.starts_with("cls.") {
            new = format!("{SUPERSEDED}{new}");
        }
        let new = modern(arch, &new);
        if renamed.insert(new.clone(), tensor).is_some() {
            return Err(Error::corrupt("two tensors have one meaning").at(name).found(new));
        }
    }
    Ok(renamed)
}

fn ends_in_module(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn rename(arch: &Architecture, name: &str, prefix: &str, wrapper: &str, to: &str) -> String {
    if prefix.is_empty() {
        // A bare encoder: only the encoder's own parts move under the head's attribute.
        let parts: &[&str] = match arch.family {
            Family::DebertaV1 | Family::DebertaV2 => &["embeddings.", "encoder."],
            Family::DistilBert => &["embeddings.", "transformer."],
            _ => &["embeddings.", "embeddings_project.", "encoder.", "pooler."],
        };
        if parts.iter().any(|p| name.starts_with(p)) {
            return format!("{to}{name}");
        }
    } else if let Some(rest) = name.strip_prefix(prefix) {
        return format!("{to}{rest}");
    }
    name.strip_prefix(wrapper).unwrap_or(name).to_owned()
}

/// `gamma`/`beta` of old exports, and the language-model head as Microsoft stores it.
fn modern(arch: &Architecture, name: &str) -> String {
    if let Some(base) = name.strip_suffix(".gamma") {
        return format!("{base}.weight");
    }
    if let Some(base) = name.strip_suffix(".beta") {
        return format!("{base}.bias");
    }
    if arch.head.task == Task::FillMask
        && let Some(part) = name.strip_prefix("lm_predictions.lm_head.")
    {
        return match part {
            "bias" => "cls.predictions.bias".to_owned(),
            _ => format!("cls.predictions.transform.{part}"),
        };
    }
    name.to_owned()
}

/// Why no part of `arch` reads tensor `name`.
pub fn reason_to_ignore(arch: &Architecture, name: &str) -> String {
    let after = name.strip_prefix(backbone_prefix(arch)).unwrap_or(name);
    let starts = |list: &[&str]| list.iter().any(|p| after.starts_with(p) || name.starts_with(p));
    let task = arch.head.task.name();
    if name.starts_with(SUPERSEDED) {
        "the checkpoint's own lm_predictions head is used instead".into()
    } else if name.ends_with("position_ids") || name.ends_with("embeddings.token_type_ids") {
        "a buffer of running numbers, computed when needed".into()
    } else if after.starts_with("embeddings.position_embeddings") {
        "position_biased_input is false: positions enter through relative attention".into()
    } else if after.starts_with("embeddings.token_type_embeddings") {
        "type_vocab_size is 0".into()
    } else if name.contains(".pos_proj.")
        || name.contains(".pos_key_proj.")
        || name.contains(".pos_query_proj.")
        || name.contains(".pos_q_proj.")
    {
        match arch.relative {
            Some(r) if r.shared_projections => {
                "share_att_key is true: positions use the query and key projections".into()
            }
            Some(_) => "pos_att_type does not list this term".into(),
            None => "relative_attention is false".into(),
        }
    } else if after.starts_with("encoder.rel_embeddings") {
        "relative_attention is false".into()
    } else if after.starts_with("encoder.LayerNorm") {
        "norm_rel_ebd is none".into()
    } else if after.starts_with("encoder.conv") {
        "conv_kernel_size is 0".into()
    } else if starts(&[
        "lm_predictions.",
        "mask_predictions.",
        "cls.",
        "lm_head.",
        "generator_",
        "discriminator_",
        "vocab_",
    ]) {
        format!("a pre-training head; the task is {task}")
    } else if starts(&["pooler.", "classifier.", "pre_classifier.", "qa_outputs.", "sequence_summary."]) {
        format!("a head that {task} does not use")
    } else {
        format!("unknown to {} for {task}", arch.family.name())
    }
}
