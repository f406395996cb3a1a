//! What the program must not do to a user's files, and what it must not believe of them.

mod common;

use assert_cmd::Command;
use common::{golden, path};
use std::fs;
use std::path::{Path, PathBuf};

fn run(args: &[&str]) -> (String, String, i32) {
    let output = Command::cargo_bin("qberta").unwrap().args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

fn artefact(dir: &Path) -> PathBuf {
    let out = dir.join("int8");
    let (_, stderr, status) = run(&["quantize", path(&golden("v3-sequence")), "-o", path(&out)]);
    assert_eq!(status, 0, "{stderr}");
    out
}

#[test]
fn what_is_read_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (model, rows) = (golden("v3-sequence"), dir.path().join("rows.jsonl"));
    let text = "{\"input_ids\":[5,6,7]}\n{\"input_ids\":[8]}\n";
    fs::write(&rows, text).unwrap();
    let (m, r) = (path(&model), path(&rows));
    let cases: [&[&str]; 2] =
        [&["predict", m, "--raw", "-i", r, "-o", r], &["diagnose", m, m, "--data", r, "--html", r]];
    for args in cases {
        let (_, stderr, status) = run(args);
        assert_eq!((status, stderr.contains("overwrite")), (2, true), "{args:?}: {stderr}");
        assert_eq!(fs::read_to_string(&rows).unwrap(), text, "{args:?}");
    }
}

#[test]
fn earlier_answers_stand_until_there_are_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, answers) = (dir.path().join("rows.jsonl"), dir.path().join("answers.jsonl"));
    fs::write(&answers, "much longer than one line of answers, and from an earlier run\n".repeat(9)).unwrap();
    fs::write(&rows, "{\"input_ids\":\"no\"}\n").unwrap();
    let model = golden("v3-sequence");
    let args = ["predict", path(&model), "--raw", "-i", path(&rows), "-o", path(&answers)];
    assert_eq!(run(&args).2, 2);
    assert!(fs::read_to_string(&answers).unwrap().starts_with("much longer"));
    // A mark of byte order is no text.
    fs::write(&rows, "\u{feff}{\"input_ids\":[5,6]}\n").unwrap();
    let (_, stderr, status) = run(&args);
    assert_eq!(status, 0, "{stderr}");
    let text = fs::read_to_string(&answers).unwrap();
    assert!(text.starts_with("{\"logits\":") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_tokenizer_put_beside_an_artefact_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = artefact(dir.path());
    fs::write(out.join("notes.txt"), "mine").unwrap();
    assert_eq!(run(&["verify", path(&out)]).2, 0, "a note harms nobody");
    fs::write(out.join("tokenizer.json"), "{}").unwrap();
    for (verb, expected) in [("verify", 1), ("predict", 2)] {
        let (stdout, stderr, status) = run(&[verb, path(&out)]);
        assert_eq!(status, expected, "{stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains("was added"), "{stdout}{stderr}");
    }
}

#[test]
fn nothing_is_proven_of_a_damaged_artefact() {
    let dir = tempfile::tempdir().unwrap();
    let out = artefact(dir.path());
    let (weights, float, data) =
        (out.join("model.safetensors"), dir.path().join("float"), dir.path().join("data.jsonl"));
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::write(&data, "{\"input_ids\":[5,6],\"label\":0}\n").unwrap();
    let (o, f, d) = (path(&out), path(&float), path(&data));
    let cases: [&[&str]; 2] = [&["export", o, "--to", "huggingface", "-o", f], &["evaluate", o, "--data", d]];
    for args in cases {
        let (_, stderr, status) = run(args);
        assert_eq!((status, stderr.contains("digest")), (2, true), "{args:?}: {stderr}");
    }
    assert!(!float.exists());
}

#[cfg(unix)]
#[test]
fn a_link_is_no_place_for_an_artefact() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
    let (_, stderr, status) = run(&["quantize", path(&golden("v3-sequence")), "-o", path(&link)]);
    assert_eq!((status, stderr.contains("symbolic link")), (2, true), "{stderr}");
}

/// Answers and status of `qberta predict --raw` on `file` with this content.
fn predicted(file: &Path, content: &str) -> (usize, String, i32) {
    fs::write(file, content).unwrap();
    let (stdout, stderr, status) = run(&["predict", path(&golden("v3-sequence")), "--raw", "-i", path(file)]);
    (stdout.lines().count(), stderr, status)
}

#[test]
fn rows_before_one_that_cannot_be_read_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let (answers, stderr, status) =
        predicted(&file, "{\"input_ids\":[5]}\n{\"input_ids\":[6]}\n{\"ids\":[7]}\n");
    assert_eq!((answers, status, stderr.contains("line 3")), (2, 2, true), "{stderr}");
}

#[test]
fn a_jsonl_file_holds_objects_only() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["[5, 6]", "\"quoted\"", "plain"] {
        let (answers, stderr, status) = predicted(&dir.path().join("rows.jsonl"), line);
        assert_eq!((answers, status, stderr.contains("line 1")), (0, 2, true), "{line}: {stderr}");
    }
    // Elsewhere a line without a brace is a text, which this model cannot read for want of a tokenizer.
    let (_, stderr, _) = predicted(&dir.path().join("rows.txt"), "plain");
    assert!(stderr.contains("no tokenizer"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::{Command, Stdio};
    let rows = "{\"input_ids\":[5,6,7]}\n".repeat(3000);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    fs::write(&file, rows).unwrap();
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("qberta"))
        .args(["predict", path(&golden("v3-sequence")), "--raw", "-i", path(&file)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn threads_from_the_environment_are_judged_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = artefact(dir.path());
    for (threads, status) in [("", 0), ("2", 0), ("0", 2), ("many", 2), ("99999", 2)] {
        let mut command = Command::cargo_bin("qberta").unwrap();
        let output = command.args(["verify", path(&out)]).env("QBERTA_THREADS", threads).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{threads}: {stderr}");
        assert!(status == 0 || stderr.contains("QBERTA_THREADS"), "{stderr}");
    }
}

/// A pipe in the place of a file would wait for ever, and a file without end fill the memory.
#[cfg(unix)]
#[test]
fn what_cannot_be_read_whole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = artefact(dir.path());
    for name in [
        "config.json",
        "model.safetensors",
        "qberta.json",
        "tokenizer.json",
        "spm.model",
        "1_Pooling/config.json",
    ] {
        for kind in ["pipe", "endless", "directory"] {
            let out = dir.path().join("damaged");
            fs::create_dir(&out).unwrap();
            for file in fs::read_dir(&whole).unwrap().map(|f| f.unwrap()) {
                fs::copy(file.path(), out.join(file.file_name())).unwrap();
            }
            let victim = out.join(name);
            fs::create_dir_all(victim.parent().unwrap()).unwrap();
            let _ = fs::remove_file(&victim);
            match kind {
                "pipe" => {
                    let made = std::process::Command::new("mkfifo").arg(&victim).status().unwrap();
                    assert!(made.success());
                }
                "endless" => fs::File::create(&victim).unwrap().set_len(1 << 40).unwrap(),
                _ => fs::create_dir(&victim).unwrap(),
            }
            for verb in ["inspect", "verify", "predict"] {
                let mut command = Command::cargo_bin("qberta").unwrap();
                command.timeout(std::time::Duration::from_secs(60));
                let output = command.args([verb, path(&out), "--json"]).write_stdin("a").output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                let refused = output.status.code().is_some() && !stderr.contains("panicked");
                assert!(refused, "{verb}, {name} is a {kind}: {:?} {stderr}", output.status);
                // What inspect and verify do not read cannot harm them; predict reads all of it.
                assert!(verb != "predict" || output.status.code() == Some(2), "{name} is a {kind}: {stderr}");
            }
            fs::remove_dir_all(&out).unwrap();
        }
    }
}
