//! Where tokenizer files come from: a directory, or bytes somebody already holds. Every size is bounded here.

use std::io::ErrorKind;
use std::path::Path;

use qberta_model::error::{Error, Result};
use qberta_store::whole;
use serde_json::{Map, Value};

/// Largest vocabulary file (tokenizer.json, *.model, vocab.*, merges.txt). XLM-RoBERTa's tokenizer.json, the
/// largest of the families served here, has 17 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Largest of the small JSON files, which are held as a tree of values.
const MAX_SMALL_BYTES: u64 = 8 << 20;

type Lookup<'a> = dyn Fn(&str, u64) -> Result<Option<Vec<u8>>> + 'a;

/// Named bytes with bounds.
pub(super) struct Source<'a>(Box<Lookup<'a>>);

impl<'a> Source<'a> {
    pub(super) fn directory(dir: &'a Path) -> Self {
        Source(Box::new(move |name, limit| read(&dir.join(name), limit)))
    }

    pub(super) fn lookup(lookup: impl Fn(&str) -> Option<Vec<u8>> + 'a) -> Self {
        Source(Box::new(move |name, limit| {
            let bytes = lookup(name);
            match &bytes {
                Some(b) if u64::try_from(b.len()).is_ok_and(|n| n > limit) => Err(too_large(limit)),
                _ => Ok(bytes),
            }
        }))
    }

    /// The bytes of a vocabulary file, or `None` if it is not there.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        (self.0)(name, MAX_FILE_BYTES).map_err(|e| e.at(name))
    }

    /// A small JSON file that must be an object, or `None` if it is not there.
    pub(super) fn object(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        let Some(bytes) = (self.0)(name, MAX_SMALL_BYTES).map_err(|e| e.at(name))? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::corrupt("not a JSON object").at(name).found(e))
    }
}

fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match whole::read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("cannot be read", path.display(), &e)),
    }
}

fn too_large(limit: u64) -> Error {
    Error::unsupported("the file is too large").expected(format!("at most {limit} bytes"))
}
