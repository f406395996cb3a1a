//! House rules that no compiler knows. Each finding is one line: where, what, and what the rule is for.

use crate::source::{code, files, is_test, name, texts, without_tests};
use crate::{Outcome, root};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Lines of a source file without its tests: above the first it is named, above the second refused.
const LONG: usize = 500;
const TOO_LONG: usize = 700;

/// Bytes of a file that nobody declared to be data.
const LARGEST: u64 = 1 << 20;
const DATA: [&str; 2] = ["crates/cli/assets/", "testdata/"];

/// What each crate may depend on inside the workspace: the fences of ARCHITECTURE.md.
const FENCES: [(&str, &[&str]); 8] = [
    ("kernels", &[]),
    ("model", &["kernels"]),
    ("store", &["kernels", "model"]),
    ("toolkit", &["kernels", "model", "store"]),
    ("runtime", &["kernels", "model", "store"]),
    ("cli", &["kernels", "model", "store", "toolkit", "runtime"]),
    ("qberta", &["kernels", "model", "store", "toolkit", "runtime", "cli"]),
    ("xtask", &[]),
];

/// Verbs of `trait Engine` that only the forward may call.
const VERBS: [&str; 4] = [".add_norm(", ".attend(", ".linear_activate(", ".lookup("];

/// FORMAT.md describes this file and records its hash, so that neither changes alone.
const FORMAT: &str = "FORMAT.md";
const DESCRIBED: &str = "crates/store/src/manifest.rs";
const MARK: &str = "<!-- manifest.rs sha256: ";

/// Checks every rule.
pub fn tidy() -> Outcome {
    let rust = texts(&["rs"]);
    let mut findings = Vec::new();
    one_forward(&rust, &mut findings);
    unsafe_only_in_kernels(&rust, &mut findings);
    one_writer(&rust, &mut findings);
    fences(&mut findings);
    guards(&rust, &mut findings);
    format_hash(&mut findings);
    unfinished(&rust, &mut findings);
    lengths(&rust, &mut findings);
    machine_paths(&mut findings);
    large_files(&mut findings);
    for finding in &findings {
        println!("tidy: {finding}");
    }
    if findings.is_empty() {
        println!("tidy: nothing to say");
    }
    Ok(findings.is_empty())
}

type Texts = [(String, String)];

/// Lines of code with their numbers, comments and test modules left out.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    without_tests(text).lines().enumerate().map(|(i, line)| (i + 1, code(line)))
}

fn in_crates(name: &str) -> bool {
    name.starts_with("crates/") && name.contains("/src/")
}

fn one_forward(rust: &Texts, findings: &mut Vec<String>) {
    for (name, text) in rust.iter().filter(|(n, _)| in_crates(n) && !is_test(n)) {
        let allowed =
            ["forward.rs", "native.rs", "engine.rs"].iter().any(|f| *name == format!("crates/model/src/{f}"));
        if allowed || text.contains(" Engine for ") {
            continue;
        }
        for (number, line) in lines(text) {
            if let Some(verb) = VERBS.iter().find(|v| line.contains(**v)) {
                findings.push(format!(
                    "{name}:{number}: calls {verb}..): the network is defined in model/src/forward.rs only"
                ));
            }
        }
    }
}

fn unsafe_only_in_kernels(rust: &Texts, findings: &mut Vec<String>) {
    for (name, text) in
        rust.iter().filter(|(n, _)| !n.starts_with("crates/kernels/") && !n.starts_with("xtask/"))
    {
        for (number, line) in text.lines().enumerate() {
            if code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                findings.push(format!("{name}:{}: unsafe code belongs in crates/kernels", number + 1));
            }
        }
    }
}

/// A half-written artefact must not be possible: libraries write through the store's staging only.
fn one_writer(rust: &Texts, findings: &mut Vec<String>) {
    const WRITES: [&str; 4] = ["fs::write(", "File::create(", "OpenOptions::new(", "fs::rename("];
    let library =
        |n: &str| in_crates(n) && !is_test(n) && !n.starts_with("crates/cli/") && !n.ends_with("/atomic.rs");
    for (name, text) in rust.iter().filter(|(n, _)| library(n)) {
        for (number, line) in lines(text) {
            if let Some(call) = WRITES.iter().find(|w| line.contains(**w)) {
                findings.push(format!("{name}:{number}: {call}..): only store/src/atomic.rs writes"));
            }
        }
    }
}

/// Names of dependencies by section, from the lines of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.trim_end_matches(']').ends_with("dependencies");
        } else if inside && !line.starts_with('#') {
            let key = line.split(['=', '.', ' ']).next().unwrap_or("").trim();
            found.insert(key.to_owned());
        }
    }
    found.remove("");
    found
}

fn fences(findings: &mut Vec<String>) {
    let fences: BTreeMap<_, _> = FENCES.into_iter().collect();
    let mut seen = BTreeSet::new();
    for (path, text) in texts(&["toml"]) {
        let Some(dir) =
            path.strip_suffix("/Cargo.toml").filter(|d| d.starts_with("crates/") || *d == "xtask")
        else {
            continue;
        };
        let package = dir.trim_start_matches("crates/");
        let Some(allowed) = fences.get(package) else {
            findings.push(format!(
                "{path}: a crate that no fence is written for (xtask/src/tidy.rs, ARCHITECTURE.md)"
            ));
            continue;
        };
        seen.insert(package.to_owned());
        for dependency in dependencies(&text) {
            let inner = dependency.strip_prefix("qberta-").or((dependency == "qberta").then_some("qberta"));
            if inner.is_some_and(|d| !allowed.contains(&d)) {
                findings.push(format!("{path}: {package} must not know {dependency}"));
            }
            if dependency == "clap" && !["cli", "qberta"].contains(&package) {
                findings.push(format!("{path}: clap belongs to the command line"));
            }
        }
    }
    for package in fences.keys().filter(|p| !seen.contains(**p)) {
        findings.push(format!("crate {package} has a fence and no Cargo.toml"));
    }
}

/// What stands in backticks after `Guard:`, up to the end of the paragraph.
fn guard_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for paragraph in text.split("\n\n").flat_map(|p| p.split("\n- ")) {
        let mut rest = paragraph;
        while let Some((_, after)) = rest.split_once("Guard:") {
            let (here, _) = after.split_once("Guard:").unwrap_or((after, ""));
            names.extend(here.split('`').skip(1).step_by(2).map(str::to_owned));
            rest = after;
        }
    }
    names
}

fn guards(rust: &Texts, findings: &mut Vec<String>) {
    const ARCHITECTURE: &str = "ARCHITECTURE.md";
    let Ok(text) = fs::read_to_string(root().join(ARCHITECTURE)) else {
        findings.push(format!("{ARCHITECTURE} is missing"));
        return;
    };
    let all = files();
    let names = guard_names(&text);
    if names.is_empty() {
        findings.push(format!(
            "{ARCHITECTURE}: no invariant names its guard (a test in backticks after `Guard:`)"
        ));
    }
    for guard in names {
        let word = guard.rsplit("::").next().unwrap_or(&guard).trim_end_matches("()");
        let identifier = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let exists = if identifier && word.contains('_') {
            // A test, or a lint or a rule of a configuration file.
            let function = format!("fn {word}(");
            rust.iter().any(|(_, t)| t.contains(&function)) || lint_is_set(word)
        } else if guard.contains('/')
            || guard.ends_with(".rs")
            || guard.ends_with(".py")
            || guard.ends_with(".toml")
        {
            all.iter().any(|p| {
                name(p).ends_with(guard.trim_end_matches("/*")) || name(p).contains(&format!("{guard}/"))
            })
        } else {
            true // a command (`tidy`, `cargo deny check`) or a word of the text
        };
        if !exists {
            findings.push(format!("{ARCHITECTURE}: the guard `{guard}` does not exist"));
        }
    }
}

fn lint_is_set(word: &str) -> bool {
    texts(&["toml"]).iter().any(|(_, t)| t.lines().any(|l| l.starts_with(word)))
}

fn described_hash() -> Result<String, String> {
    let bytes = fs::read(root().join(DESCRIBED)).map_err(|e| format!("{DESCRIBED}: {e}"))?;
    Ok(Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect())
}

/// Where the recorded hash stands in the text.
fn recorded(text: &str) -> Option<std::ops::Range<usize>> {
    let start = text.find(MARK)? + MARK.len();
    let len = text[start..].find(" -->")?;
    Some(start..start + len)
}

fn format_hash(findings: &mut Vec<String>) {
    let Ok(text) = fs::read_to_string(root().join(FORMAT)) else {
        findings.push(format!("{FORMAT} is missing"));
        return;
    };
    match (recorded(&text), described_hash()) {
        (_, Err(why)) => findings.push(why),
        (None, _) => findings.push(format!("{FORMAT}: no line `{MARK}... -->`")),
        (Some(range), Ok(hash)) if text[range.clone()] != hash => {
            findings.push(format!("{FORMAT}: {DESCRIBED} has changed; bring the page up to date, then `cargo xtask tidy --bless`"));
        }
        _ => {}
    }
}

/// Records the present hash in FORMAT.md: said after the page was read again.
pub fn bless() -> Outcome {
    let path = root().join(FORMAT);
    let mut text = fs::read_to_string(&path).map_err(|e| format!("{FORMAT}: {e}"))?;
    let range = recorded(&text).ok_or_else(|| format!("{FORMAT}: no line `{MARK}... -->`"))?;
    text.replace_range(range, &described_hash()?);
    fs::write(&path, text).map_err(|e| format!("{FORMAT}: {e}"))?;
    tidy()
}

fn unfinished(rust: &Texts, findings: &mut Vec<String>) {
    let macros = [concat!("todo", "!("), concat!("unimplemented", "!(")];
    for (name, text) in rust {
        for (number, line) in text.lines().enumerate() {
            if macros.iter().any(|m| code(line).contains(m)) {
                findings.push(format!("{name}:{}: unfinished; refuse with an error instead", number + 1));
            }
        }
    }
}

fn lengths(rust: &Texts, findings: &mut Vec<String>) {
    for (name, text) in rust.iter().filter(|(n, _)| in_crates(n) && !is_test(n)) {
        let count = without_tests(text).lines().count();
        if count > TOO_LONG {
            findings.push(format!("{name}: {count} lines without tests, at most {TOO_LONG}"));
        } else if count > LONG {
            println!(
                "tidy: note: {name} has {count} lines without tests; {LONG} is where one idea usually ends"
            );
        }
    }
}

fn machine_paths(findings: &mut Vec<String>) {
    let paths = [concat!("/wo", "rk/"), concat!("/t", "mp/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut all = texts(&["md", "rs", "py", "toml", "sh"]);
    all.extend(fs::read_to_string(root().join(".ci/run")).ok().map(|t| (".ci/run".to_owned(), t)));
    for (name, text) in all {
        for (number, line) in text.lines().enumerate() {
            if let Some(path) = paths.iter().find(|p| line.contains(**p)) {
                findings.push(format!("{name}:{}: {path} is a path of one machine", number + 1));
            }
        }
    }
}

fn large_files(findings: &mut Vec<String>) {
    for path in files() {
        let name = name(&path);
        let size = fs::metadata(&path).map_or(0, |m| m.len());
        if size > LARGEST && !DATA.iter().any(|d| name.starts_with(d)) {
            findings.push(format!("{name}: {size} bytes; data lives in {}", DATA.join(" or ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_what_stands_in_backticks_after_the_word() {
        let text = "1. One `forward`. *Guard:* `a_b`, and\n   `c_d` too.\n- Next `e_f`. Guard: `g_h`.\n\nElse `i_j`.";
        assert_eq!(guard_names(text), ["a_b", "c_d", "g_h"]);
    }

    #[test]
    fn dependencies_of_every_section_are_read() {
        let text = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\nb.workspace = true\n# c\n[dev-dependencies]\nd = { path = \"e\" }\n[lints]\nworkspace = true\n";
        assert_eq!(dependencies(text).into_iter().collect::<Vec<_>>(), ["a", "b", "d"]);
    }

    #[test]
    fn the_recorded_hash_is_found() {
        let text = format!("x\n{MARK}abc -->\n");
        assert_eq!(&text[recorded(&text).unwrap()], "abc");
    }
}
