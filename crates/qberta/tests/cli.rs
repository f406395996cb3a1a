//! The program as a user meets it: exit status, output, errors.

mod common;

use assert_cmd::Command;
use common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn qberta() -> Command {
    let mut command = Command::cargo_bin("qberta").unwrap();
    command.env_remove("QBERTA_THREADS").env_remove("QBERTA_ISA");
    command
}

/// Standard output, standard error and exit status of `args`.
fn run(args: &[&str]) -> (String, String, i32) {
    let output = qberta().args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

#[test]
fn quantize_verify_inspect_predict() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (golden("v3-sequence"), dir.path().join("int8"));
    let (stdout, stderr, status) = run(&["quantize", path(&model), "-o", path(&out)]);
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("gave the same bits"), "{stdout}");
    let (stdout, _, status) = run(&["verify", path(&out)]);
    assert_eq!((status, stdout.contains("verified")), (0, true), "{stdout}");
    let (stdout, _, status) = run(&["inspect", path(&out), "--json"]);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, value["kind"].as_str()), (0, Some("artefact")));
    assert!(value["tensors"].as_array().unwrap().iter().any(|t| t["role"] == "int8 per channel"));

    let rows = dir.path().join("rows.jsonl");
    fs::write(&rows, "{\"input_ids\":[5,6,7]}\n\n{\"input_ids\":[9],\"token_type_ids\":[0]}\n").unwrap();
    let answers = dir.path().join("answers.jsonl");
    let (_, stderr, status) = run(&["predict", path(&out), "--raw", "-i", path(&rows), "-o", path(&answers)]);
    assert_eq!(status, 0, "{stderr}");
    let text = fs::read_to_string(&answers).unwrap();
    let logits: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(logits.len(), 2);
    assert_eq!(logits[0]["logits"].as_array().unwrap().len(), 3);
    // The same rows through standard input, other threads, another instruction set, one by one: same text.
    let output = qberta()
        .args(["predict", path(&out), "--raw", "--batch-size", "1", "--threads", "2"])
        .env("QBERTA_ISA", "scalar")
        .write_stdin(fs::read_to_string(&rows).unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
}

#[test]
fn verify_says_what_differs_and_exits_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    run(&["quantize", path(&golden("v3-sequence")), "-o", path(&out)]);
    let weights = out.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let (_, stderr, status) = run(&["verify", path(&out)]);
    assert_eq!(status, 1);
    assert!(stderr.contains("model.safetensors") && stderr.contains("first damaged tensor"), "{stderr}");
    let (_, stderr, status) = run(&["verify", path(&golden("v3-sequence"))]);
    assert_eq!(status, 2, "a float checkpoint is not an artefact");
    assert!(stderr.contains("float checkpoint"), "{stderr}");
}

#[test]
fn wrong_requests_get_a_sentence_and_status_two() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("v3-sequence");
    let (text, program) =
        (dir.path().join("bad.jsonl"), testdata().join("doctor/torchscript-trace/model.pt"));
    fs::write(&text, "{\"input_ids\":[1]}\n{\"input_ids\":[9999]}\n").unwrap();
    let cases: [(&[&str], &str); 11] = [
        (&["quantize", "no-such-dir", "-o", "x"], "no-such-dir"),
        (&["quantize", path(&model), "-o", path(dir.path())], "not empty"),
        (&["quantize", path(&model), "-o", "missing-parent/x/y"], "parent"),
        (&["quantize", path(&model), "-o", "x", "--recipe", "magic"], "expected dynamic"),
        (&["quantize", path(&model), "-o", "x", "--skip", "layer.77"], "matches nothing"),
        (&["quantize", path(&model), "-o", "x", "--skip", "re:("], "regular expression"),
        (&["quantize", path(&model), "-o", "x", "--task", "poetry"], "sequence-classification"),
        (&["predict", path(&model), "hello"], "no tokenizer"),
        (&["predict", path(&model), "--raw", "-i", path(&text)], "line 2"),
        (&["predict", path(&model), "--raw", "-i", "none.jsonl"], "none.jsonl"),
        (&["inspect", path(&program)], "TorchScript"),
    ];
    for (args, says) in cases {
        let (_, stderr, status) = run(args);
        assert_eq!(status, 2, "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    assert!(!Path::new("x").exists());
    let output = qberta().args(["demo", "--rows", "1"]).env("QBERTA_ISA", "z80").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("z80"));
}

#[test]
fn answers_before_a_bad_row_are_written() {
    let output = qberta()
        .args(["predict", path(&golden("v3-sequence")), "--raw"])
        .write_stdin("{\"input_ids\":[1]}\n{\"input_ids\":[9999]}\n{\"input_ids\":[2]}\n")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard input line 2"));
}

#[test]
fn errors_are_json_when_machines_read() {
    let (stdout, _, status) = run(&["inspect", "no-such-dir", "--json"]);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, value["kind"].as_str()), (2, Some("io")));
    assert!(value["error"].as_str().unwrap().contains("no-such-dir"));
}

#[test]
fn the_demo_tells_its_story() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("kept");
    let (stdout, stderr, status) = run(&["demo", "--rows", "300", "--json", "--keep", path(&keep)]);
    assert_eq!(status, 0, "{stderr}");
    let value: Value = serde_json::from_str(&stdout).unwrap();
    let number = |key: &str| value[key].as_f64().unwrap();
    assert_eq!(number("rows"), 300.0);
    assert!(number("float_accuracy") > 70.0, "the built-in model is trained");
    assert!(number("agreement") > 98.0 && number("largest_logit_difference") < 0.5, "{stdout}");
    assert!(number("int8_bytes") < 0.3 * number("float32_bytes"), "{stdout}");
    assert_eq!(run(&["verify", path(&keep.join("int8"))]).2, 0);
}

/// A write that the operating system stops: the process is killed by the file size limit.
#[cfg(unix)]
#[test]
fn a_killed_write_leaves_nothing_and_the_next_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    let program = assert_cmd::cargo::cargo_bin("qberta");
    let limited = format!(
        "ulimit -f 8; exec '{}' quantize '{}' -o '{}'",
        program.display(),
        golden("v3-sequence").display(),
        out.display()
    );
    let killed = std::process::Command::new("bash").args(["-c", &limited]).output().unwrap();
    assert!(!killed.status.success());
    assert!(!out.exists(), "no half artefact");
    let (_, stderr, status) = run(&["quantize", path(&golden("v3-sequence")), "-o", path(&out)]);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "what the killed attempt left is cleared");
    assert_eq!(run(&["verify", path(&out)]).2, 0);
}

#[test]
fn help_shows_examples() {
    for verb in ["inspect", "quantize", "verify", "predict", "doctor", "export", "demo"] {
        let (stdout, _, status) = run(&[verb, "--help"]);
        assert_eq!(status, 0);
        assert!(stdout.contains("Example") && stdout.contains(&format!("qberta {verb}")), "{verb}: {stdout}");
    }
}
