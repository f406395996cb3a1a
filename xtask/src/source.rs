//! The files of the repository, as text.

use crate::root;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file below the repository that belongs to it: no build outputs, no hidden directories.
pub fn files() -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() {
                let ours = [".ci", ".cargo", ".github"].contains(&&*name);
                if ours || !(name.starts_with('.') || name == "target" || name == "__pycache__") {
                    walk(&path, out);
                }
            } else {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root(), &mut out);
    out.sort();
    out
}

/// The path as a reader of the repository would write it.
pub fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// Files with one of these extensions, with their text.
pub fn texts(extensions: &[&str]) -> Vec<(String, String)> {
    let wanted = |p: &&PathBuf| p.extension().is_some_and(|e| extensions.iter().any(|x| e == *x));
    files().iter().filter(wanted).filter_map(|p| Some((name(p), fs::read_to_string(p).ok()?))).collect()
}

/// Whether a file holds only tests: under `tests/`, or named `tests.rs` or `testing.rs`.
pub fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("/testing.rs")
}

/// The text before its `#[cfg(test)] mod tests {`, which by house style stands at the foot.
pub fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {").map_or(text, |at| &text[..at])
}

/// A line up to its comment. Strings with two slashes are cut too; no check here minds.
pub fn code(line: &str) -> &str {
    line.find("//").map_or(line, |at| &line[..at])
}

/// Prints the ten longest source files, tests not counted.
pub fn size() -> crate::Outcome {
    let mut sizes: Vec<(usize, String)> = texts(&["rs", "py"])
        .into_iter()
        .filter(|(name, _)| !is_test(name))
        .map(|(name, text)| (without_tests(&text).lines().count(), name))
        .collect();
    sizes.sort_by(|a, b| b.cmp(a));
    for (lines, name) in sizes.iter().take(10) {
        println!("{lines:>6}  {name}");
    }
    Ok(true)
}
