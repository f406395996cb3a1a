//! Reads PyTorch checkpoints (`pytorch_model.bin`) without running what they contain.
//!
//! A `.bin` file is a zip of raw storages plus a pickle, a small program that loads itself. Here that
//! program runs on a machine which knows numbers, strings, containers and torch's tensor description, and
//! nothing else: a name outside the list in [`globals`] is an error that repeats the name. Layers, each a
//! file: [`zip`] (members) or `legacy` (the stream of before 1.6) → [`vm`] (program → [`value`]) →
//! [`state_dict`] (values → tensors), or [`inspect`](mod@inspect) (values → whatever the file is).
//! Invariant: no bytes of the file are ever executed, and time and memory stay proportional to the file.

mod crc32;
pub mod entry;
pub mod globals;
pub mod inspect;
mod legacy;
pub mod state_dict;
pub mod value;
pub mod vm;
mod write;
pub mod zip;

pub use inspect::{Entry, Quantized, TorchFile, inspect};
pub use state_dict::StateDict;
pub use write::write;

use crate::checkpoint::map_file;
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::path::Path;

/// Largest `data.pkl` accepted, in bytes; about 100 bytes describe a tensor.
pub const MAX_PICKLE_BYTES: usize = 64 << 20;

pub(crate) const RESAVE: &str =
    "load it in Python and save the weights alone: torch.save(model.state_dict(), \"pytorch_model.bin\")";

/// What kind of PyTorch file some bytes are, judged by their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A zip archive: torch.save since 1.6, or TorchScript.
    Zip,
    /// The pickle stream that torch.save wrote before 1.6.
    Legacy,
    /// Neither.
    Other,
}

/// Tells the containers apart; reads at most 16 bytes.
pub fn container(file: &[u8]) -> Container {
    // The legacy stream opens with the pickled integer 0x1950a86a20f9469cfc6c (protocol 2 or later).
    const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    if file.starts_with(b"PK\x03\x04") || file.starts_with(b"PK\x05\x06") {
        Container::Zip
    } else if file.first() == Some(&0x80) && file.get(2..14) == Some(&MAGIC) {
        Container::Legacy
    } else {
        Container::Other
    }
}

/// The named tensors of the PyTorch file at `path`, sharing its memory map.
///
/// Errors: the file cannot be mapped, or anything [`read_bytes`] refuses; both name the file.
pub fn read(path: &Path) -> Result<StateDict> {
    read_bytes(&map_file(path)?).map_err(|e| e.at(path.display()))
}

/// The named tensors of a PyTorch file held in `file`. Contiguous tensors share its bytes.
///
/// Errors: a TorchScript file; a malformed archive; a big-endian file; a pickle that names
/// anything outside [`globals`] or exceeds the limits of [`vm`]; tensors that reach outside their storage.
pub fn read_bytes(file: &Bytes) -> Result<StateDict> {
    match container(file) {
        Container::Zip => {}
        Container::Legacy => {
            let stream = legacy::open(file, false)?;
            return state_dict::resolve(&stream.values, |key| stream.storages.get(key).cloned(), file.len());
        }
        Container::Other => return Err(not_a_checkpoint(file)),
    }
    let archive = zip::Archive::open(file)?;
    refuse_script(&archive)?;
    let root = root(&archive)?;
    archive.check_stored()?;
    check_byte_order(&archive, &root)?;
    let name = format!("{root}/data.pkl");
    let pickle = archive.member(&name).ok_or_else(|| Error::corrupt("archive has no data.pkl"))?;
    if pickle.len() > MAX_PICKLE_BYTES {
        return Err(Error::unsupported("pickle is too long")
            .at("data.pkl")
            .expected(format!("at most {MAX_PICKLE_BYTES} bytes"))
            .found(pickle.len()));
    }
    let values = vm::run(&pickle).map_err(|e| e.at("data.pkl"))?;
    state_dict::resolve(&values, |key| archive.member(&format!("{root}/data/{key}")), file.len())
}

fn not_a_checkpoint(file: &[u8]) -> Error {
    if let [0x80, 2..=5, ..] = file {
        return Error::unsupported("file is a pickle that torch.save did not write").hint(RESAVE);
    }
    Error::corrupt("file is not a PyTorch checkpoint")
        .expected("a zip archive or a pickle stream")
        .found(format!("first bytes {:02x?}", &file[..file.len().min(8)]))
}

fn check_byte_order(archive: &zip::Archive, root: &str) -> Result<()> {
    if let Some(order) = archive.member(&format!("{root}/byteorder"))
        && &order[..] != b"little"
    {
        return Err(Error::unsupported("file was not written on a little-endian machine")
            .at("byteorder")
            .found(String::from_utf8_lossy(&order[..order.len().min(16)]).escape_debug())
            .hint(RESAVE));
    }
    Ok(())
}

fn refuse_script(archive: &zip::Archive) -> Result<()> {
    let program = |name: &str| {
        name.split_once('/').is_some_and(|(_, rest)| rest == "constants.pkl" || rest.starts_with("code/"))
    };
    if archive.names().any(program) {
        return Err(Error::unsupported("file is a TorchScript program, not a set of weights").hint(RESAVE));
    }
    Ok(())
}

/// The directory inside the archive that holds `data.pkl`.
fn root(archive: &zip::Archive) -> Result<String> {
    let mut found: Option<&str> = None;
    for name in archive.names() {
        let Some((root, rest)) = name.split_once('/') else { continue };
        if rest == "data.pkl" && found.replace(root).is_some_and(|other| other != root) {
            return Err(Error::corrupt("archive has more than one data.pkl"));
        }
    }
    found.map(str::to_string).ok_or_else(|| {
        Error::corrupt("zip archive is not a PyTorch checkpoint: it has no data.pkl").hint(RESAVE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_apart_by_their_first_bytes() {
        let legacy = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";
        assert_eq!(container(legacy), Container::Legacy);
        assert_eq!(container(b"PK\x03\x04"), Container::Zip);
        assert_eq!(container(b""), Container::Other);
        let e = read_bytes(&Bytes::from(legacy.to_vec())).unwrap_err();
        assert!(e.to_string().contains("cut off"), "{e}");
    }
}
