//! Every case in `testdata/tokenizers`, whose expected ids, types and offsets were written by transformers
//! 4.57.1; the same strings on the real DeBERTa-v3 vocabulary; and properties no case list can show.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qberta_runtime::tokenize::{Encoded, Tokenizer};
use serde::Deserialize;

/// One line of an expected.jsonl.
#[derive(Deserialize)]
struct Row {
    text: String,
    #[serde(default)]
    text_pair: Option<String>,
    #[serde(default)]
    max_length: Option<usize>,
    ids: Vec<u32>,
    #[serde(default)]
    type_ids: Option<Vec<u32>>,
    #[serde(default)]
    offsets: Option<Vec<(usize, usize)>>,
}

/// The case without a vocabulary of its own: it needs the real one.
const REAL: &str = "v3-real-24";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn cases() -> Vec<PathBuf> {
    let root = workspace().join("testdata/tokenizers");
    let listing = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut cases: Vec<PathBuf> = listing.map(|entry| entry.expect("a directory entry").path()).collect();
    cases.retain(|path| path.join("expected.jsonl").is_file());
    cases.sort();
    assert!(!cases.is_empty(), "{} holds no case", root.display());
    cases
}

fn rows(case: &Path) -> Vec<Row> {
    let path = case.join("expected.jsonl");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(i, line)| {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{}:{}: {e}", path.display(), i + 1))
    });
    rows.collect()
}

fn open(dir: &Path) -> Tokenizer {
    match Tokenizer::open(dir) {
        Ok(Some(tokenizer)) => tokenizer,
        Ok(None) => panic!("{}: no tokenizer file", dir.display()),
        Err(e) => panic!("{e}"),
    }
}

/// Compares every row and reports all that differ, not the first.
fn check(name: &str, tokenizer: &Tokenizer, rows: &[Row]) {
    let mut wrong = Vec::new();
    for row in rows {
        let pair = row.text_pair.as_deref();
        let got = match tokenizer.encode(&row.text, pair, row.max_length) {
            Ok(got) => got,
            Err(e) => {
                wrong.push(format!("{:?}: {e}", row.text));
                continue;
            }
        };
        let types = row.type_ids.as_ref().is_none_or(|t| *t == got.type_ids);
        let offsets = row.offsets.as_ref().is_none_or(|o| *o == got.offsets);
        if got.ids != row.ids || !types || !offsets {
            wrong.push(format!(
                "{:?} + {:?} (at most {:?})\n  ids      {:?}\n  expected {:?}\n  types    {:?}\n  expected {:?}\n  \
                 offsets  {:?}\n  expected {:?}",
                row.text,
                row.text_pair,
                row.max_length,
                got.ids,
                row.ids,
                got.type_ids,
                row.type_ids,
                got.offsets,
                row.offsets
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{name} ({}): {} of {} rows differ\n{}",
        tokenizer.origin(),
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
}

#[test]
fn every_case_has_the_ids_of_transformers() {
    for case in cases() {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == REAL {
            continue;
        }
        let rows = rows(&case);
        assert!(!rows.is_empty(), "{name}: no rows");
        check(&name, &open(&case), &rows);
    }
}

/// The directory of the real model, or why there is none.
fn real_model() -> Option<PathBuf> {
    let (dir, why) = match std::env::var_os("QBERTA_MODEL_V3_XSMALL") {
        Some(dir) => (PathBuf::from(dir), "QBERTA_MODEL_V3_XSMALL names it"),
        None => (workspace().join("target/models/deberta-v3-xsmall"), "QBERTA_MODEL_V3_XSMALL is not set"),
    };
    if dir.join("spm.model").is_file() {
        return Some(dir);
    }
    let required = std::env::var("QBERTA_REQUIRE_MODELS").is_ok_and(|v| v == "1");
    assert!(!required, "{} holds no spm.model ({why}), and QBERTA_REQUIRE_MODELS=1", dir.display());
    eprintln!("skipped: {} holds no spm.model ({why})", dir.display());
    None
}

#[test]
fn the_real_vocabulary_gives_the_same_ids_from_json_and_from_spm() {
    let Some(dir) = real_model() else { return };
    let rows = rows(&workspace().join("testdata/tokenizers").join(REAL));
    assert!(rows.len() >= 24, "{REAL}: {} rows", rows.len());

    let whole = open(&dir);
    if dir.join("tokenizer.json").is_file() {
        assert_eq!(whole.origin(), "tokenizer.json");
        check(REAL, &whole, &rows);
    } else {
        eprintln!("skipped: {} holds no tokenizer.json", dir.display());
    }

    let spm = fs::read(dir.join("spm.model")).expect("spm.model");
    let alone = Tokenizer::from_files(|name| (name == "spm.model").then(|| spm.clone()));
    let alone = alone.expect("spm.model alone").expect("spm.model alone");
    assert_eq!(alone.origin(), "spm.model");
    assert_eq!(alone.mask(), Some((128_000, "[MASK]".to_owned())));
    assert_eq!(alone.pad_id(), Some(0));
    assert_eq!(alone.vocabulary(), 128_001);
    check(REAL, &alone, &rows);
}

/// What holds for every encoding of every text.
fn check_shape(got: &Encoded, texts: &[&str]) {
    let n = got.ids.len();
    assert_eq!([got.type_ids.len(), got.offsets.len(), got.segment.len(), got.words.len()], [n; 4]);
    let mut last = [(0, 0); 2];
    for (&(start, end), segment) in got.offsets.iter().zip(&got.segment) {
        let Some(segment) = segment else {
            assert_eq!((start, end), (0, 0), "offsets of a special token");
            continue;
        };
        let segment = usize::from(*segment);
        let characters = texts[segment].chars().count();
        assert!(start <= end && end <= characters, "({start}, {end}) of {characters} in {texts:?}");
        // An empty token is the space that byte-level BPE puts before a word, cut away from the offsets.
        if start == end {
            continue;
        }
        assert!(
            start >= last[segment].0 && end >= last[segment].1,
            "{:?} then ({start}, {end}) in {texts:?}",
            last[segment]
        );
        last[segment] = (start, end);
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,40}",
        ".{0,40}",
        "[a-z A-Z.,!?'\\-]{0,80}",
        "( |\t|\n|\u{3000}|\u{200b}|\u{a0}|▁|[a-c]){0,30}",
        "([A-Za-z]|\u{301}|\u{302}|\u{e9}|\u{fb01}|\u{ff76}|\u{ff9e}|\u{1f468}|\u{200d}|\u{1f469}|\u{0}|\u{feff}){0,30}",
        "(\\[CLS\\]|\\[MASK\\]|<mask>|</s>|<s>|\\[UNK\\]|##|<0x41>| |x){0,12}",
    ]
}

/// Parts that each begin with the last `stride` ids of the one before, put together again.
fn join(parts: &[Vec<u32>], stride: usize) -> Option<Vec<u32>> {
    let mut all: Vec<u32> = parts.first()?.clone();
    for part in &parts[1..] {
        let (shared, new) = part.split_at_checked(stride)?;
        if !all.ends_with(shared) {
            return None;
        }
        all.extend(new);
    }
    Some(all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics_and_offsets_stay_in_order_inside_it(
        text in any_text(),
        pair in proptest::option::of(any_text()),
        limit in proptest::option::of(4usize..24),
    ) {
        thread_local! {
            static ALL: Vec<Tokenizer> = cases()
                .iter()
                .filter(|case| !case.ends_with(REAL))
                .map(|case| open(case))
                .collect();
        }
        ALL.with(|all| for tokenizer in all {
            let got = tokenizer.encode(&text, pair.as_deref(), limit).expect("an encoding");
            check_shape(&got, &[&text, pair.as_deref().unwrap_or("")]);
            assert!(limit.is_none_or(|limit| got.ids.len() <= limit));
            let whole = tokenizer.encode(&text, pair.as_deref(), None).expect("an encoding");
            assert_eq!(got.truncated, got.ids.len() < whole.ids.len());
            assert!(!whole.truncated);
            tokenizer.decode(&whole.ids).expect("a text");
        });
    }

    #[test]
    fn windows_cover_the_context_and_overlap_by_the_stride(
        question in "[a-z ]{0,6}",
        context in any_text(),
        width in 1usize..12,
        stride in 0usize..4,
    ) {
        thread_local! {
            static ALL: Vec<Tokenizer> = cases()
                .iter()
                .filter(|case| !case.ends_with(REAL))
                .map(|case| open(case))
                .collect();
        }
        ALL.with(|all| for tokenizer in all {
            let part = |e: &Encoded| -> Vec<u32> {
                e.ids.iter().zip(&e.segment).filter(|(_, s)| **s == Some(1)).map(|(&id, _)| id).collect()
            };
            let whole = tokenizer.encode(&question, Some(&context), None).expect("an encoding");
            let all = part(&whole);
            let limit = whole.ids.len() - all.len() + width;
            let windows = match tokenizer.windows(&question, &context, limit, stride) {
                Ok(windows) => windows,
                Err(_) => { assert!(stride >= width); continue }
            };
            let parts: Vec<Vec<u32>> = windows.iter().map(part).collect();
            // A tokenizer that truncates on the left gives the last window first, as transformers does.
            let backwards: Vec<Vec<u32>> = parts.iter().rev().cloned().collect();
            assert!([parts, backwards].iter().any(|parts| join(parts, stride).as_ref() == Some(&all)));
            for window in &windows {
                assert!(window.ids.len() <= limit);
                assert_eq!(window.truncated, windows.len() > 1);
                check_shape(window, &[&question, &context]);
            }
        });
    }
}
