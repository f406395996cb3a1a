//! Reopen an artefact and make it prove itself: manifest, files, structure, probes, in that order.

use crate::probe;
use qberta_kernels::Context;
use qberta_model::{Error, Result};
use qberta_store::checkpoint::Checkpoint;
use qberta_store::load::{CONFIG, safe_name};
use qberta_store::manifest::{self, Manifest};
use qberta_store::{Source, digest, whole};
use std::path::Path;

/// What was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Files whose digests agree.
    pub files: usize,
    /// Tensors whose digests agree.
    pub tensors: usize,
    /// Probes replayed, each alone and all in one batch.
    pub probes: usize,
    /// Files beside the artefact that the manifest does not know.
    pub unlisted: Vec<String>,
}

/// Checks the artefact at `dir`.
///
/// Errors: the first difference found. Kind `Mismatch` or `Corrupt` means the artefact is not what was
/// written; `Io` and `Input` that there is no artefact to check.
pub fn verify(dir: &Path, cx: &Context) -> Result<Verified> {
    verify_at(dir, cx)
}

pub(crate) fn verify_at(dir: &Path, cx: &Context) -> Result<Verified> {
    let path = dir.join(manifest::NAME);
    let bytes = whole::read(&path, whole::LARGE).map_err(|e| {
        let error = Error::io("cannot read the manifest of an artefact", path.display(), &e);
        match whole::text(&dir.join(CONFIG), whole::SMALL) {
            Ok(config) if config.contains("quantization_config") => error.hint(
                "config.json says that this is quantized: if it was an artefact, its manifest is lost. Copy it back, \
                 or quantize the float checkpoint again",
            ),
            Ok(_) => {
                error.hint("this looks like a float checkpoint; `qberta quantize` makes an artefact of it")
            }
            Err(_) => error.hint("pass a directory that `qberta quantize` wrote"),
        }
    })?;
    let manifest = Manifest::parse(&bytes, true).map_err(|e| e.at(dir.display()))?;
    check_files(dir, &manifest)?;
    let source = Source::open(dir, None)?;
    for (name, recorded) in &manifest.tensors {
        let found = source.tensors.get(name).map(digest::of_tensor);
        if found.as_ref() != Some(recorded) {
            return Err(Error::mismatch("tensor differs from its digest").at(name).at(dir.display()));
        }
    }
    let loaded = source.load(cx)?;
    probe::replay(&loaded.model, &manifest.probes, cx).map_err(|e| e.at(dir.display()))?;
    Ok(Verified {
        files: manifest.files.len() + 1,
        tensors: manifest.tensors.len(),
        probes: manifest.probes.len(),
        unlisted: unlisted(dir, &manifest),
    })
}

/// Checks the digests of the files of the artefact at `dir`, if it is one: what proves something about a model
/// must not start from a damaged one.
///
/// Errors: the first file that is not as it was written.
pub fn check_digests(dir: &Path) -> Result<()> {
    let Ok(bytes) = whole::read(&dir.join(manifest::NAME), whole::LARGE) else { return Ok(()) };
    check_files(dir, &Manifest::parse(&bytes, true).map_err(|e| e.at(dir.display()))?)
}

fn check_files(dir: &Path, manifest: &Manifest) -> Result<()> {
    for (name, record) in &manifest.files {
        let path = dir.join(safe_name(name)?);
        // Sizes before digests: a file without end has none.
        let size = match std::fs::metadata(&path) {
            Ok(about) if about.is_file() => about.len(),
            _ => return Err(Error::mismatch("file of the artefact is missing").at(path.display())),
        };
        if size != record.bytes {
            return Err(Error::mismatch("file has another size")
                .at(path.display())
                .expected(format!("{} bytes", record.bytes))
                .found(format!("{size} bytes")));
        }
        let (sha256, _) = digest::of_file(&path)?;
        if sha256 != record.sha256 {
            let mut error = Error::mismatch("file differs from its digest")
                .at(path.display())
                .expected(format!("sha256 {}", record.sha256))
                .found(sha256);
            if let Some(tensor) = first_damaged(&path, manifest) {
                error = error.hint(tensor);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Names the first tensor of a damaged weight file that is not what was written.
fn first_damaged(path: &Path, manifest: &Manifest) -> Option<String> {
    if path.extension()? != "safetensors" {
        return None;
    }
    let checkpoint = match Checkpoint::open(path) {
        Ok(c) => c,
        Err(e) => return Some(format!("the header is damaged: {e}")),
    };
    manifest
        .tensors
        .iter()
        .find(|(n, d)| checkpoint.tensors.get(*n).map(digest::of_tensor).as_ref() != Some(d))
        .map(|(n, _)| format!("the first damaged tensor is {n}"))
}

fn unlisted(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|e| e.path().is_file())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n != manifest::NAME && n != ".lock" && !manifest.files.contains_key(n))
        .collect();
    names.sort();
    names
}
