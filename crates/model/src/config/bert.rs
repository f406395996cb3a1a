//! BERT, RoBERTa, DistilBERT and ELECTRA: the same encoder with plain attention, as rows of one table.

use super::fields::Fields;
use super::*;

/// Field names of a family; DistilBERT has its own vocabulary.
struct Names {
    hidden: &'static str,
    layers: &'static str,
    heads: &'static str,
    intermediate: &'static str,
    activation: &'static str,
}

const BERT: Names = Names {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate: "intermediate_size",
    activation: "hidden_act",
};
const DISTIL: Names = Names {
    hidden: "dim",
    layers: "n_layers",
    heads: "n_heads",
    intermediate: "hidden_dim",
    activation: "activation",
};

pub(super) fn parse(f: &Fields<'_>, family: Family, task: Task) -> Result<Architecture> {
    let names = if family == Family::DistilBert { &DISTIL } else { &BERT };
    let hidden = f.size(names.hidden, None, 1 << 16)?;
    let heads = f.size(names.heads, None, 1024)?;
    if !hidden.is_multiple_of(heads) {
        return Err(Error::unsupported("heads do not divide the hidden size")
            .at(names.heads)
            .expected(format!("a divisor of {hidden}"))
            .found(heads));
    }
    let embedding = match family {
        Family::Electra => f.size("embedding_size", Some(128), 1 << 16)?,
        _ => hidden,
    };
    let after_pad = match family {
        Family::Roberta => Some(pad_id(f)?),
        _ => None,
    };
    let rows = f.size("max_position_embeddings", Some(512), 1 << 20)?;
    let activation = f.activation(names.activation, Activation::Gelu)?;
    let labels = labels(f, task)?;
    Ok(Architecture {
        family,
        hidden,
        layers: f.size(names.layers, None, 1024)?,
        heads,
        head_size: hidden / heads,
        intermediate: f.size(names.intermediate, None, 1 << 16)?,
        vocabulary: f.size("vocab_size", None, 1 << 23)?,
        embedding,
        embedding_projection: if embedding == hidden {
            EmbeddingProjection::None
        } else {
            EmbeddingProjection::AfterNorm
        },
        positions: Some(AbsolutePositions { rows, after_pad }),
        types: match family {
            Family::DistilBert => 0,
            _ => f.size("type_vocab_size", Some(2), 1 << 16)?,
        },
        activation,
        eps: match family {
            Family::DistilBert => 1e-12, // hard-coded in the original
            _ => f.eps("layer_norm_eps", 1e-12)?,
        },
        relative: None,
        score_terms: 1,
        talking_heads: false,
        convolution: None,
        head: Head { task, activation: head_activation(family, task, activation) },
        reading: f.reading(labels.len())?,
        labels,
        max_positions: rows,
    })
}

/// RoBERTa counts positions from the padding id.
fn pad_id(f: &Fields<'_>) -> Result<u32> {
    match f.integer("pad_token_id")? {
        None => Ok(1),
        Some(p) => u32::try_from(p).ok().filter(|p| *p < 1 << 23).ok_or_else(|| {
            Error::unsupported("padding id is out of range")
                .at("pad_token_id")
                .found(p)
                .expected("a token id")
        }),
    }
}

/// The activation between the head's dense layer and its output, which most families fix in code.
fn head_activation(family: Family, task: Task, hidden_act: Activation) -> Activation {
    match (family, task) {
        (Family::Roberta | Family::Electra, Task::FillMask) => Activation::Gelu,
        (_, Task::FillMask) => hidden_act,
        (Family::DistilBert, _) => Activation::Relu,
        (Family::Electra, _) => Activation::Gelu,
        _ => Activation::Tanh,
    }
}

/// Label names for the tasks that have labels.
pub(super) fn labels(f: &Fields<'_>, task: Task) -> Result<Vec<String>> {
    match task {
        Task::SequenceClassification | Task::TokenClassification => f.labels(),
        _ => Ok(Vec::new()),
    }
}
