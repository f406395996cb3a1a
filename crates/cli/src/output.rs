//! Files that a verb writes beside what it prints.

use qberta_model::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Opens the file that `option` names, so that a path that cannot be written is found before any work. What
/// it held stays until [`begin`].
///
/// Errors: a file that is one of `read`, a file that cannot be created.
pub fn open(path: &Path, option: &str, read: &[&Path]) -> Result<File> {
    if let Ok(there) = path.canonicalize()
        && read.iter().any(|r| r.canonicalize().is_ok_and(|r| r == there))
    {
        return Err(Error::input("output would overwrite the data that are read")
            .at(option)
            .found(path.display())
            .hint("choose another file"));
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.map_err(|e| Error::io("cannot create", path.display(), &e))
}

/// Empties the file for what is to come. What is no regular file (a pipe, a device) stays as it is.
pub fn begin(file: &File, path: impl std::fmt::Display) -> Result<()> {
    let regular = file.metadata().is_ok_and(|m| m.is_file());
    if regular { file.set_len(0).map_err(|e| Error::io("cannot write", path, &e)) } else { Ok(()) }
}

/// A file to be written at the end of long work. One that did not exist before and was never written is removed.
pub struct Pending<'a> {
    path: &'a Path,
    file: File,
    fresh: bool,
}

impl<'a> Pending<'a> {
    /// As [`open`].
    ///
    /// Errors: those of [`open`].
    pub fn open(path: &'a Path, option: &str, read: &[&Path]) -> Result<Pending<'a>> {
        let fresh = !path.exists();
        Ok(Pending { path, file: open(path, option, read)?, fresh })
    }

    /// Writes the file.
    ///
    /// Errors: a full disk.
    pub fn write(mut self, bytes: &[u8]) -> Result<()> {
        begin(&self.file, self.path.display())?;
        self.fresh = false;
        self.file.write_all(bytes).map_err(|e| Error::io("cannot write", self.path.display(), &e))
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.fresh {
            let _ = std::fs::remove_file(self.path);
        }
    }
}
