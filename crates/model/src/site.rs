//! Site: the key of every plan, statistic, report and weight. One name per call of the network that can
//! be quantized, observed or replaced on its own.

use std::fmt;

/// Where in the network something happens. `Ord` follows the order of computation.
///
/// Call sites, not modules: DeBERTa v3 applies one `key_proj` to hidden states and to the relative
/// table, and those are two sites ([`Slot::Key`], [`Slot::PositionKey`]) with different inputs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Site {
    /// Word embedding table, `[vocabulary, embedding]`.
    WordTable,
    /// Absolute position table.
    PositionTable,
    /// Token type table.
    TypeTable,
    /// LayerNorm of the embedding sum.
    EmbeddingNorm,
    /// Linear from embedding size to hidden size.
    EmbeddingProjection,
    /// Relative position table, `[2 * span, hidden]`.
    RelativeTable,
    /// LayerNorm of the relative table.
    RelativeNorm,
    /// Inside encoder layer `.0`.
    Layer(u16, Slot),
    /// The convolution after layer 0, as a linear over `kernel * hidden` inputs.
    Conv,
    /// LayerNorm after the convolution.
    ConvNorm,
    /// In the task head.
    Head(HeadSlot),
}

/// A site inside one encoder layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
    /// Query projection of hidden states.
    Query,
    /// Key projection of hidden states.
    Key,
    /// Value projection of hidden states.
    Value,
    /// Key projection of the relative table (content to position).
    PositionKey,
    /// Query projection of the relative table (position to content).
    PositionQuery,
    /// Products of queries with keys and with projected positions.
    Scores,
    /// Products of attention weights with values.
    Context,
    /// Projection of the attention context.
    AttentionOutput,
    /// LayerNorm after attention.
    AttentionNorm,
    /// First feed-forward linear.
    FfnUp,
    /// Second feed-forward linear.
    FfnDown,
    /// LayerNorm after the feed-forward block.
    FfnNorm,
}

/// A site in the task head.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HeadSlot {
    /// The dense layer before the output (pooler, transform).
    Dense,
    /// LayerNorm of a masked-LM transform.
    Norm,
    /// The last linear: classifier, span or vocabulary projection.
    Output,
}

impl Site {
    /// The site of `slot` in layer `layer`.
    pub fn layer(layer: usize, slot: Slot) -> Site {
        Site::Layer(layer as u16, slot)
    }
}

impl Slot {
    fn name(self) -> &'static str {
        match self {
            Slot::Query => "query",
            Slot::Key => "key",
            Slot::Value => "value",
            Slot::PositionKey => "position_key",
            Slot::PositionQuery => "position_query",
            Slot::Scores => "attention_scores",
            Slot::Context => "attention_context",
            Slot::AttentionOutput => "attention_output",
            Slot::AttentionNorm => "attention_norm",
            Slot::FfnUp => "ffn_up",
            Slot::FfnDown => "ffn_down",
            Slot::FfnNorm => "ffn_norm",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::WordTable => f.write_str("embedding.word"),
            Site::PositionTable => f.write_str("embedding.position"),
            Site::TypeTable => f.write_str("embedding.type"),
            Site::EmbeddingNorm => f.write_str("embedding.norm"),
            Site::EmbeddingProjection => f.write_str("embedding.projection"),
            Site::RelativeTable => f.write_str("relative.table"),
            Site::RelativeNorm => f.write_str("relative.norm"),
            Site::Layer(n, slot) => write!(f, "layer.{n}.{}", slot.name()),
            Site::Conv => f.write_str("conv"),
            Site::ConvNorm => f.write_str("conv.norm"),
            Site::Head(HeadSlot::Dense) => f.write_str("head.dense"),
            Site::Head(HeadSlot::Norm) => f.write_str("head.norm"),
            Site::Head(HeadSlot::Output) => f.write_str("head.output"),
        }
    }
}
