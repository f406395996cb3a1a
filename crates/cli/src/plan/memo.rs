//! The state file of a plan: read, checked, and replaced as a whole whenever something was measured.

use qberta_model::{Error, Result};
use qberta_store::digest;
use qberta_toolkit::select::{Drop, Palette, State};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What was measured, kept in a file if there is one.
pub struct Memo {
    pub state: State,
    path: Option<PathBuf>,
}

impl Memo {
    /// Reads the state at `path`, if there is a file that holds something.
    ///
    /// Errors: a file that is no state of `subject`; a path that cannot be read or written.
    pub fn open(
        path: Option<&Path>,
        subject: &BTreeMap<String, String>,
        palette: &Palette,
        examples: usize,
    ) -> Result<Memo> {
        let new = || State::new(subject.clone());
        let Some(path) = path else { return Ok(Memo { state: new(), path: None }) };
        let at = |e: Error| e.at(path.display());
        let state = match std::fs::read(path) {
            Ok(bytes) if !bytes.is_empty() => State::parse(&bytes, subject, palette, examples).map_err(at)?,
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("cannot read the state", path.display(), &e));
            }
            _ => new(),
        };
        let memo = Memo { state, path: Some(path.to_owned()) };
        memo.save()?;
        Ok(memo)
    }

    /// Writes the state beside its file and moves it there, so that an interruption leaves the old or the new one.
    ///
    /// Errors: a directory that cannot be written, a full disk.
    pub fn save(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let beside = path.with_file_name(name);
        let io = |e: &std::io::Error| Error::io("cannot write the state", path.display(), e);
        std::fs::write(&beside, self.state.bytes()).map_err(|e| io(&e))?;
        std::fs::rename(&beside, path).map_err(|e| {
            let _ = std::fs::remove_file(&beside);
            io(&e)
        })
    }

    /// The drop known under `key`, or the one that `measure` finds.
    pub fn drop(&mut self, key: &str, measure: impl FnOnce() -> Result<Drop>) -> Result<Drop> {
        if let Some(known) = self.known(key) {
            return Ok(known);
        }
        let found = measure()?;
        self.state.drops.insert(digest::of_bytes(key.as_bytes()), found);
        self.save()?;
        Ok(found)
    }

    /// The drop known under `key`.
    pub fn known(&self, key: &str) -> Option<Drop> {
        self.state.drops.get(&digest::of_bytes(key.as_bytes())).copied()
    }
}
