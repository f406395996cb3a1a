//! Protobuf, field by field, without a schema and without copies.
//!
//! Each byte is looked at once for each message around it, and nothing is kept, so a file costs time in
//! proportion to its length and no memory.

use qberta_model::{Error, Result};
use std::ops::Range;

/// The value of a field. Ranges are of the whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// An integer.
    Varint(u64),
    /// A message, string, or packed numbers.
    Bytes(Range<usize>),
    /// Four or eight bytes, a float in all fields that are read here.
    Fixed(Range<usize>),
}

/// A message that is read from its beginning.
pub(super) struct Message<'f> {
    file: &'f [u8],
    at: usize,
    end: usize,
}

impl<'f> Message<'f> {
    /// The message in the bytes `range` of `file`; a range that reaches outside is cut.
    pub(super) fn new(file: &'f [u8], range: Range<usize>) -> Message<'f> {
        let end = range.end.min(file.len());
        Message { file, at: range.start.min(end), end }
    }

    /// Number and value of the next field.
    ///
    /// Errors: a field that is cut off or malformed, groups (which ONNX has never had).
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value)>> {
        if self.at == self.end {
            return Ok(None);
        }
        let start = self.at;
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| cut(start))?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed(self.take(4)?),
            other => {
                return Err(Error::corrupt("field has an unknown type")
                    .at(format!("byte {start}"))
                    .found(other));
            }
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, n: usize) -> Result<Range<usize>> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.end).ok_or_else(|| cut(self.at))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    /// Seven bits a byte, lowest first; at most ten bytes, as for 64 bits.
    pub(super) fn varint(&mut self) -> Result<u64> {
        let (start, mut value) = (self.at, 0u64);
        for shift in (0..64).step_by(7) {
            let range = self.take(1)?;
            let byte = self.file[range.start];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::corrupt("number is too long").at(format!("byte {start}")))
    }

    /// Whether everything has been read.
    pub(super) fn is_done(&self) -> bool {
        self.at == self.end
    }
}

fn cut(at: usize) -> Error {
    Error::corrupt("file is cut off or no ONNX graph")
        .at(format!("byte {at}"))
        .hint("copy the file again, completely")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, Value)>> {
        let mut message = Message::new(bytes, 0..bytes.len());
        let mut fields = Vec::new();
        while let Some(field) = message.next()? {
            fields.push(field);
        }
        Ok(fields)
    }

    #[test]
    fn fields_are_read_and_lies_are_refused() {
        let fields = all(b"\x08\xac\x02\x12\x02hi\x1d\x00\x00\x80\x3f").unwrap();
        assert_eq!(fields, [(1, Value::Varint(300)), (2, Value::Bytes(5..7)), (3, Value::Fixed(8..12))]);
        for bad in [
            &b"\x08"[..],
            b"\x12\x03hi",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0b",
            b"\x0c",
            b"\x1d\x00\x00",
        ] {
            assert!(all(bad).is_err(), "{bad:x?}");
        }
    }
}
