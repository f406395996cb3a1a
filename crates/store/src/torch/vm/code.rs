//! The bytes of a program, read from the front.

use qberta_model::{Error, Result};

pub struct Code<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Code<'a> {
    pub fn new(bytes: &'a [u8]) -> Code<'a> {
        Code { bytes, at: 0 }
    }

    /// Bytes read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes still to come.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let slice = self.bytes.get(self.at..).and_then(|rest| rest.get(..n)).ok_or_else(truncated)?;
        self.at += n;
        Ok(slice)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.first_chunk().copied().ok_or_else(truncated)
    }

    pub fn u8(&mut self) -> Result<u8> {
        let [b] = self.array()?;
        Ok(b)
    }

    pub fn length4(&mut self) -> Result<usize> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| truncated())
    }

    pub fn length8(&mut self) -> Result<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| truncated())
    }

    pub fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).ok_or_else(truncated)?;
        let n = rest.iter().position(|&b| b == b'\n').ok_or_else(truncated)?;
        let line = self.take(n)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| Error::corrupt("name is not UTF-8"))
    }
}

pub fn truncated() -> Error {
    Error::corrupt("pickle is cut off")
}
