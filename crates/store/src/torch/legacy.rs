//! The stream that torch.save wrote before 1.6: five pickles (magic number, protocol, machine, object,
//! storage keys), then each storage as a count of elements and its bytes.
//!
//! The same machine runs every pickle, with the same limits. Invariant: storages lie one after another and
//! end with the file, so none overlaps another and none is larger than the file.

use super::MAX_PICKLE_BYTES;
use super::value::{Value, Values};
use super::vm::{self, Foreign};
use crate::safetensors::show;
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::collections::BTreeMap;

/// The stream protocol, unchanged since 2016.
const PROTOCOL: i64 = 1001;

/// What a stream holds.
pub(super) struct Stream {
    /// The object that was saved.
    pub values: Values,
    /// What it mentions that is not on the list; empty unless only looked at.
    pub foreign: Foreign,
    /// Bytes of each storage by key.
    pub storages: BTreeMap<String, Bytes>,
}

/// Reads the stream in `file`. With `look`, unknown names are noted instead of refused.
///
/// Errors: what [`vm`] refuses; another protocol or byte order; storages that are cut off, repeated or
/// unknown to the object; bytes after the last.
pub(super) fn open(file: &Bytes, look: bool) -> Result<Stream> {
    let mut reader = Reader { file, at: 0 };
    reader.pickle()?; // the magic number, by which the container was recognised
    let protocol = reader.pickle()?;
    if *protocol.get(protocol.root()) != Value::Int(PROTOCOL) {
        return Err(Error::unsupported("file has another version of the old PyTorch format"));
    }
    let machine = reader.pickle()?;
    if let Value::Dict(pairs) = machine.get(machine.root())
        && pairs
            .iter()
            .any(|&(k, v)| machine.text(k) == Some("little_endian") && *machine.get(v) == Value::Bool(false))
    {
        return Err(Error::unsupported("file was not written on a little-endian machine").hint(super::RESAVE));
    }
    let (values, foreign) = if look {
        let (values, end, foreign) = vm::look(reader.rest()).map_err(|e| e.at("object"))?;
        reader.at += end;
        (values, foreign)
    } else {
        (reader.pickle().map_err(|e| e.at("object"))?, Foreign::default())
    };
    let keys = reader.pickle().map_err(|e| e.at("storage keys"))?;
    let Value::List(listed) = keys.get(keys.root()) else {
        return Err(Error::corrupt("old PyTorch file does not list its storages"));
    };
    let mut kinds = BTreeMap::new();
    for (key, dtype) in values.storages() {
        if kinds.insert(key, dtype).is_some_and(|other| other != dtype) {
            return Err(Error::corrupt("storage has two element types").at(show(key)));
        }
    }
    let mut storages = BTreeMap::new();
    for &key in listed {
        let key = keys.text(key).ok_or_else(|| Error::corrupt("storage key is not a str"))?;
        let dtype = kinds
            .get(key)
            .ok_or_else(|| Error::corrupt("file holds a storage that nothing views").at(show(key)))?;
        let bytes = reader.storage(dtype.bytes()).map_err(|e| e.at(show(key)))?;
        if storages.insert(key.to_owned(), bytes).is_some() {
            return Err(Error::corrupt("file holds the same storage twice").at(show(key)));
        }
    }
    if reader.at != file.len() {
        return Err(Error::corrupt("file has bytes after its last storage").found(file.len() - reader.at));
    }
    Ok(Stream { values, foreign, storages })
}

struct Reader<'f> {
    file: &'f Bytes,
    at: usize,
}

impl Reader<'_> {
    /// The bytes a pickle may use.
    fn rest(&self) -> &[u8] {
        let end = self.file.len().min(self.at.saturating_add(MAX_PICKLE_BYTES));
        &self.file[self.at..end]
    }

    fn pickle(&mut self) -> Result<Values> {
        let (values, end) = vm::run_prefix(self.rest())?;
        self.at += end;
        Ok(values)
    }

    /// A count of elements and as many elements of `width` bytes.
    fn storage(&mut self, width: usize) -> Result<Bytes> {
        let cut = || Error::corrupt("storage is cut off").hint("the file was not copied completely");
        let count = self.file.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut)?;
        let count = usize::try_from(u64::from_le_bytes(*count)).map_err(|_| cut())?;
        let start = self.at + 8;
        let end = count.checked_mul(width).and_then(|n| start.checked_add(n)).ok_or_else(cut)?;
        let bytes = self.file.slice(start..end).ok_or_else(cut)?;
        self.at = end;
        Ok(bytes)
    }
}
