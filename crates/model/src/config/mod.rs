//! `config.json` to [`Architecture`]: parsed once at the door, trusted afterwards. Whatever this version
//! cannot compute is refused here, by field name.

mod bert;
mod deberta;
mod fields;

use crate::error::{Error, Result};
use fields::Fields;
pub use qberta_kernels::Activation;
use serde_json::{Map, Value};

/// Which published encoder a checkpoint follows. Only names of tensors, embeddings and heads depend on
/// it; the forward reads the other fields of [`Architecture`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// DeBERTa v1: fused `in_proj`, no log buckets.
    DebertaV1,
    /// DeBERTa v2, v3 and mDeBERTa.
    DebertaV2,
    /// BERT and MiniLM.
    Bert,
    /// RoBERTa, XLM-R, CamemBERT.
    Roberta,
    /// DistilBERT.
    DistilBert,
    /// ELECTRA.
    Electra,
}

impl Family {
    /// The name printed to people.
    pub fn name(self) -> &'static str {
        match self {
            Family::DebertaV1 => "DeBERTa v1",
            Family::DebertaV2 => "DeBERTa v2/v3",
            Family::Bert => "BERT",
            Family::Roberta => "RoBERTa",
            Family::DistilBert => "DistilBERT",
            Family::Electra => "ELECTRA",
        }
    }

    /// The attribute under which a Hugging Face task model holds its backbone.
    pub fn prefix(self) -> &'static str {
        match self {
            Family::DebertaV1 | Family::DebertaV2 => "deberta.",
            Family::Bert => "bert.",
            Family::Roberta => "roberta.",
            Family::DistilBert => "distilbert.",
            Family::Electra => "electra.",
        }
    }
}

/// The task a model answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Hidden states, no head.
    Features,
    /// One label (or several) per sequence.
    SequenceClassification,
    /// One label per token.
    TokenClassification,
    /// Start and end of an answer in a context.
    QuestionAnswering,
    /// One of several continuations.
    MultipleChoice,
    /// A word for each masked position.
    FillMask,
}

impl Task {
    /// Every task with the name used by `--task` and in reports.
    pub const ALL: [(Task, &'static str); 6] = [
        (Task::Features, "features"),
        (Task::SequenceClassification, "sequence-classification"),
        (Task::TokenClassification, "token-classification"),
        (Task::QuestionAnswering, "question-answering"),
        (Task::MultipleChoice, "multiple-choice"),
        (Task::FillMask, "fill-mask"),
    ];

    /// The name used by `--task` and in reports.
    pub fn name(self) -> &'static str {
        Task::ALL.iter().find(|(t, _)| *t == self).map_or("features", |(_, n)| n)
    }

    /// The task called `name`, if there is one.
    pub fn parse(name: &str) -> Option<Task> {
        Task::ALL.iter().find(|(_, n)| *n == name).map(|(t, _)| *t)
    }

    /// The suffix of a Hugging Face class name that has this head.
    pub fn class_suffix(self) -> &'static str {
        match self {
            Task::Features => "Model",
            Task::SequenceClassification => "ForSequenceClassification",
            Task::TokenClassification => "ForTokenClassification",
            Task::QuestionAnswering => "ForQuestionAnswering",
            Task::MultipleChoice => "ForMultipleChoice",
            Task::FillMask => "ForMaskedLM",
        }
    }
}

/// How the outputs of a sequence classifier are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// One of `n` labels: softmax.
    Exclusive,
    /// Each label on its own, or a single score: sigmoid.
    Independent,
    /// The logit itself (`problem_type: regression`).
    Regression,
}

/// Absolute positions of an encoder that has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AbsolutePositions {
    /// Rows of the table.
    pub rows: usize,
    /// `Some(pad)` for RoBERTa's rule: position = running count of non-pad tokens + pad.
    pub after_pad: Option<u32>,
}

/// Where the linear between embedding size and hidden size sits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EmbeddingProjection {
    /// Sizes are equal, there is none.
    None,
    /// DeBERTa: before the LayerNorm, without bias.
    BeforeNorm,
    /// ELECTRA: after the LayerNorm, with bias.
    AfterNorm,
}

/// Disentangled relative attention (He et al. 2021, arXiv:2006.03654).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelativeAttention {
    /// Log buckets per direction; `None` in v1.
    pub buckets: Option<u32>,
    /// Largest distance told apart.
    pub max_distance: u32,
    /// Half the rows of the relative table.
    pub span: u32,
    /// Content-to-position scores.
    pub content_to_position: bool,
    /// Position-to-content scores.
    pub position_to_content: bool,
    /// The relative table goes through the layer's own query and key projections.
    pub shared_projections: bool,
    /// The relative table has a LayerNorm.
    pub normalized_table: bool,
}

/// The convolution of DeBERTa v2 xlarge and xxlarge, applied once after layer 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Convolution {
    /// Taps, odd.
    pub kernel: usize,
    /// Channel groups.
    pub groups: usize,
    /// Activation after bias.
    pub activation: Activation,
}

/// The task head, as far as the computation goes: `dense, activation, [norm], output`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Head {
    /// The task.
    pub task: Task,
    /// Activation of the dense layer, for tasks that have one.
    pub activation: Activation,
}

/// Everything the forward needs to know, validated. Sizes are in elements.
#[derive(Clone, PartialEq, Debug)]
pub struct Architecture {
    /// Naming family.
    pub family: Family,
    /// Hidden size `H`.
    pub hidden: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Elements per head; `heads * head_size` may differ from `hidden`.
    pub head_size: usize,
    /// Feed-forward width.
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Columns of the word table.
    pub embedding: usize,
    /// Linear between the two sizes.
    pub embedding_projection: EmbeddingProjection,
    /// Absolute positions, if added to the embeddings.
    pub positions: Option<AbsolutePositions>,
    /// Rows of the token type table, 0 for none.
    pub types: usize,
    /// Feed-forward activation.
    pub activation: Activation,
    /// LayerNorm epsilon.
    pub eps: f32,
    /// Relative attention, if any.
    pub relative: Option<RelativeAttention>,
    /// Scores are divided by `sqrt(head_size * score_terms)`.
    pub score_terms: usize,
    /// DeBERTa v1 talking heads.
    pub talking_heads: bool,
    /// Convolution after layer 0.
    pub convolution: Option<Convolution>,
    /// The head.
    pub head: Head,
    /// Label names by output index; empty when the head has none.
    pub labels: Vec<String>,
    /// How classifier outputs are read.
    pub reading: Reading,
    /// Longest input with a position of its own (`max_position_embeddings`).
    pub max_positions: usize,
}

impl Architecture {
    /// Parses a Hugging Face `config.json`. `task` overrides the head that `architectures` names.
    ///
    /// Errors: a missing field, a value of the wrong type, or a setting this version cannot compute;
    /// each names the field.
    pub fn from_config(config: &Map<String, Value>, task: Option<Task>) -> Result<Architecture> {
        let fields = Fields(config);
        let kind = fields.text("model_type")?.ok_or_else(|| {
            Error::unsupported("field is missing").at("model_type").hint(
                "config.json must name the family: deberta, deberta-v2, bert, roberta, xlm-roberta, distilbert or electra",
            )
        })?;
        let task = match task {
            Some(task) => task,
            None => fields.task()?.unwrap_or(Task::Features),
        };
        let arch = match kind {
            "deberta" => deberta::parse(&fields, Family::DebertaV1, task),
            "deberta-v2" => deberta::parse(&fields, Family::DebertaV2, task),
            "bert" => bert::parse(&fields, Family::Bert, task),
            "roberta" | "xlm-roberta" | "camembert" => bert::parse(&fields, Family::Roberta, task),
            "distilbert" => bert::parse(&fields, Family::DistilBert, task),
            "electra" => bert::parse(&fields, Family::Electra, task),
            other => Err(Error::unsupported("model family is not supported").at("model_type").found(other).hint(
                "supported: deberta (v1), deberta-v2 (v2, v3, mDeBERTa), bert, roberta, xlm-roberta, camembert, distilbert, electra",
            )),
        }?;
        fields.refuse_unsupported()?;
        Ok(arch)
    }

    /// The head named by `architectures`, or `None` when the field is absent (bare pre-trained models).
    ///
    /// Errors: a class this version has no head for.
    pub fn named_task(config: &Map<String, Value>) -> Result<Option<Task>> {
        Fields(config).task()
    }

    /// Width of attention: `heads * head_size`.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Outputs of the last linear of the head: labels, 2 for spans, 1 per choice, the vocabulary for
    /// fill-mask, 0 for features.
    pub fn outputs(&self) -> usize {
        match self.head.task {
            Task::Features => 0,
            Task::SequenceClassification | Task::TokenClassification => self.labels.len(),
            Task::QuestionAnswering => 2,
            Task::MultipleChoice => 1,
            Task::FillMask => self.vocabulary,
        }
    }

    /// The longest sequence this model can embed, or `None` when only relative positions are used.
    pub fn length_limit(&self) -> Option<usize> {
        self.positions.map(|p| match p.after_pad {
            Some(pad) => p.rows.saturating_sub(pad as usize + 1),
            None => p.rows,
        })
    }
}

#[cfg(test)]
mod tests;
