//! A plan as a user meets it.

mod common;

use assert_cmd::Command;
use common::*;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Standard output, standard error and exit status of `args`.
fn run(args: &[&str]) -> (String, String, i32) {
    let mut command = Command::cargo_bin("qberta").unwrap();
    command.env("QBERTA_THREADS", "1").env_remove("QBERTA_ISA");
    let output = command.args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

/// Token rows for the golden v3 model; the last repeats the first.
fn rows(dir: &Path, name: &str) -> PathBuf {
    let file = dir.join(name);
    let line = |i: usize| {
        format!("{{\"input_ids\":[1,{},{},{},{},2]}}\n", 3 + i % 9, 4 + i % 7, 5 + i % 11, 3 + i % 13)
    };
    fs::write(&file, (0..60).chain([0]).map(line).collect::<String>()).unwrap();
    file
}

#[test]
fn a_plan_is_measured_chosen_proven_and_executed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (model, data) = (golden("v3-sequence"), rows(dir.path(), "rows.jsonl"));
    let (recipe, page, state) = (at("mine.toml"), at("page.html"), at("plan.state"));
    let asked = [
        "plan",
        path(&model),
        "--data",
        path(&data),
        "--calibration",
        path(&data),
        "--max-size",
        "60%",
        "--measure",
        "16",
        "--probe",
        "8",
        "--points",
        "4",
        "-o",
        path(&recipe),
        "--state",
        path(&state),
        "--json",
    ];
    let (stdout, stderr, status) = run(&[&asked[..], &["--html", path(&page)]].concat());
    assert_eq!(status, 0, "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&found["rows"]["measuring"], &found["rows"]["held_out"]),
        (&16.into(), &44.into()),
        "{found}"
    );
    assert_eq!((&found["rows"]["left_out"], &found["figure"]), (&1.into(), &"agreement".into()));
    let chosen = &found["chosen"];
    assert_eq!(chosen["proven"], true);
    let float = found["throughout"][0]["bytes"].as_f64().unwrap();
    assert!(chosen["file_bytes"].as_f64().unwrap() <= 0.6 * float, "{chosen}");
    assert!(chosen["seconds"]["plan"].as_f64().unwrap() > 0.0);
    let curve = found["curve"].as_array().unwrap();
    let amounts = |key: &str| curve.iter().map(|p| p[key].as_f64().unwrap()).collect::<Vec<_>>();
    assert!(curve.len() >= 3 && amounts("bytes").is_sorted(), "{curve:?}");
    assert!(amounts("damage").iter().rev().is_sorted(), "{curve:?}");

    // What was written is what was planned, and quantize executes it.
    assert_eq!(chosen["recipe"], fs::read_to_string(&recipe).unwrap());
    let out = at("int8");
    let quantize = ["quantize", path(&model), "-o", path(&out), "--recipe", path(&recipe)];
    let statics = chosen["recipe"].as_str().unwrap().contains("\"static\"");
    let with: &[&str] = if statics { &["--calibration", path(&data)] } else { &[] };
    let (stdout, stderr, status) = run(&[&quantize[..], with, &["--json"]].concat());
    assert_eq!(status, 0, "{stderr}");
    let written: Value = serde_json::from_str(&stdout).unwrap();
    let float_modules =
        written["plan"].as_object().unwrap().values().filter(|d| d["weight"] == "float").count();
    assert_eq!(float_modules, chosen["point"]["in_float"].as_array().unwrap().len());
    assert_eq!(run(&["verify", path(&out)]).2, 0);

    // A rerun goes on from what was measured: the same figures, times included.
    let (again, stderr, status) = run(&asked);
    assert_eq!(status, 0, "{stderr}");
    assert!(stderr.contains("went on from 8 of 8 rows"), "{stderr}");
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["curve"], &again["units"]), (&found["curve"], &found["units"]));

    // Nothing that was measured on something else is believed.
    let mut other = asked;
    let more = at("more.jsonl");
    fs::write(&more, format!("{}{}", fs::read_to_string(&data).unwrap(), "{\"input_ids\":[1,9,9,2]}\n"))
        .unwrap();
    other[3] = path(&more);
    let (_, stderr, status) = run(&other);
    assert!(status == 2 && stderr.contains("another data") && stderr.contains("plan.state"), "{stderr}");
    fs::write(&state, "{\"version\": 1, \"subject\": 3}").unwrap();
    let (_, stderr, status) = run(&asked);
    assert!(status == 2 && stderr.contains("not a state"), "{stderr}");

    // The page stands on its own.
    let html = fs::read_to_string(&page).unwrap();
    for foreign in ["http:", "https:", "<script", "src=", "@import", "url("] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    for tag in ["svg", "table", "tr", "td", "h2", "body", "html"] {
        let opened = html.matches(&format!("<{tag} ")).count() + html.matches(&format!("<{tag}>")).count();
        assert!(opened > 0 && opened == html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn what_cannot_be_planned_gets_a_sentence_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (golden("v3-sequence"), rows(dir.path(), "rows.jsonl"));
    let recipe = dir.path().join("plan.toml");
    let refused = |more: &[&str], words: &[&str]| {
        let quick = ["--measure", "8", "--probe", "2", "--points", "2"];
        let asked = ["plan", path(&model), "--data", path(&data)];
        let (_, stderr, status) = run(&[&asked[..], &quick, more].concat());
        assert!(status == 2 && words.iter().all(|w| stderr.contains(w)), "{more:?}: {stderr}");
        assert!(fs::read(&recipe).is_err(), "{more:?}");
    };
    let o = path(&recipe);
    refused(&["-o", o], &["nothing to choose by", "--max-drop"]);
    refused(&["-o", "plan.txt", "--max-drop", "1"], &[".toml"]);
    refused(&["-o", o, "--max-drop", "0.1"], &["cannot prove", "held-out rows", "--gate-on point"]);
    refused(&["-o", o, "--max-size", "1kB"], &["--max-size", "no choice changes"]);
    refused(&["-o", o, "--max-drop", "50", "--max-latency", "0.0001%"], &["--max-latency"]);
    refused(&["--max-latency", "12"], &["ms"]);
    refused(&["--among", "static"], &["--calibration"]);
    refused(&["--metric", "accuracy"], &["agreement", "no labels"]);
    refused(&["--tokens", "100000"], &["--tokens", "8192"]);
    refused(&["-o", path(&data), "--max-drop", "50"], &[".toml"]);
    let (_, stderr, status) = run(&["plan", path(&model), "--data", "missing.jsonl"]);
    assert!(status == 2 && stderr.contains("missing.jsonl"), "{stderr}");
}
