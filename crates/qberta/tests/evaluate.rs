//! `qberta evaluate`, gates and recipes as a user meets them.

mod common;

use assert_cmd::Command;
use common::*;
use qberta::store::{Manifest, manifest};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn run(args: &[&str]) -> (String, String, i32) {
    let mut command = Command::cargo_bin("qberta").unwrap();
    let output = command.env_remove("QBERTA_THREADS").env_remove("QBERTA_ISA").args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

fn task_model(name: &str) -> PathBuf {
    testdata().join("tasks").join(name)
}

/// What Hugging Face's pipeline answered to each row.
fn pipeline(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(task_model(name).join("answers.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn rows(dir: &Path, rows: impl IntoIterator<Item = Value>) -> PathBuf {
    let file = dir.join("data.jsonl");
    let lines: Vec<String> = rows.into_iter().map(|r| r.to_string()).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    file
}

fn evaluated(args: &[&str]) -> Value {
    let (stdout, stderr, status) = run(&[args, &["--json", "--resamples", "200"]].concat());
    assert_eq!(status, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn figure(value: &Value, name: &str) -> f64 {
    value["models"][0]["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name}: {value}"))
}

#[test]
fn a_classifier_is_right_where_transformers_gave_the_same_answer() {
    let dir = tempfile::tempdir().unwrap();
    // The pipeline's labels, every second one replaced by another.
    let plain: Vec<Value> = pipeline("sequence").into_iter().filter(|a| a["answer"].is_array()).collect();
    let labelled = plain.iter().enumerate().map(|(i, a)| {
        let label = a["answer"][i % 2]["label"].clone();
        let mut row = a["row"].clone();
        row["label"] = label;
        row
    });
    let data = rows(dir.path(), labelled);
    let value = evaluated(&["evaluate", path(&task_model("sequence")), "--data", path(&data)]);
    let (n, right) = (plain.len(), plain.len().div_ceil(2));
    assert!(n >= 4);
    assert_eq!(value["rows"], n);
    assert!((figure(&value, "accuracy") - 100.0 * right as f64 / n as f64).abs() < 1e-9);
}

#[test]
fn label_sets_scores_and_answers_agree_with_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let labelled = pipeline("multi-label").into_iter().map(|a| {
        let on = |l: &&Value| l["score"].as_f64().unwrap() > 0.5;
        let labels: Vec<Value> =
            a["answer"].as_array().unwrap().iter().filter(on).map(|l| l["label"].clone()).collect();
        let mut row = a["row"].clone();
        row["labels"] = labels.into();
        row
    });
    let data = rows(dir.path(), labelled);
    let value = evaluated(&["evaluate", path(&task_model("multi-label")), "--data", path(&data)]);
    assert_eq!((figure(&value, "accuracy"), figure(&value, "micro-f1")), (100.0, 100.0));

    let labelled = pipeline("one-logit").into_iter().map(|a| {
        let mut row = a["row"].clone();
        row["score"] = a["answer"][0]["score"].clone();
        row
    });
    let data = rows(dir.path(), labelled);
    let value = evaluated(&["evaluate", path(&task_model("one-logit")), "--data", path(&data)]);
    assert!(figure(&value, "spearman") > 99.9999, "{value}");

    let plain = |a: &Value| a["options"] == json!({}) && a["answer"].is_object();
    let labelled = pipeline("question").into_iter().filter(plain).map(|a| {
        let mut row = a["row"].clone();
        row["answers"] = json!({"text": [a["answer"]["answer"]], "answer_start": [a["answer"]["start"]]});
        row
    });
    let data = rows(dir.path(), labelled);
    let model = task_model("question");
    let value = evaluated(&["evaluate", path(&model), "--data", path(&data), "--max-answer", "15"]);
    assert_eq!((figure(&value, "em"), figure(&value, "f1")), (100.0, 100.0));
}

#[test]
fn tags_a_model_gave_are_right_and_a_changed_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["The", "committee", "met", "in", "Geneva", "on", "Tuesday."];
    let model = task_model("token");
    let answers = dir.path().join("answers.jsonl");
    let data = rows(dir.path(), [json!({"tokens": words, "ner_tags": vec!["O"; words.len()]})]);
    evaluated(&["evaluate", path(&model), "--data", path(&data), "--output", path(&answers)]);
    let line: Value = serde_json::from_str(&fs::read_to_string(&answers).unwrap()).unwrap();
    let mut tags: Vec<&str> = line["answers"][0]["answer"].as_str().unwrap().split(' ').collect();
    // The pipeline says of the first two tokens, which are the first two words, that they are B-LOC.
    assert_eq!(tags[..2], ["B-LOC", "B-LOC"]);
    let data = rows(dir.path(), [json!({"tokens": words, "ner_tags": tags})]);
    let value = evaluated(&["evaluate", path(&model), "--data", path(&data)]);
    assert_eq!((figure(&value, "f1"), figure(&value, "accuracy")), (100.0, 100.0));
    tags[0] = "O";
    let data = rows(dir.path(), [json!({"tokens": words, "ner_tags": tags})]);
    let value = evaluated(&["evaluate", path(&model), "--data", path(&data)]);
    assert_eq!(figure(&value, "recall"), 100.0);
    assert!(figure(&value, "precision") < 100.0);
    assert!((figure(&value, "accuracy") - 100.0 * 6.0 / 7.0).abs() < 1e-9);
}

#[test]
fn choices_are_evaluated_from_token_ids() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("bert-multiple-choice");
    let labelled = expected(&model).into_iter().enumerate().map(|(i, (_, logits))| {
        let text = fs::read_to_string(model.join("expected.jsonl")).unwrap();
        let mut row: Value = serde_json::from_str(text.lines().nth(i).unwrap()).unwrap();
        row.as_object_mut().unwrap().remove("raw");
        row["label"] = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).into();
        row
    });
    let data = rows(dir.path(), labelled);
    let value = evaluated(&["evaluate", path(&model), "--data", path(&data)]);
    assert_eq!(figure(&value, "accuracy"), 100.0);
}

/// Rows of the golden classifier, labelled with what the float model says.
fn float_labels(dir: &Path, model: &Path) -> PathBuf {
    let labelled = expected(model).into_iter().enumerate().map(|(i, (_, logits))| {
        let text = fs::read_to_string(model.join("expected.jsonl")).unwrap();
        let mut row: Value = serde_json::from_str(text.lines().nth(i).unwrap()).unwrap();
        row.as_object_mut().unwrap().remove("raw");
        row["label"] = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).into();
        row
    });
    rows(dir, labelled)
}

#[test]
fn a_failed_gate_writes_nothing_and_a_passed_one_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (golden("v3-sequence"), dir.path().join("int8"));
    let data = float_labels(dir.path(), &model);
    let base = ["quantize", path(&model), "-o", path(&out), "--eval", path(&data), "--resamples", "200"];

    // So few rows cannot prove a loss below 0.1 points, whatever the model does.
    let (_, stderr, status) = run(&[&base[..], &["--gate", "accuracy>=-0.1"]].concat());
    assert_eq!(status, 1, "{stderr}");
    for part in ["(not written)", "gate accuracy>=-0.1 failed", "95 % interval [-", "hint:"] {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
    assert!(!out.exists());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["data.jsonl"], "nothing is left behind");

    let failing = ["--json", "--gate", "accuracy>=-100", "--gate", "accuracy>=abs:100"];
    let (stdout, _, status) = run(&[&base[..], &failing].concat());
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &value["written"]), (1, &json!(false)));
    assert_eq!((&value["gates"][0]["passed"], &value["gates"][1]["passed"]), (&json!(true), &json!(false)));
    assert!(!out.exists());

    let passing = ["--gate", "accuracy>=-100", "--gate", "agreement>=abs:0"];
    let (stdout, stderr, status) = run(&[&base[..], &passing].concat());
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("gate accuracy>=-100 passed"), "{stdout}");
    let (stdout, _, status) = run(&["verify", path(&out)]);
    assert_eq!(status, 0, "{stdout}");
    let manifest = Manifest::parse(&fs::read(out.join(manifest::NAME)).unwrap(), true).unwrap();
    assert_eq!(manifest.format_version, 2);
    let gates: Vec<&str> = manifest.gates.iter().map(|g| g.gate.as_str()).collect();
    assert_eq!(gates, ["accuracy>=-100", "agreement>=abs:0"]);
    assert_eq!(manifest.gates[0].reference.as_deref(), Some("100.0000"));
    assert_eq!(manifest.gates[1].figure, manifest.gates[1].value, "agreement is a figure of its own");
    assert_eq!(manifest.gates[0].data["data.jsonl"].bytes, fs::metadata(&data).unwrap().len());
    // Nothing but the record tells the artefact from one without gates.
    let plain = dir.path().join("plain");
    run(&["quantize", path(&model), "-o", path(&plain)]);
    assert_eq!(
        fs::read(out.join("model.safetensors")).unwrap(),
        fs::read(plain.join("model.safetensors")).unwrap()
    );
    let plain = Manifest::parse(&fs::read(plain.join(manifest::NAME)).unwrap(), true).unwrap();
    assert_eq!((plain.format_version, plain.gates.len(), plain.recipe.toml), (1, 0, None));
    assert_eq!(plain.probes, manifest.probes);
}

#[test]
fn gates_on_evaluate_give_the_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("v3-sequence");
    let data = float_labels(dir.path(), &model);
    let base = ["evaluate", path(&model), path(&model), "--data", path(&data), "--resamples", "200"];
    let (stdout, _, status) = run(&[&base[..], &["--gate", "accuracy>=-0.1"]].concat());
    assert_eq!((status, stdout.contains("failed")), (1, true), "{stdout}");
    let (stdout, _, status) = run(&[&base[..], &["--gate", "accuracy>=-0.1", "--gate-on", "point"]].concat());
    assert_eq!((status, stdout.contains("passed")), (0, true), "{stdout}");
    assert!(stdout.contains("same answer on 100.00 % of rows"), "{stdout}");
}

#[test]
fn what_cannot_be_evaluated_says_so_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (golden("v3-sequence"), dir.path().join("int8"));
    let data = float_labels(dir.path(), &model);
    let wrong = dir.path().join("wrong.jsonl");
    fs::write(&wrong, "{\"input_ids\":[5],\"label\":1}\n{\"input_ids\":[6],\"label\":\"joy\"}\n").unwrap();
    let (m, d, o) = (path(&model), path(&data), path(&out));
    let (masked, sets) = (golden("bert-mlm"), task_model("multi-label"));
    let cases: &[(&[&str], &[&str])] = &[
        (&["evaluate", path(&masked), "--data", d], &["no right answers", "fill-mask"]),
        (&["evaluate", m, "--data", path(&wrong)], &["wrong.jsonl line 2", "found joy"]),
        (&["evaluate", m, "--data", "no.jsonl"], &["no.jsonl"]),
        (&["evaluate", m, "--data", d, "-o", d], &["--output", "overwrite the data"]),
        (&["evaluate", m, "no-model", "--data", d], &["no-model"]),
        (&["evaluate", m, "--data", d, "--label", "lable"], &["line 1", "no label"]),
        (&["evaluate", m, "--data", d, "--gate", "accuracy>=-1"], &["compares two models"]),
        (&["evaluate", m, path(&sets), "--data", d], &["multi-label", "different tasks"]),
        (
            &["quantize", m, "-o", o, "--eval", d, "--gate", "f1>=-1"],
            &["no such figure", "expected accuracy, macro-f1"],
        ),
        (&["quantize", m, "-o", o, "--eval", d, "--gate", "accuracy=-1"], &["gate cannot be read"]),
        (&["quantize", m, "-o", o, "--gate", "accuracy>=-1"], &["--eval"]),
        (&["quantize", m, "-o", o, "--eval", d], &["--gate"]),
        (&["quantize", m, "-o", o, "--recipe", "int3"], &["recipe is not known"]),
    ];
    for (args, parts) in cases {
        let (_, stderr, status) = run(args);
        assert_eq!(status, 2, "{args:?}: {stderr}");
        for part in *parts {
            assert!(stderr.contains(part), "{args:?}: {part:?} is not in {stderr}");
        }
        assert!(!out.exists(), "{args:?}");
    }
}

#[test]
fn recipes_of_every_kind_become_artefacts_that_record_them() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("careful.toml");
    let text = "name = \"careful\"\nbase = \"dynamic\"\n\n[[rules]]\nmodules = \"layer.0\"\nweight = \"float\"\n\n\
                [[rules]]\nmodules = [\"layer.1.intermediate\"]\ninput = \"dynamic-symmetric\"\n";
    fs::write(&recipe, text).unwrap();
    for case in ["v3-sequence", "bert-sequence", "v3-mlm-legacy"] {
        let model = golden(case);
        for asked in ["weight-only", path(&recipe)] {
            let out = dir.path().join(format!("{case}-{}", asked.len()));
            let (_, stderr, status) = run(&["quantize", path(&model), "-o", path(&out), "--recipe", asked]);
            assert_eq!(status, 0, "{case} {asked}: {stderr}");
            let (stdout, stderr, status) = run(&["verify", path(&out)]);
            assert_eq!(status, 0, "{case} {asked}: {stdout}{stderr}");
            let manifest = Manifest::parse(&fs::read(out.join(manifest::NAME)).unwrap(), true).unwrap();
            if asked == "weight-only" {
                assert_eq!((manifest.format_version, &*manifest.recipe.name), (1, "weight-only"));
                assert!(manifest.plan.values().all(|d| d.input == manifest::Input::Float));
                assert!(manifest.plan.values().all(|d| d.weight == manifest::Weight::Int8Channel));
            } else {
                assert_eq!((manifest.format_version, &*manifest.recipe.name), (2, "careful"));
                let again = qberta::Recipe::parse(&manifest.recipe.toml.unwrap(), "again").unwrap();
                assert_eq!(again.rules.len(), 2, "the recorded text is the recipe");
                let inputs: Vec<_> = manifest.plan.values().map(|d| d.input).collect();
                assert!(inputs.contains(&manifest::Input::TokenSymmetric));
                assert!(inputs.contains(&manifest::Input::TokenAsymmetric));
            }
        }
    }
}

#[test]
fn a_manifest_with_keys_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (golden("v3-sequence"), dir.path().join("int8"));
    run(&["quantize", path(&model), "-o", path(&out)]);
    let file = out.join(manifest::NAME);
    let good = fs::read_to_string(&file).unwrap();
    for version in ["0", "2", "3"] {
        let changed = good.replace("\"format_version\": 1,", &format!("\"format_version\": {version},"));
        assert_ne!(changed, good);
        fs::write(&file, changed).unwrap();
        let (_, stderr, status) = run(&["predict", path(&out), "--raw"]);
        assert_eq!(status, 2, "{version}: {stderr}");
        assert!(stderr.contains("version"), "{version}: {stderr}");
    }
}
