//! Finds the weights of a model directory and reads them, whatever container they came in.
//!
//! Four layouts exist in the wild: one file or an index with shards, each as safetensors or as a PyTorch
//! zip. Safetensors win where both exist: they need no pickle. What a file is, its first bytes decide, not
//! its name. Invariant: an index can only lead to files inside its own directory.

use crate::safetensors::{self, UniqueMap, show};
use crate::tensor::Tensor;
use crate::torch::{self, Container, StateDict};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Names looked for in a directory, in this order.
pub const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Longest index accepted, in bytes; about 100 bytes name a tensor.
pub const MAX_INDEX_BYTES: usize = 32 << 20;

const DOWNLOAD: &str = "download the model again, or check the path";

/// The tensors of a model, with where they came from.
#[derive(Debug)]
pub struct Checkpoint {
    /// Every tensor by its name in the files.
    pub tensors: BTreeMap<String, Tensor>,
    /// The weight files that were read; shards sorted by name. An index is not a weight file.
    pub files: Vec<PathBuf>,
    /// The directory that holds them, where `config.json` is expected.
    pub dir: PathBuf,
    /// Entries of the files that hold no tensor, by name.
    pub skipped: Vec<String>,
}

impl Checkpoint {
    /// Reads the weights at `path`: a model directory, a weight file, or an index.
    ///
    /// Errors: nothing to read there (with what was looked for and what was found); an index that leaves
    /// its directory, names a tensor its shard lacks, or whose shards repeat a tensor; whatever
    /// [`safetensors::read_bytes`] and [`torch::read_bytes`] refuse.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let file =
            if std::fs::metadata(path).map_err(|e| Error::io("cannot open", path.display(), &e))?.is_dir() {
                find(path)?
            } else {
                path.to_path_buf()
            };
        let dir = match file.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        if file.extension().is_some_and(|e| e == "json") {
            return open_index(&file, dir);
        }
        let StateDict { tensors, skipped } = read_weights(&file)?;
        Ok(Checkpoint { tensors, files: vec![file], dir, skipped })
    }
}

/// The first of [`WEIGHT_FILES`] that exists in `dir`.
fn find(dir: &Path) -> Result<PathBuf> {
    if let Some(name) = WEIGHT_FILES.iter().find(|name| dir.join(name).exists()) {
        return Ok(dir.join(name));
    }
    const LISTED: usize = 20;
    let listing = std::fs::read_dir(dir).map_err(|e| Error::io("cannot list", dir.display(), &e))?;
    // 10 000 is only there to end: a directory may be somebody's mail spool.
    let mut names: Vec<String> = listing
        .take(10_000)
        .filter_map(|entry| Some(show(&entry.ok()?.file_name().to_string_lossy())))
        .collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    let found = match (names.is_empty(), more) {
        (true, _) => "an empty directory".to_string(),
        (false, 0) => names.join(", "),
        (false, _) => format!("{} and {more} more", names.join(", ")),
    };
    Err(Error::input("directory holds no weights")
        .at(dir.display())
        .expected(format!("one of {}", WEIGHT_FILES.join(", ")))
        .found(found)
        .hint(DOWNLOAD))
}

/// The tensors of one weight file, whichever container it is.
fn read_weights(path: &Path) -> Result<StateDict> {
    let file = map_file(path)?;
    let read = || {
        refuse_stand_in(&file)?;
        if torch::container(&file) != Container::Other {
            return torch::read_bytes(&file);
        }
        // A safetensors file has its header's first brace here; a damaged one deserves that reader's message.
        if file.get(8) == Some(&b'{') || path.extension().is_some_and(|e| e == "safetensors") {
            return Ok(StateDict { tensors: safetensors::read_bytes(&file)?, skipped: Vec::new() });
        }
        torch::read_bytes(&file)
    };
    read().map_err(|e| e.at(path.display()))
}

/// Recognises what lands on a disk in place of a weight file.
fn refuse_stand_in(file: &[u8]) -> Result<()> {
    if file.is_empty() {
        return Err(Error::corrupt("file is empty").hint(DOWNLOAD));
    }
    if file.starts_with(b"version https://git-lfs") {
        return Err(Error::corrupt("file is a Git LFS pointer, not the weights themselves")
            .hint("run `git lfs pull` in the model's repository"));
    }
    let start: Vec<u8> = file.iter().take(64).map(u8::to_ascii_lowercase).collect();
    if start.starts_with(b"<!doctype") || start.starts_with(b"<html") {
        return Err(Error::corrupt("file is a web page, not weights").hint(DOWNLOAD));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

fn open_index(path: &Path, dir: PathBuf) -> Result<Checkpoint> {
    let weight_map = read_index(path)?;
    let at = |e: Error| e.at(path.display());
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(at(Error::corrupt("index names no tensors")));
    }
    // All names are judged before any file is touched.
    for shard in shards.keys() {
        check_inside(shard).map_err(at)?;
    }
    let several = shards.len() > 1;
    let mut whole = Checkpoint { tensors: BTreeMap::new(), files: Vec::new(), dir, skipped: Vec::new() };
    for (shard, listed) in shards {
        let file = whole.dir.join(shard);
        if !file.exists() {
            return Err(at(Error::corrupt("shard is missing").at(show(shard)).hint(DOWNLOAD)));
        }
        let StateDict { tensors, skipped } = read_weights(&file)?;
        if let Some(absent) = listed.iter().find(|name| !tensors.contains_key(**name)) {
            return Err(at(Error::corrupt("shard lacks a tensor that the index places there")
                .at(show(absent))
                .at(show(shard))));
        }
        for (name, tensor) in tensors {
            if whole.tensors.contains_key(&name) {
                return Err(at(Error::corrupt("two shards hold the same tensor")
                    .at(show(&name))
                    .at(show(shard))));
            }
            whole.tensors.insert(name, tensor);
        }
        whole.skipped.extend(skipped.into_iter().map(|s| if several { format!("{shard}: {s}") } else { s }));
        whole.files.push(file);
    }
    Ok(whole)
}

/// Tensor name to shard name, as the index at `path` has it.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = map_file(path)?;
    let read = || {
        refuse_stand_in(&text)?;
        if text.len() > MAX_INDEX_BYTES {
            return Err(Error::corrupt("index is too long")
                .expected(format!("at most {MAX_INDEX_BYTES} bytes"))
                .found(text.len()));
        }
        let index: Index = serde_json::from_slice(&text).map_err(|e| {
            Error::corrupt("index of shards is not what Hugging Face writes")
                .found(e)
                .hint("for anything but an index, pass the directory that holds it, or a weight file")
        })?;
        Ok(index.weight_map.0)
    };
    read().map_err(|e| e.at(path.display()))
}

/// Refuses a shard name that is anything but a plain relative path.
fn check_inside(shard: &str) -> Result<()> {
    // Backslash and colon are harmless here and mean a path elsewhere; no shard needs them.
    let plain = !shard.is_empty()
        && !shard.contains(['\\', ':', '\0'])
        && Path::new(shard).components().all(|c| matches!(c, Component::Normal(_)));
    if plain {
        return Ok(());
    }
    Err(Error::corrupt("index leads outside its directory").found(show(shard)))
}

/// Maps a regular file; anything else (a directory, a pipe that would block) is refused.
pub(crate) fn map_file(path: &Path) -> Result<Bytes> {
    let io = |e: std::io::Error| Error::io("cannot read", path.display(), &e);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::input("not a file").at(path.display()));
    }
    Bytes::map(path).map_err(io)
}

#[cfg(test)]
mod tests;
