//! Calibration and diagnosis as a user meets them.

mod common;

use assert_cmd::Command;
use common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Standard output, standard error and exit status of `args`.
fn run(args: &[&str]) -> (String, String, i32) {
    let mut command = Command::cargo_bin("qberta").unwrap();
    command.env_remove("QBERTA_THREADS").env_remove("QBERTA_ISA");
    let output = command.args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// Token rows for the golden v3 model, some of which reach tokens that the first do not.
fn rows(dir: &Path) -> std::path::PathBuf {
    let file = dir.join("rows.jsonl");
    let line = |i: usize| format!("{{\"input_ids\":[1,{},{},{},2]}}\n", 3 + i % 9, 4 + i % 7, 5 + i % 11);
    fs::write(&file, (0..32).map(line).collect::<String>()).unwrap();
    file
}

#[test]
fn static_quantization_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, data) = (golden("v3-sequence"), dir.path().join("int8"), rows(dir.path()));
    let asked = ["quantize", path(&model), "-o", path(&out), "--recipe", "static"];
    let (_, stderr, status) = run(&asked);
    assert!(status == 2 && stderr.contains("--calibration") && !out.exists(), "{stderr}");
    let with = |more: &[&str]| run(&[&asked[..], &["--calibration", path(&data)], more].concat());
    let (_, stderr, status) = with(&["--observer", "guess"]);
    assert!(status == 2 && stderr.contains("moving-average") && !out.exists(), "{stderr}");
    let (stdout, stderr, status) = with(&["--observer", "percentile:99.9", "--rows", "24", "--json"]);
    assert_eq!(status, 0, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let calibration = &report["calibration"];
    assert_eq!(calibration["observer"], "percentile:99.9");
    assert_eq!((&calibration["sequences"], &calibration["held_out"]), (&24.into(), &3.into()));
    let (stdout, _, status) = run(&["verify", path(&out)]);
    assert!(status == 0 && stdout.contains("verified"), "{stdout}");
    let (stdout, _, _) = run(&["inspect", path(&out), "--json"]);
    assert!(stdout.contains("grid of the input"), "{stdout}");
    // People see the clipped part.
    let (stdout, _, _) = run(&[
        "quantize",
        path(&model),
        "-o",
        path(&dir.path().join("b")),
        "--recipe",
        "static",
        "--calibration",
        path(&data),
    ]);
    assert!(stdout.contains("of the values of 4 held-out rows clipped"), "{stdout}");
    // Empty data are an error that names the option.
    let empty = dir.path().join("empty.txt");
    fs::write(&empty, "\n\n").unwrap();
    let c = dir.path().join("c");
    let (_, stderr, status) =
        run(&["quantize", path(&model), "-o", path(&c), "--recipe", "static", "--calibration", path(&empty)]);
    assert!(status == 2 && stderr.contains("--calibration") && !c.exists(), "{stderr}");
}

#[test]
fn warnings_of_clipping_name_the_worst_module() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    // The last eighth is nothing like the rest.
    let usual = "{\"input_ids\":[1,5,6,2]}\n".repeat(14);
    fs::write(&data, format!("{usual}{}", "{\"input_ids\":[20,21,22,23,24,25,26,27]}\n".repeat(2))).unwrap();
    let out = dir.path().join("int8");
    let model = golden("v3-sequence");
    let (_, stderr, status) = run(&[
        "quantize",
        path(&model),
        "-o",
        path(&out),
        "--recipe",
        "static",
        "--calibration",
        path(&data),
    ]);
    assert_eq!(status, 0, "{stderr}");
    assert!(
        stderr.contains("leave the calibrated range") && stderr.contains("worst deberta.encoder"),
        "{stderr}"
    );
}

#[test]
fn a_diagnosis_in_three_forms() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, data) = (golden("v3-sequence"), dir.path().join("int8"), rows(dir.path()));
    run(&["quantize", path(&model), "-o", path(&out), "--recipe", "static", "--calibration", path(&data)]);
    let page = dir.path().join("report.html");
    let asked = ["diagnose", path(&model), path(&out), "--data", path(&data), "--html", path(&page)];
    let (stdout, stderr, status) = run(&asked);
    assert_eq!(status, 0, "{stderr}");
    for part in ["damage", "layer.0.", "scores.c2p", "answers changed:"] {
        assert!(stdout.contains(part), "no {part} in\n{stdout}");
    }
    let (stdout, _, status) = run(&[&asked[..], &["--json", "--limit", "8"]].concat());
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &report["diagnosis"]["examples"]), (0, &8.into()));
    let places = report["diagnosis"]["places"].as_array().unwrap();
    let named =
        |name: &str| places.iter().find(|p| p["place"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert!(named("layer.1.ffn_down")["made_by_clipping"].is_object());
    assert!(named("layer.0.softmax")["accumulated"]["sqnr_db"].is_number());
    assert!(named("embedding.word")["tokens"].as_array().is_some_and(|t| !t.is_empty()));

    // The page stands on its own: nothing is fetched, nothing runs, tags are closed.
    let html = fs::read_to_string(&page).unwrap();
    for foreign in ["http:", "https:", "<script", "src=", "@import", "url("] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    for tag in ["svg", "table", "tr", "td", "h2", "body", "html"] {
        let opened = html.matches(&format!("<{tag} ")).count() + html.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        assert!(opened > 0, "{tag}");
    }
    assert!(html.contains("layer.1.ffn_up") && html.contains("<polyline"));
}

#[test]
fn models_that_do_not_belong_together_get_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(dir.path());
    let (a, b) = (golden("v3-sequence"), golden("v3-conv3"));
    let (_, stderr, status) = run(&["diagnose", path(&a), path(&b), "--data", path(&data)]);
    assert!(status == 2 && stderr.contains("not of the same architecture"), "{stderr}");
    let (_, stderr, status) = run(&["diagnose", path(&a), path(&a), "--data", "missing.jsonl"]);
    assert!(status == 2 && stderr.contains("missing.jsonl"), "{stderr}");
}
