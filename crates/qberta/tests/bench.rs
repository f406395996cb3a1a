//! `qberta bench` on a toy, as a user and as a program meet it.

mod common;

use assert_cmd::Command;
use common::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Standard output, standard error and exit status of `qberta bench ARGS`.
fn bench(args: &[&str]) -> (String, String, i32) {
    answer(args, "")
}

fn answer(args: &[&str], input: &str) -> (String, String, i32) {
    let mut command = Command::cargo_bin("qberta").unwrap();
    command.env_remove("QBERTA_THREADS").env_remove("QBERTA_ISA").arg("bench").args(args).write_stdin(input);
    let output = command.output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

const TOY: [&str; 6] = ["--arch", "v3-toy", "--repeats", "3", "--threads", "2"];

#[test]
fn a_toy_is_measured_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("record.csv");
    let mut args = TOY.to_vec();
    args.extend(["--shapes", "1x16,ragged:3x4..9", "--stages", "--json", "--csv", path(&csv)]);
    let (stdout, stderr, status) = bench(&args);
    assert_eq!(status, 0, "{stderr}");
    let value: Value = serde_json::from_str(&stdout).unwrap();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&value), "limits load machine model peak_resident_bytes runs tool weights");
    assert_eq!(keys(&value["machine"]), "cores cpu flags isa threads");
    assert_eq!((value["weights"].as_str(), value["load"].is_null()), (Some("int8"), true));
    assert!(value["limits"]["int8_ops_per_second"]["all_threads"].as_f64().unwrap() > 0.0);
    let runs = value["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!((runs[1]["shape"].as_str(), runs[1]["tokens"].as_u64()), (Some("ragged:3x4..9"), Some(19)));
    for run in runs {
        let number = |key: &str| run[key].as_f64().unwrap();
        assert!(number("p10_ms") <= number("median_ms") && number("median_ms") <= number("p90_ms"), "{run}");
        assert!(number("tokens_per_second") > 0.0 && number("fraction_of_limit") > 0.0);
        let stages = run["stages_ms"].as_object().unwrap();
        assert!(stages.contains_key("attention") && stages.len() == 7, "{stages:?}");
    }

    // A second run adds lines to the record and keeps its header.
    let mut args = TOY.to_vec();
    args.extend(["--shapes", "1x16", "--float", "--csv", path(&csv)]);
    let (stdout, stderr, status) = bench(&args);
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("median ms") && stdout.contains("float32 weights"), "{stdout}");
    let text = fs::read_to_string(&csv).unwrap();
    let columns: Vec<usize> = text.lines().map(|l| l.split(',').count()).collect();
    assert_eq!(columns.len(), 4);
    assert!(text.starts_with("date,tool,cpu,") && text.matches("date,").count() == 1, "{text}");
}

#[test]
fn a_saved_toy_is_an_artefact_measured_in_a_fresh_process() {
    let dir = tempfile::tempdir().unwrap();
    let (int8, float) = (dir.path().join("int8"), dir.path().join("float"));
    let mut args = TOY.to_vec();
    args.extend(["--shapes", "1x16", "--json", "--save", path(&int8)]);
    let (stdout, stderr, status) = bench(&args);
    assert_eq!(status, 0, "{stderr}");
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["model"].as_str(), int8.to_str());
    if cfg!(target_os = "linux") {
        assert!(value["load"]["seconds"].as_f64().unwrap() > 0.0);
        let (after, peak) = (&value["load"]["resident_bytes"], &value["peak_resident_bytes"]);
        assert!(after.as_u64().unwrap() <= peak.as_u64().unwrap());
    }
    assert!(qberta::verify(&int8, &context()).is_ok());

    let mut args = TOY.to_vec();
    args.extend(["--shapes", "1x16", "--float", "--save", path(&float)]);
    let (_, stderr, status) = bench(&args);
    assert_eq!(status, 0, "{stderr}");
    // Drawn again in memory and read from the file are the same model.
    let ask = "{\"sequences\": [[5, 6, 7], [9]], \"warm\": 1, \"repeats\": 2}\n";
    let logits = |args: &[&str]| -> Value {
        let (stdout, stderr, status) = answer(args, ask);
        assert_eq!(status, 0, "{stderr}");
        let lines: Vec<Value> = stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["ready"]), (2, &json!(true)));
        assert_eq!(lines[1]["ms"].as_array().unwrap().len(), 2);
        lines[1]["logits"].clone()
    };
    let drawn = logits(&["--serve", "--arch", "v3-toy", "--float"]);
    assert_eq!(logits(&["--serve", path(&float)]), drawn);
    assert_eq!(logits(&["--serve", path(&float), "--recipe", "dynamic"]), logits(&["--serve", path(&int8)]));
    assert_ne!(logits(&["--serve", "--arch", "v3-toy", "--float", "--seed", "1"]), drawn);
}

#[test]
fn what_cannot_be_measured_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.csv");
    fs::write(&other, "a,b\n").unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&[], "--arch"),
        (&["--arch", "v9"], "v3-base"),
        (&["--arch", "v3-toy", "--shapes", "8"], "ragged:8x64..128"),
        (&["--arch", "v3-toy", "--shapes", "1x9,0x3"], "out of range"),
        (&["--arch", "v3-toy", "--shapes", "ragged:2x9..3"], "descend"),
        (&["--arch", "v3-toy", "--recipe", "magic"], "expected dynamic"),
        (&["--arch", "v3-toy", "--csv", path(&other)], "holds something else"),
        (&["--arch", "v3-toy", "--save", path(dir.path())], "not empty"),
        (&["no-such-dir"], "no-such-dir"),
        (&["--arch", "v3-toy", "--isa", "z80"], "z80"),
    ];
    for (args, says) in cases {
        let (_, stderr, status) = bench(args);
        assert_eq!(status, 2, "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{args:?}: {stderr}");
    }
    let bert = golden("bert-sequence");
    let (_, stderr, status) = bench(&[path(&bert), "--shapes", "1x4,1x4000"]);
    assert_eq!((status, stderr.contains("1x4000")), (2, true), "{stderr}");
    let (_, stderr, status) = answer(&["--serve", "--arch", "v3-toy"], "{\"sequences\": [[1]]}\n");
    assert_eq!((status, stderr.contains("standard input line 1")), (2, true), "{stderr}");
}

#[test]
fn instruction_sets_are_listed_with_what_is_missing() {
    let (stdout, _, status) = bench(&["--isa"]);
    assert_eq!(status, 0);
    for isa in qberta::Isa::ALL {
        assert!(stdout.contains(isa.name()), "{stdout}");
    }
    let (stdout, _, _) = bench(&["--isa", "list", "--json"]);
    let list: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    for entry in list {
        let isa = qberta::Isa::ALL.into_iter().find(|i| entry["name"] == i.name()).unwrap();
        assert_eq!(entry["available"], isa.is_available());
        assert!(!isa.is_available() || entry["missing"].as_array().unwrap().is_empty(), "{entry}");
    }
}

#[test]
fn help_shows_examples() {
    let (stdout, _, status) = bench(&["--help"]);
    assert_eq!((status, stdout.contains("qberta bench --arch v3-base")), (0, true), "{stdout}");
}
