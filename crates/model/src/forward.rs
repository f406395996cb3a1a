//! THE forward. Nothing else says what the network computes: float, int8, mixed, observed,
//! fake-quantized and trained models all run this page, each through its own [`Engine`].
//!
//! DeBERTa v1 is folded to v2's form at load, BERT and its relatives are rows of [`Architecture`], so
//! there is one path. Post-LayerNorm throughout; masks do not exist because batches are ragged.

use crate::batch::Batch;
use crate::config::{Architecture, EmbeddingProjection, Task};
use crate::engine::{Engine, Rows};
use crate::site::{HeadSlot, Site, Slot};

/// The model's answer to `batch`.
///
/// Sequence classification and multiple choice: `[sequences, outputs]`. Token classification, question
/// answering and fill-mask: `[tokens, outputs]`. Features: `[tokens, hidden]`.
pub fn forward<E: Engine>(arch: &Architecture, engine: &mut E, batch: &Batch) -> E::Value {
    match arch.head.task {
        Task::SequenceClassification | Task::MultipleChoice => {
            let x = encode(arch, engine, batch, Rows::First);
            head(arch, engine, x)
        }
        _ => {
            let x = encode(arch, engine, batch, Rows::All);
            head(arch, engine, x)
        }
    }
}

/// The answer for some token rows of `batch` only, for the tasks that answer per token.
pub fn forward_rows<E: Engine>(
    arch: &Architecture,
    engine: &mut E,
    batch: &Batch,
    rows: &[usize],
) -> E::Value {
    let x = encode(arch, engine, batch, Rows::All);
    let picked = engine.pick(&x, rows);
    head(arch, engine, picked)
}

/// The task head on hidden states `x`.
pub fn head<E: Engine>(arch: &Architecture, engine: &mut E, x: E::Value) -> E::Value {
    let (dense, norm, output) =
        (Site::Head(HeadSlot::Dense), Site::Head(HeadSlot::Norm), Site::Head(HeadSlot::Output));
    match arch.head.task {
        Task::Features => x,
        Task::TokenClassification | Task::QuestionAnswering => engine.linear(output, &x),
        Task::SequenceClassification | Task::MultipleChoice => {
            let pooled = engine.linear_activate(dense, arch.head.activation, &x);
            engine.linear(output, &pooled)
        }
        Task::FillMask => {
            let x = engine.linear_activate(dense, arch.head.activation, &x);
            let x = engine.norm(norm, x);
            engine.linear(output, &x)
        }
    }
}

/// Last hidden states of `batch`: `[tokens, hidden]`, or the first row of each sequence.
pub fn encode<E: Engine>(arch: &Architecture, engine: &mut E, batch: &Batch, rows: Rows) -> E::Value {
    let mut x = embed(arch, engine, batch);
    for layer in 0..arch.layers {
        let convolved = layer == 0 && arch.convolution.is_some();
        // Only the last layer may leave rows out: every earlier row is a key of some later one.
        let wanted = if layer + 1 == arch.layers && !convolved { rows } else { Rows::All };
        let y = block(arch, engine, layer, &x, batch, wanted);
        x = if convolved { convolve(arch, engine, &x, y, batch) } else { y };
    }
    if rows == Rows::First && arch.layers == 1 && arch.convolution.is_some() {
        x = engine.pick(&x, &batch.first_rows());
    }
    x
}

/// Word, position and type rows, the size projection, LayerNorm: `[tokens, hidden]`.
fn embed<E: Engine>(arch: &Architecture, engine: &mut E, batch: &Batch) -> E::Value {
    let mut x = engine.lookup(Site::WordTable, batch.ids());
    if arch.positions.is_some() {
        let positions = engine.lookup(Site::PositionTable, batch.positions());
        x = engine.add(x, &positions);
    }
    if arch.types > 0 {
        let types = engine.lookup(Site::TypeTable, batch.types());
        x = engine.add(x, &types);
    }
    if arch.embedding_projection == EmbeddingProjection::BeforeNorm {
        x = engine.linear(Site::EmbeddingProjection, &x);
    }
    x = engine.norm(Site::EmbeddingNorm, x);
    if arch.embedding_projection == EmbeddingProjection::AfterNorm {
        x = engine.linear(Site::EmbeddingProjection, &x);
    }
    x
}

/// One encoder layer.
fn block<E: Engine>(
    arch: &Architecture,
    engine: &mut E,
    layer: usize,
    x: &E::Value,
    batch: &Batch,
    rows: Rows,
) -> E::Value {
    let at = |slot| Site::layer(layer, slot);
    let picked = (rows == Rows::First).then(|| engine.pick(x, &batch.first_rows()));
    let asked = picked.as_ref().unwrap_or(x);

    let (q, k, v) = match &picked {
        Some(asked) => {
            let q = engine.linear(at(Slot::Query), asked);
            let [k, v] = engine.linears([at(Slot::Key), at(Slot::Value)], x);
            (q, k, v)
        }
        None => {
            let [q, k, v] = engine.linears([at(Slot::Query), at(Slot::Key), at(Slot::Value)], x);
            (q, k, v)
        }
    };
    let context = engine.attend(layer, &q, &k, &v, batch, rows);
    let a = engine.linear_norm([at(Slot::AttentionOutput), at(Slot::AttentionNorm)], &context, asked);
    engine.feed_forward([at(Slot::FfnUp), at(Slot::FfnDown), at(Slot::FfnNorm)], arch.activation, &a)
}

/// The convolution of v2 xlarge: input is the embedding output `x0`, residual the layer-0 output `y`.
fn convolve<E: Engine>(
    arch: &Architecture,
    engine: &mut E,
    x0: &E::Value,
    y: E::Value,
    batch: &Batch,
) -> E::Value {
    let Some(conv) = arch.convolution else { return y };
    let windows = engine.windows(x0, conv.kernel, batch);
    let c = engine.linear_activate(Site::Conv, conv.activation, &windows);
    engine.add_norm(Site::ConvNorm, c, &y)
}

/// The relative table seen by one layer: `K_r` for content-to-position, `Q_r` for position-to-content,
/// each `[2 * span, heads * head_size]`.
pub struct Positions<V> {
    /// Keys of positions.
    pub key: Option<V>,
    /// Queries of positions.
    pub query: Option<V>,
}

/// Projects the relative table for `layer`. It depends on weights only, so `Native` calls it once at
/// load; an engine that trains the weights calls it in every step.
pub fn project_positions<E: Engine>(
    arch: &Architecture,
    engine: &mut E,
    layer: usize,
) -> Positions<E::Value> {
    let Some(relative) = &arch.relative else { return Positions { key: None, query: None } };
    let rows: Vec<u32> = (0..2 * relative.span).collect();
    let mut table = engine.lookup(Site::RelativeTable, &rows);
    if relative.normalized_table {
        table = engine.norm(Site::RelativeNorm, table);
    }
    let mut project = |wanted: bool, slot| wanted.then(|| engine.linear(Site::layer(layer, slot), &table));
    Positions {
        key: project(relative.content_to_position, Slot::PositionKey),
        query: project(relative.position_to_content, Slot::PositionQuery),
    }
}
