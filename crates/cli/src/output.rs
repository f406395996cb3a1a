//! Files that a verb writes beside what it prints.

use qberta_model::{Error, Result};
use std::fs::{File, OpenOptions};
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
