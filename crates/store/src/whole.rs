//! Files read whole: only regular ones (a pipe would wait for ever), only up to a size.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Largest configuration, recipe or setting. A configuration with 65 536 labels has 5 MB.
pub const SMALL: u64 = 16 << 20;

/// Largest manifest or companion file. XLM-RoBERTa's tokenizer.json, the largest known, has 17 MB.
pub const LARGE: u64 = 64 << 20;

/// The bytes of the file at `path`.
///
/// Errors: those of the operating system; `InvalidData` for what is no regular file or has more than `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let wrong = |what: String| Err(Error::new(ErrorKind::InvalidData, what));
    let about = std::fs::metadata(path)?;
    if about.is_dir() {
        return wrong("it is a directory, not a file".into());
    }
    if !about.is_file() {
        return wrong("it is not a regular file".into());
    }
    let mut bytes = Vec::new();
    // A file may grow while it is read.
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return wrong(format!("it has {} bytes, and at most {most} are read", about.len()));
    }
    Ok(bytes)
}

/// The text of the file at `path`; errors as [`read`], and `InvalidData` for what is not UTF-8.
pub fn text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_kind_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "1234").unwrap();
        assert_eq!(text(&file, 4).unwrap(), "1234");
        assert_eq!(read(&file, 3).unwrap_err().kind(), ErrorKind::InvalidData);
        assert!(read(dir.path(), 9).unwrap_err().to_string().contains("directory"));
        std::fs::write(&file, [0xff]).unwrap();
        assert!(text(&file, 9).unwrap_err().to_string().contains("UTF-8"));
    }
}
