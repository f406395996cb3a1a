//! A model: an architecture and a weight for every site it visits.

use crate::config::Architecture;
use crate::error::{Error, Result};
use crate::forward::{Positions, project_positions};
use crate::linear::{Linear, Norm, Table};
use crate::native::Native;
use crate::site::{HeadSlot, Site, Slot};
use crate::{EmbeddingProjection, Task};
use qberta_kernels::{Context, Operands, RelativeKeys, Values};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The two `[heads, heads]` matrices of a DeBERTa v1 layer with talking heads.
#[derive(Clone, Debug, PartialEq)]
pub struct TalkingHeads {
    /// Mixes scores before the softmax.
    pub logits: Vec<f32>,
    /// Mixes probabilities after it.
    pub weights: Vec<f32>,
}

/// The weights of a model by site, as a loader gathers them.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// Linear layers. With shared projections the position sites are absent.
    pub linears: BTreeMap<Site, Linear>,
    /// LayerNorms.
    pub norms: BTreeMap<Site, Norm>,
    /// Embedding tables.
    pub tables: BTreeMap<Site, Table>,
    /// Talking heads by layer; empty when the architecture has none.
    pub talking: Vec<TalkingHeads>,
    /// What attention scores multiply, by layer; layers past the end multiply floats.
    pub scores: Vec<Operands>,
    /// What attention weights multiply, by layer; layers past the end multiply floats.
    pub context: Vec<Values>,
}

impl Weights {
    /// What the attention scores of `layer` multiply.
    pub fn scores(&self, layer: usize) -> &Operands {
        self.scores.get(layer).unwrap_or(&Operands::Float)
    }

    /// What the attention weights of `layer` multiply.
    pub fn context(&self, layer: usize) -> Values {
        self.context.get(layer).copied().unwrap_or_default()
    }
}

/// A runnable model. Weights are complete and shaped as the architecture says; what depends on weights
/// alone (the projected relative table) is computed once, here.
#[derive(Debug)]
pub struct Model {
    pub(crate) arch: Architecture,
    pub(crate) weights: Weights,
    positions: Vec<Tables>,
}

/// The projected relative table of a layer: for the scores of this model, and, once they are asked for, packed the
/// other way (as codes, or as values) for those of another model.
#[derive(Debug)]
struct Tables {
    own: Positions<RelativeKeys>,
    other: OnceLock<Positions<RelativeKeys>>,
}

impl<V: std::fmt::Debug> std::fmt::Debug for Positions<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Positions").field("key", &self.key).field("query", &self.query).finish()
    }
}

impl Model {
    /// Checks `weights` against `arch` and projects the relative table of every layer.
    ///
    /// Errors: a site without weights, or with weights of another shape.
    pub fn new(arch: Architecture, weights: Weights, cx: &Context) -> Result<Model> {
        check(&arch, &weights)?;
        let mut model = Model { arch, weights, positions: Vec::new() };
        if model.arch.relative.is_some() {
            let own = |layer| model.project(layer, model.weights.scores(layer).is_coded(), cx);
            let tables = |layer| Tables { own: own(layer), other: OnceLock::new() };
            model.positions = (0..model.arch.layers).map(tables).collect();
        }
        Ok(model)
    }

    /// The relative table as seen by `layer`, packed as codes or as values.
    fn project(&self, layer: usize, coded: bool, cx: &Context) -> Positions<RelativeKeys> {
        let p = project_positions(&self.arch, &mut Native::new(self, cx), layer);
        let (isa, heads) = (cx.isa, self.arch.heads);
        Positions {
            key: p.key.map(|m| RelativeKeys::pack(isa, &m, heads, coded)),
            query: p.query.map(|m| RelativeKeys::pack_queries(isa, &m, heads, coded)),
        }
    }

    /// The relative table of `layer` for scores that multiply codes, or values; `None` without one.
    pub(crate) fn positions(
        &self,
        layer: usize,
        coded: bool,
        cx: &Context,
    ) -> Option<&Positions<RelativeKeys>> {
        let Tables { own, other } = self.positions.get(layer)?;
        match coded == self.weights.scores(layer).is_coded() {
            true => Some(own),
            false => Some(other.get_or_init(|| self.project(layer, coded, cx))),
        }
    }

    /// What the model computes.
    pub fn architecture(&self) -> &Architecture {
        &self.arch
    }

    /// The weights by site.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

fn check(arch: &Architecture, weights: &Weights) -> Result<()> {
    let width = arch.attention_width();
    let missing = |site: Site| Error::corrupt("weights are missing").at(site);
    let linear = |site: Site, out: usize, inp: usize| -> Result<()> {
        let found = weights.linears.get(&site).ok_or_else(|| missing(site))?.shape();
        if found != (out, inp) {
            return Err(Error::corrupt("linear has the wrong shape")
                .at(site)
                .expected(format!("[{out}, {inp}]"))
                .found(format!("[{}, {}]", found.0, found.1)));
        }
        Ok(())
    };
    let norm = |site: Site, n: usize| -> Result<()> {
        let found = weights.norms.get(&site).ok_or_else(|| missing(site))?;
        if found.weight.len() != n || found.bias.len() != n {
            return Err(Error::corrupt("LayerNorm has the wrong width")
                .at(site)
                .expected(n)
                .found(found.weight.len()));
        }
        Ok(())
    };
    let table = |site: Site, rows: usize, cols: usize| -> Result<()> {
        let found = weights.tables.get(&site).ok_or_else(|| missing(site))?;
        if found.rows() < rows || found.width() != cols {
            return Err(Error::corrupt("table has the wrong shape")
                .at(site)
                .expected(format!("[{rows}, {cols}]"))
                .found(format!("[{}, {}]", found.rows(), found.width())));
        }
        Ok(())
    };

    table(Site::WordTable, arch.vocabulary, arch.embedding)?;
    if let Some(p) = arch.positions {
        table(Site::PositionTable, p.rows, arch.embedding)?;
    }
    if arch.types > 0 {
        table(Site::TypeTable, arch.types, arch.embedding)?;
    }
    if arch.embedding_projection != EmbeddingProjection::None {
        linear(Site::EmbeddingProjection, arch.hidden, arch.embedding)?;
    }
    let after = arch.embedding_projection == EmbeddingProjection::AfterNorm;
    norm(Site::EmbeddingNorm, if after { arch.embedding } else { arch.hidden })?;
    if let Some(relative) = &arch.relative {
        table(Site::RelativeTable, 2 * relative.span as usize, arch.hidden)?;
        if relative.normalized_table {
            norm(Site::RelativeNorm, arch.hidden)?;
        }
    }
    if let Some(conv) = arch.convolution {
        linear(Site::Conv, arch.hidden, conv.kernel * arch.hidden)?;
        norm(Site::ConvNorm, arch.hidden)?;
    }
    for layer in 0..arch.layers {
        let at = |slot| Site::layer(layer, slot);
        const WIDEST: usize = 1 << 16; // sums of products of codes stay inside 32 bits
        if let Operands::Int8Static(grids) = weights.scores(layer)
            && grids.heads() != arch.heads
        {
            return Err(Error::corrupt("attention has the wrong number of grids")
                .at(at(Slot::Scores))
                .expected(format!("one for each of {} heads", arch.heads))
                .found(grids.heads()));
        }
        if weights.scores(layer).is_coded() && arch.head_size > WIDEST {
            return Err(Error::unsupported("heads are too wide for int8 scores")
                .at(at(Slot::Scores))
                .expected(format!("at most {WIDEST} columns"))
                .found(arch.head_size));
        }
        if weights.context(layer) == Values::Int8 && arch.talking_heads {
            return Err(Error::unsupported("talking heads mix attention weights in float")
                .at(at(Slot::Context))
                .expected("a context in float"));
        }
        for slot in [Slot::Query, Slot::Key, Slot::Value] {
            linear(at(slot), width, arch.hidden)?;
        }
        if let Some(r) = arch.relative.as_ref().filter(|r| !r.shared_projections) {
            if r.content_to_position {
                linear(at(Slot::PositionKey), width, arch.hidden)?;
            }
            if r.position_to_content {
                linear(at(Slot::PositionQuery), width, arch.hidden)?;
            }
        }
        linear(at(Slot::AttentionOutput), arch.hidden, width)?;
        norm(at(Slot::AttentionNorm), arch.hidden)?;
        linear(at(Slot::FfnUp), arch.intermediate, arch.hidden)?;
        linear(at(Slot::FfnDown), arch.hidden, arch.intermediate)?;
        norm(at(Slot::FfnNorm), arch.hidden)?;
        if arch.talking_heads {
            let n = arch.heads * arch.heads;
            let fits =
                weights.talking.get(layer).is_some_and(|t| t.logits.len() == n && t.weights.len() == n);
            if !fits {
                return Err(
                    Error::corrupt("talking heads are missing or misshapen").at(format!("layer {layer}"))
                );
            }
        }
    }
    let (dense, output) = (Site::Head(HeadSlot::Dense), Site::Head(HeadSlot::Output));
    match arch.head.task {
        Task::Features => Ok(()),
        Task::TokenClassification | Task::QuestionAnswering => linear(output, arch.outputs(), arch.hidden),
        Task::SequenceClassification | Task::MultipleChoice => {
            linear(dense, arch.hidden, arch.hidden)?;
            linear(output, arch.outputs(), arch.hidden)
        }
        Task::FillMask => {
            linear(dense, arch.embedding, arch.hidden)?;
            norm(Site::Head(HeadSlot::Norm), arch.embedding)?;
            linear(output, arch.vocabulary, arch.embedding)
        }
    }
}
