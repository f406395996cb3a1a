//! A directory or file that appears whole or not at all: written beside its target, synced, proven, renamed.

use qberta_model::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A directory under construction. Dropped before [`Staging::publish`], it is removed; killed, it leaves
/// a hidden directory that the next attempt on the same target recognises (its lock is free) and clears.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    path: PathBuf,
    /// Held while this process works; the operating system frees it when the process dies.
    lock: Option<File>,
}

const LOCK: &str = ".lock";

impl Staging {
    /// Prepares to write `target`, which must not exist or be an empty directory.
    ///
    /// Errors: a target with content, a parent that is missing or cannot be written, another process at
    /// work on the same target.
    pub fn begin(target: &Path) -> Result<Staging> {
        check_target(target)?;
        let parent = parent_of(target);
        let name = target
            .file_name()
            .ok_or_else(|| Error::input("output is not a directory name").at(target.display()))?;
        let prefix = format!(".{}.qberta-partial", name.to_string_lossy());
        clear_abandoned(&parent, &prefix, target)?;
        let path = parent.join(format!("{prefix}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| Error::io("cannot create a directory", parent.display(), &e))?;
        let mut staging = Staging { target: target.to_owned(), path, lock: None };
        let lock_path = staging.path.join(LOCK);
        let lock =
            File::create(&lock_path).map_err(|e| Error::io("cannot create", lock_path.display(), &e))?;
        // Where the file system has no locks, abandoned directories are simply not cleared.
        let _ = lock.try_lock();
        staging.lock = Some(lock);
        Ok(staging)
    }

    /// Prepares to write the single file `target`, which must not exist.
    ///
    /// Errors: those of [`Staging::begin`], and a directory in its place.
    pub fn begin_file(target: &Path) -> Result<Staging> {
        check_file_target(target)?;
        Staging::begin(target)
    }

    /// The directory under construction.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes and syncs one file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("cannot create", parent.display(), &e))?;
        }
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|e| Error::io("cannot write", self.target.join(name).display(), &e))
    }

    /// Renames the finished directory into place and syncs its parent.
    pub fn publish(mut self) -> Result<()> {
        check_target(&self.target)?;
        let io = |e: std::io::Error| {
            Error::io("cannot move the finished directory into place", self.target.display(), &e)
        };
        fs::remove_file(self.path.join(LOCK)).map_err(io)?;
        sync_dir(&self.path).map_err(io)?;
        fs::rename(&self.path, &self.target).map_err(io)?;
        sync_dir(&parent_of(&self.target)).map_err(io)?;
        self.lock = None;
        self.path = PathBuf::new(); // published: nothing left to remove
        Ok(())
    }

    /// Moves the finished file `name` of a staging begun with [`Staging::begin_file`] into place. The name
    /// is taken with an empty file first, which fails where there is one already: nothing is overwritten.
    pub fn publish_file(self, name: &str) -> Result<()> {
        check_file_target(&self.target)?;
        let io = |e: std::io::Error| {
            Error::io("cannot move the finished file into place", self.target.display(), &e)
        };
        File::create_new(&self.target).map_err(io)?;
        fs::rename(self.path.join(name), &self.target).map_err(|e| {
            let _ = fs::remove_file(&self.target); // the empty one
            io(e)
        })?;
        sync_dir(&parent_of(&self.target)).map_err(io)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Best effort: the error that brought us here is the one to report.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The error for a target that already holds something, before any work is done.
pub fn check_target(target: &Path) -> Result<()> {
    if fs::symlink_metadata(target).is_ok_and(|m| m.is_symlink()) {
        return Err(Error::input("output is a symbolic link").at(target.display()).hint(
            "a finished directory is renamed into place, and cannot take that of a link: name a directory",
        ));
    }
    match fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::input("output directory is not empty")
                .at(target.display())
                .hint("choose another directory or remove this one; nothing is ever overwritten")),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => check_parent(target),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            check_parent(target)?;
            Err(Error::input("output exists and is not a directory").at(target.display()))
        }
        Err(e) => Err(Error::io("cannot look at the output directory", target.display(), &e)),
    }
}

/// The error for a target whose parent is no directory.
fn check_parent(target: &Path) -> Result<()> {
    let parent = parent_of(target);
    if parent.is_dir() {
        return Ok(());
    }
    Err(Error::input("parent of the output is not a directory")
        .at(target.display())
        .expected("an existing directory")
        .found(parent.display())
        .hint("create the parent directory first"))
}

/// The error for an output file whose name is taken.
pub fn check_file_target(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(found) => {
            let what = if found.is_dir() { "output file is a directory" } else { "output file exists" };
            Err(Error::input(what)
                .at(target.display())
                .hint("choose another name or remove this one; nothing is ever overwritten"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("cannot look at the output file", target.display(), &e)),
    }
}

fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Removes what killed attempts left; an attempt that still runs holds its lock and is an error.
fn clear_abandoned(parent: &Path, prefix: &str, target: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let busy = File::open(entry.path().join(LOCK))
            .is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        if busy {
            return Err(Error::input("another process is writing this output").at(target.display()));
        }
        fs::remove_dir_all(entry.path())
            .map_err(|e| Error::io("cannot clear an abandoned attempt", entry.path().display(), &e))?;
    }
    Ok(())
}

/// Makes the entries of a directory durable. A no-op where directories cannot be opened.
fn sync_dir(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let staging = Staging::begin(&out).unwrap();
        staging.write("a", b"1").unwrap();
        assert!(!out.exists());
        staging.publish().unwrap();
        assert_eq!(fs::read(out.join("a")).unwrap(), b"1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the result is left");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "the lock is not part of the result");
    }

    #[test]
    fn an_error_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::begin(&dir.path().join("out")).unwrap();
        staging.write("a", b"1").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_appears_whole_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.pt");
        let (staging, late) = (Staging::begin_file(&out).unwrap(), dir.path().join("late.pt"));
        staging.write("a", b"1").unwrap();
        assert!(!out.exists());
        staging.publish_file("a").unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the result is left");
        assert!(Staging::begin_file(&out).unwrap_err().to_string().contains("exists"));
        assert!(Staging::begin_file(dir.path()).unwrap_err().to_string().contains("is a directory"));
        // Somebody else took the name in the meantime.
        let staging = Staging::begin_file(&late).unwrap();
        staging.write("a", b"1").unwrap();
        fs::write(&late, b"theirs").unwrap();
        assert!(staging.publish_file("a").is_err());
        assert_eq!(fs::read(&late).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_killed_attempt_is_cleared_and_a_running_one_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let abandoned = dir.path().join(".out.qberta-partial-999999999");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("model.safetensors"), b"half").unwrap();
        let running = Staging::begin(&out).unwrap();
        assert!(!abandoned.exists());
        let second = Staging::begin(&out).unwrap_err();
        assert!(second.to_string().contains("another process"), "{second}");
        running.publish().unwrap();
    }

    #[test]
    fn content_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), b"precious").unwrap();
        let error = Staging::begin(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
        let file = dir.path().join("mine");
        assert!(Staging::begin(&file).unwrap_err().to_string().contains("not a directory"));
    }
}
