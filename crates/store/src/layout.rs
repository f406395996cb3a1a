//! Which Hugging Face modules a checkpoint of an architecture holds, and which sites each one serves.
//!
//! This table is the only place that knows tensor names. Loading, planning, saving and inspection all
//! walk it, so a tensor is either in it or reported as ignored.

use qberta_model::{Architecture, EmbeddingProjection, Family, HeadSlot, Site, Slot, Task};

/// One module of a checkpoint: a name and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Hugging Face module name, such as `deberta.encoder.layer.0.attention.self.query_proj`.
    pub name: String,
    /// What it is.
    pub role: Role,
}

/// What a module is, with its shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// A linear layer, `NAME.weight [out, in]`.
    Linear(LinearRole),
    /// A table, `NAME.weight [rows, width]`.
    Table {
        /// The site that reads it.
        site: Site,
        /// Rows.
        rows: usize,
        /// Columns.
        width: usize,
    },
    /// A LayerNorm, `NAME.weight` and `NAME.bias`, each `[width]`.
    Norm {
        /// The site that applies it.
        site: Site,
        /// Width.
        width: usize,
    },
    /// The convolution, `NAME.weight [hidden, hidden / groups, kernel]` and `NAME.bias`.
    Conv {
        /// Channels.
        hidden: usize,
        /// Channel groups.
        groups: usize,
        /// Taps.
        kernel: usize,
    },
    /// The attention of a layer, which has no tensors of its own but the grids of static scores: how its scores are
    /// computed.
    Scores {
        /// Layer.
        layer: usize,
        /// Number of heads.
        heads: usize,
    },
    /// The other product of that attention, its weights with the values: how the context is computed. It has no tensors,
    /// and with talking heads, which mix the weights in float, no choice.
    Context {
        /// Layer.
        layer: usize,
    },
    /// A DeBERTa v1 talking-heads matrix, `NAME.weight [heads, heads]`.
    Mix {
        /// Layer.
        layer: usize,
        /// After the softmax rather than before it.
        after_softmax: bool,
        /// Heads.
        heads: usize,
    },
    /// The vocabulary projection of a masked-LM head: `NAME.weight` if stored, else the word table.
    Vocabulary {
        /// Names under which the bias may be stored, in order of preference.
        bias: Vec<String>,
        /// Rows.
        out: usize,
        /// Columns.
        inp: usize,
    },
    /// A module that Hugging Face's class holds and no output of ours reads (BERT's pooler under
    /// features). Kept so that the class loads complete.
    Kept,
}

impl Module {
    /// Whether this is the word table or the vocabulary projection, which many checkpoints tie.
    pub fn is_word_matrix(&self) -> bool {
        matches!(self.role, Role::Table { site: Site::WordTable, .. } | Role::Vocabulary { .. })
    }
}

/// A linear module and the sites it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearRole {
    /// The sites, each with the name of its bias tensor. Several sites share one module in DeBERTa v1,
    /// whose `in_proj` interleaves query, key and value rows head by head.
    pub sites: Vec<(Site, Option<String>)>,
    /// Rows of the module: all sites together.
    pub out: usize,
    /// Columns.
    pub inp: usize,
    /// Rows of one site that lie together; equal to `out` unless fused.
    pub run: usize,
    /// Part of the encoder (quantized by default) rather than of the head or the embeddings.
    pub encoder: bool,
}

/// Names of one family's modules, without the backbone prefix.
struct Names {
    layer: &'static str,
    attention: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    attention_output: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    ffn_norm: &'static str,
}

const DEBERTA: Names = Names {
    layer: "encoder.layer",
    attention: "attention.self",
    query: "attention.self.query_proj",
    key: "attention.self.key_proj",
    value: "attention.self.value_proj",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    ffn_norm: "output.LayerNorm",
};
const BERT: Names = Names {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    ..DEBERTA
};
const DISTIL: Names = Names {
    layer: "transformer.layer",
    attention: "attention",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ffn_norm: "output_layer_norm",
};

/// The prefix of backbone modules: none for a bare encoder, the family's attribute under a head.
pub fn backbone_prefix(arch: &Architecture) -> &'static str {
    match arch.head.task {
        Task::Features => "",
        _ => arch.family.prefix(),
    }
}

/// Every module that a checkpoint of `arch` holds, in order of computation.
pub fn modules(arch: &Architecture) -> Vec<Module> {
    let mut list = Lister { prefix: backbone_prefix(arch), modules: Vec::new() };
    list.embeddings(arch);
    list.relative(arch);
    for layer in 0..arch.layers {
        list.layer(arch, layer);
    }
    list.head(arch);
    list.modules
}

struct Lister {
    prefix: &'static str,
    modules: Vec<Module>,
}

impl Lister {
    fn push(&mut self, name: String, role: Role) {
        self.modules.push(Module { name, role });
    }

    fn backbone(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn table(&mut self, name: &str, site: Site, rows: usize, width: usize) {
        self.push(self.backbone(name), Role::Table { site, rows, width });
    }

    fn norm(&mut self, name: String, site: Site, width: usize) {
        self.push(name, Role::Norm { site, width });
    }

    fn linear(&mut self, name: String, site: Site, out: usize, inp: usize, bias: bool, encoder: bool) {
        let bias = bias.then(|| format!("{name}.bias"));
        self.push(name, Role::Linear(LinearRole { sites: vec![(site, bias)], out, inp, run: out, encoder }));
    }

    fn embeddings(&mut self, arch: &Architecture) {
        let width = arch.embedding;
        self.table("embeddings.word_embeddings", Site::WordTable, arch.vocabulary, width);
        if let Some(p) = arch.positions {
            self.table("embeddings.position_embeddings", Site::PositionTable, p.rows, width);
        }
        if arch.types > 0 {
            self.table("embeddings.token_type_embeddings", Site::TypeTable, arch.types, width);
        }
        let normed = match arch.embedding_projection {
            EmbeddingProjection::AfterNorm => width,
            _ => arch.hidden,
        };
        self.norm(self.backbone("embeddings.LayerNorm"), Site::EmbeddingNorm, normed);
        let (name, bias) = match arch.embedding_projection {
            EmbeddingProjection::None => return,
            EmbeddingProjection::BeforeNorm => ("embeddings.embed_proj", false),
            EmbeddingProjection::AfterNorm => ("embeddings_project", true),
        };
        self.linear(self.backbone(name), Site::EmbeddingProjection, arch.hidden, width, bias, false);
    }

    fn relative(&mut self, arch: &Architecture) {
        if let Some(r) = &arch.relative {
            self.table("encoder.rel_embeddings", Site::RelativeTable, 2 * r.span as usize, arch.hidden);
            if r.normalized_table {
                self.norm(self.backbone("encoder.LayerNorm"), Site::RelativeNorm, arch.hidden);
            }
        }
        if let Some(c) = arch.convolution {
            let role = Role::Conv { hidden: arch.hidden, groups: c.groups, kernel: c.kernel };
            self.push(self.backbone("encoder.conv.conv"), role);
            self.norm(self.backbone("encoder.conv.LayerNorm"), Site::ConvNorm, arch.hidden);
        }
    }

    fn layer(&mut self, arch: &Architecture, layer: usize) {
        let names = match arch.family {
            Family::DebertaV1 | Family::DebertaV2 => &DEBERTA,
            Family::DistilBert => &DISTIL,
            Family::Bert | Family::Roberta | Family::Electra => &BERT,
        };
        let at = |slot| Site::layer(layer, slot);
        let base = self.backbone(&format!("{}.{layer}", names.layer));
        let name = |part: &str| format!("{base}.{part}");
        let (width, hidden) = (arch.attention_width(), arch.hidden);
        if arch.family == Family::DebertaV1 {
            self.v1_attention(arch, layer, &base);
        } else {
            self.linear(name(names.query), at(Slot::Query), width, hidden, true, true);
            self.linear(name(names.key), at(Slot::Key), width, hidden, true, true);
            self.linear(name(names.value), at(Slot::Value), width, hidden, true, true);
            if let Some(r) = arch.relative.as_ref().filter(|r| !r.shared_projections) {
                if r.content_to_position {
                    let key = name("attention.self.pos_key_proj");
                    self.linear(key, at(Slot::PositionKey), width, hidden, true, true);
                }
                if r.position_to_content {
                    let query = name("attention.self.pos_query_proj");
                    self.linear(query, at(Slot::PositionQuery), width, hidden, true, true);
                }
            }
        }
        self.push(name(names.attention), Role::Scores { layer, heads: arch.heads });
        if !arch.talking_heads {
            self.push(name(&format!("{}.context", names.attention)), Role::Context { layer });
        }
        self.linear(name(names.attention_output), at(Slot::AttentionOutput), hidden, width, true, true);
        self.norm(name(names.attention_norm), at(Slot::AttentionNorm), hidden);
        self.linear(name(names.up), at(Slot::FfnUp), arch.intermediate, hidden, true, true);
        self.linear(name(names.down), at(Slot::FfnDown), hidden, arch.intermediate, true, true);
        self.norm(name(names.ffn_norm), at(Slot::FfnNorm), hidden);
    }

    /// v1: one fused projection without bias, rows interleaved per head as [query | key | value], the
    /// query and value biases beside it, no key bias; position keys without bias, position queries with.
    fn v1_attention(&mut self, arch: &Architecture, layer: usize, base: &str) {
        let at = |slot| Site::layer(layer, slot);
        let name = |part: &str| format!("{base}.attention.self.{part}");
        let (width, hidden) = (arch.attention_width(), arch.hidden);
        let sites = vec![
            (at(Slot::Query), Some(name("q_bias"))),
            (at(Slot::Key), None),
            (at(Slot::Value), Some(name("v_bias"))),
        ];
        let fused = LinearRole { sites, out: 3 * width, inp: hidden, run: arch.head_size, encoder: true };
        self.push(name("in_proj"), Role::Linear(fused));
        if let Some(r) = &arch.relative {
            if r.content_to_position {
                self.linear(name("pos_proj"), at(Slot::PositionKey), width, hidden, false, true);
            }
            if r.position_to_content {
                self.linear(name("pos_q_proj"), at(Slot::PositionQuery), width, hidden, true, true);
            }
        }
        if arch.talking_heads {
            for (part, after_softmax) in [("head_logits_proj", false), ("head_weights_proj", true)] {
                self.push(name(part), Role::Mix { layer, after_softmax, heads: arch.heads });
            }
        }
    }

    fn head(&mut self, arch: &Architecture) {
        let deberta = matches!(arch.family, Family::DebertaV1 | Family::DebertaV2);
        let hidden = arch.hidden;
        let (dense, output) = (Site::Head(HeadSlot::Dense), Site::Head(HeadSlot::Output));
        match arch.head.task {
            Task::Features => {
                if !deberta && matches!(arch.family, Family::Bert | Family::Roberta) {
                    self.push(self.backbone("pooler.dense"), Role::Kept);
                }
            }
            Task::TokenClassification => {
                self.linear("classifier".into(), output, arch.outputs(), hidden, true, false);
            }
            Task::QuestionAnswering => self.linear("qa_outputs".into(), output, 2, hidden, true, false),
            Task::SequenceClassification | Task::MultipleChoice => {
                let choice = arch.head.task == Task::MultipleChoice;
                let (first, last) = match arch.family {
                    Family::DebertaV1 | Family::DebertaV2 => ("pooler.dense".to_owned(), "classifier"),
                    Family::Bert => (self.backbone("pooler.dense"), "classifier"),
                    Family::Roberta if choice => (self.backbone("pooler.dense"), "classifier"),
                    Family::Electra if choice => ("sequence_summary.summary".to_owned(), "classifier"),
                    Family::Roberta | Family::Electra => {
                        ("classifier.dense".to_owned(), "classifier.out_proj")
                    }
                    Family::DistilBert => ("pre_classifier".to_owned(), "classifier"),
                };
                self.linear(first, dense, hidden, hidden, true, false);
                self.linear(last.into(), output, arch.outputs(), hidden, true, false);
            }
            Task::FillMask => self.fill_mask(arch),
        }
    }

    fn fill_mask(&mut self, arch: &Architecture) {
        let (dense, norm, decoder, biases): (_, _, _, &[&str]) = match arch.family {
            // Microsoft's `lm_predictions.lm_head.*` is renamed to these by `names`.
            Family::DebertaV1 | Family::DebertaV2 | Family::Bert => (
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder",
                &["cls.predictions.bias", "cls.predictions.decoder.bias"],
            ),
            Family::Roberta => (
                "lm_head.dense",
                "lm_head.layer_norm",
                "lm_head.decoder",
                &["lm_head.bias", "lm_head.decoder.bias"],
            ),
            Family::DistilBert => {
                ("vocab_transform", "vocab_layer_norm", "vocab_projector", &["vocab_projector.bias"])
            }
            Family::Electra => (
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head",
                &["generator_lm_head.bias"],
            ),
        };
        let width = arch.embedding;
        self.linear(dense.into(), Site::Head(HeadSlot::Dense), width, arch.hidden, true, false);
        self.norm(norm.into(), Site::Head(HeadSlot::Norm), width);
        let bias = biases.iter().map(|&b| b.to_owned()).collect();
        self.push(decoder.into(), Role::Vocabulary { bias, out: arch.vocabulary, inp: width });
    }
}
