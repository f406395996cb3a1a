//! Models of published shapes with random weights: what a benchmark needs when the weights are far away.
//!
//! The configuration is the one Hugging Face publishes for that shape, with three labels. Weights depend on the
//! tensor's name and the seed alone, so every program that reads the same checkpoint, or draws it again, has the
//! same numbers. Speed does not depend on the values; accuracy figures of such a model mean nothing.

use crate::quantize::Progress;
use qberta_model::{Architecture, Error, Result};
use qberta_store::layout::{self, Role};
use qberta_store::load::Source;
use qberta_store::tensor::Tensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A published shape.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The name used by `--arch`.
    pub name: &'static str,
    /// The model it is the shape of.
    pub of: &'static str,
    family: Family,
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    V3,
    V1,
    Bert,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Shape; 9] = [
        shape("v3-xsmall", "microsoft/deberta-v3-xsmall", Family::V3, 128_100, 384, 12, 6),
        shape("v3-small", "microsoft/deberta-v3-small", Family::V3, 128_100, 768, 6, 12),
        shape("v3-base", "microsoft/deberta-v3-base", Family::V3, 128_100, 768, 12, 12),
        shape("v3-large", "microsoft/deberta-v3-large", Family::V3, 128_100, 1024, 24, 16),
        shape("mdeberta-base", "microsoft/mdeberta-v3-base", Family::V3, 251_000, 768, 12, 12),
        shape("v1-base", "microsoft/deberta-base", Family::V1, 50_265, 768, 12, 12),
        shape("bert-base", "google-bert/bert-base-uncased", Family::Bert, 30_522, 768, 12, 12),
        shape("minilm", "cross-encoder/ms-marco-MiniLM-L-6-v2", Family::Bert, 30_522, 384, 6, 12),
        shape("v3-toy", "a toy for tests", Family::V3, 1024, 64, 2, 2),
    ];

    /// The shape called `name`.
    ///
    /// Errors: an unknown name.
    pub fn named(name: &str) -> Result<Shape> {
        Shape::ALL.into_iter().find(|s| s.name == name).ok_or_else(|| {
            let known: Vec<_> = Shape::ALL.iter().map(|s| s.name).collect();
            Error::input("architecture is not known").at("--arch").expected(known.join(", ")).found(name)
        })
    }

    /// Its `config.json`, for sequence classification with three labels.
    pub fn config(&self) -> Map<String, Value> {
        let common = json!({
            "attention_probs_dropout_prob": 0.1,
            "dtype": "float32",
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": self.hidden,
            "id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"},
            "initializer_range": 0.02,
            "intermediate_size": 4 * self.hidden,
            "label2id": {"contradiction": 0, "entailment": 1, "neutral": 2},
            "max_position_embeddings": 512,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": 0,
            "vocab_size": self.vocabulary,
        });
        let deberta = json!({
            "layer_norm_eps": 1e-7,
            "max_relative_positions": -1,
            "pooler_dropout": 0,
            "pooler_hidden_act": "gelu",
            "pooler_hidden_size": self.hidden,
            "position_biased_input": false,
            "relative_attention": true,
            "type_vocab_size": 0,
        });
        let own = match self.family {
            Family::V3 => json!({
                "architectures": ["DebertaV2ForSequenceClassification"],
                "model_type": "deberta-v2",
                "norm_rel_ebd": "layer_norm",
                "pos_att_type": "p2c|c2p",
                "position_buckets": 256,
                "share_att_key": true,
            }),
            Family::V1 => json!({
                "architectures": ["DebertaForSequenceClassification"],
                "model_type": "deberta",
                "pos_att_type": "c2p|p2c",
            }),
            Family::Bert => json!({
                "architectures": ["BertForSequenceClassification"],
                "layer_norm_eps": 1e-12,
                "model_type": "bert",
                "position_embedding_type": "absolute",
                "type_vocab_size": 2,
            }),
        };
        let parts = match self.family {
            Family::Bert => vec![common, own],
            _ => vec![common, deberta, own],
        };
        parts
            .into_iter()
            .flat_map(|part| match part {
                Value::Object(map) => map,
                _ => Map::new(),
            })
            .collect()
    }

    /// The shape with random float weights, in memory.
    ///
    /// Errors: none of its own; whatever the configuration reader says.
    pub fn random(&self, seed: u64, progress: &dyn Progress) -> Result<Source> {
        let config = self.config();
        let arch = Architecture::from_config(&config, None)?;
        let tensors = tensors(&arch, seed, progress)?;
        let dir = Path::new("random weights of the shape").join(self.name);
        Source::from_parts(&dir, config, None, tensors, Vec::new(), None)
    }
}

const fn shape(
    name: &'static str,
    of: &'static str,
    family: Family,
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
) -> Shape {
    Shape { name, of, family, vocabulary, hidden, layers, heads }
}

/// Deviation of linear weights: what trained encoders have, about twice the initial .02.
const LINEAR: f32 = 0.04;
/// Deviation of tables and biases.
const TABLE: f32 = 0.02;
/// Deviation of LayerNorm gains around one. No term of the network is trivially absent.
const GAIN: f32 = 0.1;

/// Random tensors for every module of `arch`.
fn tensors(arch: &Architecture, seed: u64, progress: &dyn Progress) -> Result<BTreeMap<String, Tensor>> {
    let modules = layout::modules(arch);
    progress.stage("drawing random weights", modules.len() as u64);
    let mut tensors = BTreeMap::new();
    let mut draw = |name: String, shape: Vec<usize>, mean: f32, deviation: f32| -> Result<()> {
        let values = normal(&name, seed, shape.iter().product(), mean, deviation);
        tensors.insert(name, Tensor::from_f32(shape, &values)?);
        Ok(())
    };
    for module in &modules {
        let (weight, bias) = (format!("{}.weight", module.name), format!("{}.bias", module.name));
        match &module.role {
            Role::Linear(role) => {
                draw(weight, vec![role.out, role.inp], 0.0, LINEAR)?;
                for bias in role.sites.iter().filter_map(|(_, bias)| bias.as_ref()) {
                    draw(bias.clone(), vec![role.out / role.sites.len()], 0.0, TABLE)?;
                }
            }
            Role::Table { rows, width, .. } => draw(weight, vec![*rows, *width], 0.0, TABLE)?,
            Role::Norm { width, .. } => {
                draw(weight, vec![*width], 1.0, GAIN)?;
                draw(bias, vec![*width], 0.0, TABLE)?;
            }
            Role::Conv { hidden, groups, kernel } => {
                draw(weight, vec![*hidden, hidden / groups, *kernel], 0.0, LINEAR)?;
                draw(bias, vec![*hidden], 0.0, TABLE)?;
            }
            Role::Mix { heads, .. } => draw(weight, vec![*heads, *heads], 0.0, LINEAR)?,
            Role::Vocabulary { out, bias, .. } => {
                if let Some(bias) = bias.first() {
                    draw(bias.clone(), vec![*out], 0.0, TABLE)?;
                }
            }
            Role::Kept | Role::Scores { .. } | Role::Context { .. } => {}
        }
        progress.step();
    }
    Ok(tensors)
}

/// `count` values near a normal distribution: the sum of four 16-bit uniforms, from one splitmix64 step each.
/// No library call, so that every machine draws the same bits.
fn normal(name: &str, seed: u64, count: usize, mean: f32, deviation: f32) -> Vec<f32> {
    const FOUR_MEANS: f32 = 2.0 * 65_535.0;
    // One uniform over 0..=65535 has deviation 65536 / sqrt(12); the sum of four has twice that.
    const UNIT: f32 = 37_837.23;
    let mut state = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
            (sum as f32 - FOUR_MEANS) / UNIT * deviation + mean
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::quantize_in_memory;
    use crate::recipe::Recipe;
    use qberta_kernels::{Context, Isa};

    #[test]
    fn draws_are_near_normal_and_depend_on_name_and_seed_alone() {
        let values = normal("x.weight", 0, 100_000, 1.0, 0.5);
        let mean = values.iter().sum::<f32>() / 1e5;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1e5).sqrt();
        assert!((mean - 1.0).abs() < 0.01 && (deviation - 0.5).abs() < 0.01, "{mean} {deviation}");
        assert_eq!(values[..9], normal("x.weight", 0, 9, 1.0, 0.5));
        assert_ne!(values[..9], normal("y.weight", 0, 9, 1.0, 0.5));
        assert_ne!(values[..9], normal("x.weight", 1, 9, 1.0, 0.5));
    }

    #[test]
    fn every_shape_is_a_configuration_we_read() {
        for shape in Shape::ALL {
            let arch = Architecture::from_config(&shape.config(), None).unwrap();
            assert_eq!((arch.hidden, arch.layers, arch.outputs()), (shape.hidden, shape.layers, 3));
        }
        assert!(Shape::named("v9").unwrap_err().to_string().contains("v3-base"));
    }

    #[test]
    fn a_random_model_loads_in_float_and_in_int8() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        let source = Shape::named("v3-toy").unwrap().random(0, &()).unwrap();
        let float = source.load(&cx).unwrap();
        assert!(float.account.ignored.is_empty());
        let recipe = Recipe::new("dynamic", &[]).unwrap();
        let int8 = quantize_in_memory(source, &recipe, &cx, &()).unwrap();
        assert!(int8.is_artefact() && int8.load(&cx).is_ok());
    }
}
