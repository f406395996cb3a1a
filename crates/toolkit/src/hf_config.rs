//! The artefact's `config.json`: the source's, plus a compressed-tensors `quantization_config` (schema
//! of compressed-tensors 0.20), so that Hugging Face tools read the same directory.

use crate::channels::Channels;
use crate::plan::{Plan, unties};
use qberta_model::{Architecture, Family, Task};
use qberta_store::Tensor;
use qberta_store::layout::{self, Role};
use qberta_store::manifest::{Decision, Input, Weight};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The configuration to write beside weights quantized by `plan`, with these extra input columns and
/// smoothing shifts.
pub fn artefact_config(
    source: &Map<String, Value>,
    arch: &Architecture,
    plan: &Plan,
    channels: &Channels,
    tensors: &BTreeMap<String, Tensor>,
) -> Map<String, Value> {
    let mut config = source.clone();
    // A bare pre-trained config names no class; readers need one to know which head the weights have.
    config.insert("architectures".into(), json!([class_name(source, arch)]));
    // Dequantized values are f32 products; a half-precision default would round the scales on load.
    config.remove("torch_dtype");
    config.insert("dtype".into(), json!("float32"));
    let deberta = matches!(arch.family, Family::DebertaV1 | Family::DebertaV2);
    if deberta && arch.head.task == Task::FillMask {
        config.insert("legacy".into(), json!(true)); // the head is stored under cls.predictions
    }
    let own = |m: &layout::Module| {
        matches!(m.role, Role::Vocabulary { .. }) && tensors.contains_key(&format!("{}.weight", m.name))
    };
    if arch.head.task == Task::FillMask {
        // Where the projection is not stored it is the word table, whatever the source's class made of its names.
        let tied = !layout::modules(arch).iter().any(own);
        let said = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
        if tied != said || unties(arch, plan) {
            config.insert("tie_word_embeddings".into(), json!(tied));
        }
    }
    // Where every weight is a float one, other readers have nothing to know.
    if plan.values().any(|d| d.weight.is_coded()) {
        config.insert("quantization_config".into(), quantization_config(arch, plan, channels));
    }
    config
}

/// The Hugging Face class of this architecture and task.
fn class_name(source: &Map<String, Value>, arch: &Architecture) -> String {
    let stem = match arch.family {
        Family::DebertaV1 => "Deberta",
        Family::DebertaV2 => "DebertaV2",
        Family::Bert => "Bert",
        Family::Roberta => match source.get("model_type").and_then(Value::as_str) {
            Some("xlm-roberta") => "XLMRoberta",
            Some("camembert") => "Camembert",
            _ => "Roberta",
        },
        Family::DistilBert => "DistilBert",
        Family::Electra => "Electra",
    };
    format!("{stem}{}", arch.head.task.class_suffix())
}

fn quantization_config(arch: &Architecture, plan: &Plan, (splits, smooth): &Channels) -> Value {
    let mut groups: BTreeMap<String, (Vec<String>, Decision)> = BTreeMap::new();
    let mut ignore = Vec::new();
    for module in layout::modules(arch) {
        let linear =
            matches!(module.role, Role::Linear(_) | Role::Vocabulary { .. } | Role::Kept | Role::Mix { .. });
        let table = matches!(module.role, Role::Table { .. });
        let decision = plan.get(&module.name).copied().unwrap_or(Decision::FLOAT);
        match decision.weight {
            Weight::Float | Weight::Bf16 if linear => ignore.push(module.name),
            Weight::Float | Weight::Bf16 => {}
            weight => {
                // A grid made for an input with extra columns clips the input without them, and
                // compressed-tensors cannot say extra columns: readers that know no more quantize per token.
                let split = splits.contains_key(&module.name) && decision.input == Input::TensorStatic;
                let input = if split { Input::TokenAsymmetric } else { decision.input };
                let kind = match input {
                    _ if table => "embeddings",
                    Input::TokenAsymmetric => "linears",
                    Input::TensorStatic => "linears_static",
                    Input::TokenSymmetric | Input::HeadStatic | Input::ChannelAsymmetric => {
                        "linears_symmetric"
                    }
                    Input::Float => "linears_weight_only",
                };
                let key = match weight {
                    Weight::Int4(group) => format!("{kind}_int4_{}", group.inputs()),
                    _ => kind.to_owned(),
                };
                let decision = Decision { input, weight };
                groups.entry(key).or_insert_with(|| (Vec::new(), decision)).0.push(module.name);
            }
        }
    }
    let config_groups: Map<String, Value> =
        groups.into_iter().map(|(name, (targets, d))| (name, scheme(targets, d))).collect();
    // compressed-tensors has no word for smoothing and would run the multiplied weights as they are. A method that
    // nobody else knows is refused.
    let method = if smooth.is_empty() { "compressed-tensors" } else { "qberta" };
    json!({
        "config_groups": config_groups,
        "format": "mixed-precision",
        "global_compression_ratio": null,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "quant_method": method,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
    })
}

fn scheme(targets: Vec<String>, decision: Decision) -> Value {
    let input = match decision.input {
        Input::Float => Value::Null,
        Input::TensorStatic => json!({
            "num_bits": 8, "type": "int", "symmetric": false, "strategy": "tensor", "dynamic": false,
        }),
        kind => json!({
            "num_bits": 8, "type": "int", "symmetric": kind == Input::TokenSymmetric,
            "strategy": "token", "dynamic": true,
        }),
    };
    // Without a format per group, weight-only int8 would be taken for the int32-packed layout.
    let (format, weights) = match decision.weight {
        Weight::Int4(group) => (
            "pack-quantized",
            json!({
                "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
                "group_size": group.inputs(), "dynamic": false,
            }),
        ),
        _ => (
            if input.is_null() { "naive-quantized" } else { "int-quantized" },
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false}),
        ),
    };
    json!({
        "format": format,
        "input_activations": input,
        "output_activations": null,
        "targets": targets,
        "weights": weights,
    })
}
