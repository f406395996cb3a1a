//! Answers against Hugging Face pipelines (transformers 4.57.1), text in, answers out.

mod common;

use common::*;
use qberta::runtime::{Aggregation, Options, Pooling};
use qberta::{Row, Session};
use serde_json::Value;

/// Absolute, on probabilities.
const MAX_DIFFERENCE: f64 = 2e-5;

/// Runs every row of case `case` and hands our answer and the pipeline's to `compare`.
fn check(case: &str, compare: impl Fn(&Value, &Value, &Value)) {
    let dir = testdata().join("tasks").join(case);
    let session = Session::open(&dir, None, context()).unwrap();
    let text = std::fs::read_to_string(dir.join("answers.jsonl")).unwrap();
    assert!(text.lines().count() >= 2);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let row = Row::parse(&line["row"].to_string()).unwrap();
        let ours = session.answer(&[row], &options(&line["options"])).unwrap().remove(0);
        compare(&serde_json::to_value(&ours).unwrap(), &line["answer"], &line);
    }
}

fn options(asked: &Value) -> Options {
    let mut o = Options::standard();
    for (key, value) in asked.as_object().unwrap() {
        let number = || value.as_u64().unwrap() as usize;
        match key.as_str() {
            "top_k" => o.top_k = number(),
            "labels" => {
                o.zero_shot = value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().into()).collect()
            }
            "multi_label" => o.multi_label = value.as_bool().unwrap(),
            "hypothesis" => o.hypothesis = value.as_str().unwrap().into(),
            "aggregation" => o.aggregation = Aggregation::ALL.iter().find(|(_, n)| value == n).unwrap().0,
            "max_seq_len" => o.max_length = Some(number()),
            "doc_stride" => o.stride = number(),
            "max_answer_len" => o.max_answer = number(),
            "handle_impossible_answer" => o.no_answer = value.as_bool().unwrap(),
            other => panic!("unknown option {other}"),
        }
    }
    o
}

fn close(a: &Value, b: &Value) -> bool {
    (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= MAX_DIFFERENCE
}

/// Two lists of labels with scores, best first.
fn same_labels(ours: &Value, theirs: &Value) {
    let (a, b) = (ours.as_array().unwrap(), theirs.as_array().unwrap());
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!(x["label"] == y["label"] && close(&x["score"], &y["score"]), "{ours}\n{theirs}");
    }
}

#[test]
fn sequence_classification() {
    check("sequence", |ours, theirs, _| same_labels(&ours["top"], theirs));
    check("multi-label", |ours, theirs, _| same_labels(&ours["labels"], theirs));
    check("one-logit", |ours, theirs, _| {
        let theirs = if theirs.is_array() { &theirs[0] } else { theirs };
        assert!(
            ours["label"] == theirs["label"] && close(&ours["score"], &theirs["score"]),
            "{ours} {theirs}"
        );
    });
}

#[test]
fn zero_shot_classification() {
    check("zero-shot", |ours, theirs, _| same_labels(&ours["labels"], theirs));
}

#[test]
fn token_classification_with_every_aggregation() {
    for case in ["token", "token-bert"] {
        check(case, same_entities);
    }
}

fn same_entities(ours: &Value, theirs: &Value, line: &Value) {
    let text: Vec<char> = line["row"]["text"].as_str().unwrap().chars().collect();
    // The pipeline leaves the space before a word in its offsets; we do not, and drop spans of spaces.
    let mut spans = Vec::new();
    for t in theirs.as_array().unwrap() {
        let (mut start, mut end) =
            (t["start"].as_u64().unwrap() as usize, t["end"].as_u64().unwrap() as usize);
        while start < end && text[start] == ' ' {
            start += 1;
        }
        while start < end && text[end - 1] == ' ' {
            end -= 1;
        }
        if start < end {
            let entity = t.get("entity_group").or(t.get("entity")).unwrap();
            spans.push((entity, start, end, &t["score"]));
        }
    }
    let ours = ours["entities"].as_array().unwrap();
    assert_eq!(ours.len(), spans.len(), "{line}\n{ours:?}");
    for (a, (entity, start, end, score)) in ours.iter().zip(spans) {
        assert!(
            a["entity"] == *entity && a["start"] == start && a["end"] == end,
            "{a} {entity} {start} {end}"
        );
        assert!(close(&a["score"], score), "{a} {score}");
        assert_eq!(a["word"].as_str().unwrap(), text[start..end].iter().collect::<String>());
    }
}

#[test]
fn question_answering_with_windows() {
    check("question", |ours, theirs, line| {
        let found = theirs["answer"].as_str().unwrap();
        assert_eq!(ours["answer"].as_str().unwrap(), found.trim(), "{line}\n{ours}");
        assert!(close(&ours["score"], &theirs["score"]), "{ours} {theirs}");
        let lead = found.chars().take_while(|c| *c == ' ').count() as u64;
        if !found.is_empty() {
            assert_eq!(ours["start"].as_u64().unwrap(), theirs["start"].as_u64().unwrap() + lead);
            let context: Vec<char> = line["row"]["context"].as_str().unwrap().chars().collect();
            let (start, end) =
                (ours["start"].as_u64().unwrap() as usize, ours["end"].as_u64().unwrap() as usize);
            assert_eq!(context[start..end].iter().collect::<String>(), found.trim());
        }
    });
}

#[test]
fn fill_mask() {
    for case in ["mask", "mask-bert"] {
        check(case, |ours, theirs, _| {
            let masks = ours["masks"].as_array().unwrap();
            let theirs =
                if theirs[0].is_array() { theirs.clone() } else { Value::Array(vec![theirs.clone()]) };
            assert_eq!(masks.len(), theirs.as_array().unwrap().len());
            for (a, b) in masks
                .iter()
                .flat_map(|m| m.as_array().unwrap())
                .zip(theirs.as_array().unwrap().iter().flat_map(|m| m.as_array().unwrap()))
            {
                assert!(a["token"] == b["token"] && close(&a["score"], &b["score"]), "{a} {b}");
                assert_eq!(a["token_str"], b["token_str"], "{a} {b}");
                if masks.len() == 1 {
                    assert_eq!(a["sequence"], b["sequence"], "{a} {b}");
                }
            }
        });
    }
}

#[test]
fn vectors_are_what_sentence_transformers_modules_say() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("bert-features");
    for file in std::fs::read_dir(&from).unwrap().flatten() {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let module = |kind: &str| format!("{{\"idx\":0,\"name\":\"0\",\"path\":\"\",\"type\":\"{kind}\"}}");
    let write = |mode: &str, kinds: &[&str]| {
        let modes = format!("{{\"pooling_mode_mean_tokens\":false,\"{mode}\":true}}");
        std::fs::write(dir.path().join("1_Pooling/config.json"), modes).unwrap();
        let modules: Vec<String> =
            kinds.iter().map(|k| module(&format!("sentence_transformers.models.{k}"))).collect();
        std::fs::write(dir.path().join("modules.json"), format!("[{}]", modules.join(","))).unwrap();
    };
    let rows: Vec<Row> = expected(&from).into_iter().map(|(row, _)| row).collect();
    let answers = |pooling: Option<Pooling>| {
        let session = Session::open(dir.path(), None, context()).unwrap();
        let answers = session.answer(&rows, &Options { pooling, ..Options::standard() })?;
        Ok::<_, qberta::Error>(answers.iter().map(|a| serde_json::to_value(a).unwrap()).collect::<Vec<_>>())
    };
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    write("pooling_mode_cls_token", &["Transformer", "Pooling", "Normalize"]);
    let unit = answers(None).unwrap();
    let hidden = answers(Some(Pooling::None)).unwrap();
    assert!(unit.len() == rows.len() && !rows.is_empty());
    for (unit, hidden) in unit.iter().zip(&hidden) {
        let (unit, first) = (numbers(&unit["embedding"]), numbers(&hidden["last_hidden_state"][0]));
        let length = first.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!(unit.iter().zip(&first).all(|(u, f)| (u - f / length).abs() < 1e-6), "{unit:?}");
    }
    write("pooling_mode_cls_token", &["Transformer", "Pooling"]);
    for (plain, hidden) in answers(None).unwrap().iter().zip(&hidden) {
        assert_eq!(plain["embedding"], hidden["last_hidden_state"][0]);
    }
    // What is not run is said, not left out.
    write("pooling_mode_cls_token", &["Transformer", "Pooling", "Dense", "Normalize"]);
    let error = answers(None).unwrap_err().to_string();
    assert!(error.contains("modules.json") && error.contains("Dense"), "{error}");
    assert_eq!(answers(Some(Pooling::None)).unwrap(), hidden);
    std::fs::write(dir.path().join("modules.json"), "[{").unwrap();
    assert!(Session::open(dir.path(), None, context()).unwrap_err().to_string().contains("modules.json"));
}
