use super::*;
use serde_json::json;

fn deberta(extra: Value) -> Map<String, Value> {
    let mut config = json!({
        "model_type": "deberta-v2", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 97, "max_position_embeddings": 64, "relative_attention": true,
        "position_biased_input": false, "pos_att_type": "p2c|c2p", "position_buckets": 16,
        "norm_rel_ebd": "layer_norm", "share_att_key": true, "type_vocab_size": 0,
        "architectures": ["DebertaV2ForSequenceClassification"],
        "id2label": {"0": "no", "1": "yes", "2": "maybe"},
    });
    let map = config.as_object_mut().unwrap();
    map.extend(extra.as_object().unwrap().clone());
    map.clone()
}

fn refused(extra: Value, field: &str) {
    let error = Architecture::from_config(&deberta(extra.clone()), None).expect_err(&extra.to_string());
    assert!(error.to_string().starts_with(field), "{extra}: {error}");
}

#[test]
fn v3_is_read_as_released() {
    let arch = Architecture::from_config(&deberta(json!({})), None).unwrap();
    let relative = arch.relative.unwrap();
    assert_eq!((relative.span, relative.buckets, relative.max_distance), (16, Some(16), 64));
    assert!(relative.shared_projections && relative.normalized_table);
    assert_eq!(arch.score_terms, 3);
    assert_eq!(arch.labels, ["no", "yes", "maybe"]);
    assert_eq!(arch.length_limit(), None);
    assert_eq!(arch.eps, 1e-7);
}

#[test]
fn pos_att_type_is_read_in_every_spelling() {
    for value in [json!("p2c|c2p"), json!(" C2P | p2c "), json!(["p2c", "c2p"]), json!(["c2p", "p2c", "p2p"])]
    {
        let arch = Architecture::from_config(&deberta(json!({ "pos_att_type": value })), None).unwrap();
        let r = arch.relative.unwrap();
        assert!(r.content_to_position && r.position_to_content, "{value}");
        assert_eq!(arch.score_terms, 3, "{value}");
    }
}

#[test]
fn v1_counts_every_listed_term_in_the_divisor() {
    let config = deberta(json!({"model_type": "deberta", "pos_att_type": "c2p|p2c|p2p"}));
    assert_eq!(Architecture::from_config(&config, None).unwrap().score_terms, 4);
}

#[test]
fn terms_count_without_relative_attention() {
    let arch = Architecture::from_config(&deberta(json!({"relative_attention": false})), None).unwrap();
    assert!(arch.relative.is_none());
    assert_eq!(arch.score_terms, 3);
}

#[test]
fn what_cannot_run_is_refused_by_field_name() {
    refused(json!({"hidden_act": "gelu_10"}), "hidden_act");
    refused(json!({"pos_att_type": "c2q"}), "pos_att_type");
    refused(json!({"pos_att_type": ["P2C", "c2p"]}), "pos_att_type");
    refused(json!({"norm_rel_ebd": "batch_norm"}), "norm_rel_ebd");
    refused(json!({"num_attention_heads": 5}), "num_attention_heads");
    refused(json!({"hidden_size": 0}), "hidden_size");
    refused(json!({"hidden_size": 1u64 << 40}), "hidden_size");
    refused(json!({"hidden_size": "48"}), "hidden_size");
    refused(json!({"layer_norm_eps": -1.0}), "layer_norm_eps");
    refused(json!({"conv_kernel_size": 2}), "conv_kernel_size");
    refused(json!({"conv_kernel_size": 3, "conv_groups": 5}), "conv_groups");
    refused(json!({"talking_head": true}), "talking_head");
    refused(json!({"id2label": {"0": "a", "7": "b"}}), "id2label");
    refused(json!({"architectures": ["DebertaV2ForPreTraining"]}), "architectures");
    refused(json!({"model_type": "gpt2"}), "model_type");
    refused(json!({"is_decoder": true}), "is_decoder");
    refused(json!({"position_embedding_type": "relative_key"}), "position_embedding_type");
    refused(json!({"problem_type": "ranking"}), "problem_type");
    refused(json!({"position_buckets": 1}), "position_buckets");
    refused(json!({"position_buckets": 126}), "position_buckets");
}

#[test]
fn an_absent_class_means_features_and_an_option_overrides() {
    let mut config = deberta(json!({}));
    config.remove("architectures");
    assert_eq!(Architecture::from_config(&config, None).unwrap().head.task, Task::Features);
    let arch = Architecture::from_config(&config, Some(Task::SequenceClassification)).unwrap();
    assert_eq!(arch.outputs(), 3);
}

#[test]
fn one_logit_is_read_with_a_sigmoid() {
    let arch = Architecture::from_config(&deberta(json!({"id2label": {"0": "LABEL_0"}})), None).unwrap();
    assert_eq!(arch.reading, Reading::Independent);
}
