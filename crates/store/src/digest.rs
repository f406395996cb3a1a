//! SHA-256 of bytes and of tensors, as lower-case hex.

use crate::tensor::Tensor;
use qberta_model::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Digest of `bytes`.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Digest and size in bytes of the file at `path`, read in pieces.
pub fn of_file(path: &Path) -> Result<(String, u64)> {
    let io = |e| Error::io("cannot read", path.display(), &e);
    let mut file = File::open(path).map_err(io)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).map_err(io)?;
        if n == 0 {
            return Ok((hex(&hasher.finalize()), size));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Digest of a tensor: its type, shape and bytes.
pub fn of_tensor(tensor: &Tensor) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {:?}\n", tensor.dtype().name(), tensor.shape()));
    hasher.update(&tensor.bytes()[..]);
    hex(&hasher.finalize())
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Lower- or upper-case hex as bytes, `None` if it is not hex.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2).map(|d| d[0] << 4 | d[1]).collect())
}
