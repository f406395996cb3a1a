//! Writes a plain state dict the way torch.save does: a zip of stored members, one of them a pickle.
//!
//! The pickle is protocol 2: an `OrderedDict` of `_rebuild_tensor_v2` calls over typed storages, which
//! `torch.load(weights_only=True)` accepts. Equal bytes (tied weights) share a storage if they share an
//! allocation. The bytes depend on names, types, shapes and contents only.

use super::crc32::crc32;
use crate::tensor::{Dtype, Tensor};
use qberta_model::{Error, Result};
use std::collections::BTreeMap;

/// Directory inside the archive.
const ROOT: &str = "archive";
/// Data of every member begins at a multiple of this, as torch's own writer has it.
const ALIGNMENT: usize = 64;

/// Most bytes of tensors: 4 GiB, less room for headers and padding.
const MAX_BYTES: u64 = (4 << 30) - (64 << 20);
/// Most tensors, less the members that are none.
const MAX_STORAGES: usize = 65_000;

/// The bytes of a `.pt` file that holds `tensors`, in the order of their names.
///
/// Errors: more than 4 GiB altogether or too many members, before anything is written (zip64 is not).
pub fn write(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut pickle = Pickle(vec![0x80, 2]);
    let mut storages: Vec<&Tensor> = Vec::new();
    pickle.global("collections", "OrderedDict");
    pickle.op(b")R(");
    for (name, tensor) in tensors {
        let shared = |t: &&Tensor| {
            t.dtype() == tensor.dtype()
                && t.bytes().as_ptr() == tensor.bytes().as_ptr()
                && t.bytes().len() == tensor.bytes().len()
        };
        let key = storages.iter().position(shared).unwrap_or_else(|| {
            storages.push(tensor);
            storages.len() - 1
        });
        pickle.text(name);
        pickle.tensor(tensor, key);
    }
    pickle.op(b"u.");
    let bytes: u64 = storages.iter().map(|t| t.bytes().len() as u64).sum();
    if bytes > MAX_BYTES || storages.len() > MAX_STORAGES {
        return Err(Error::unsupported("state dict is too large for one file of this format")
            .expected(format!("at most {MAX_BYTES} bytes in {MAX_STORAGES} tensors"))
            .found(format!("{bytes} bytes in {} tensors", storages.len()))
            .hint("export with --to huggingface"));
    }
    let mut zip = Zip::default();
    zip.member("data.pkl", &pickle.0)?;
    zip.member("byteorder", b"little")?;
    for (key, tensor) in storages.iter().enumerate() {
        zip.member(&format!("data/{key}"), tensor.bytes())?;
    }
    zip.member("version", b"3\n")?;
    zip.finish()
}

/// A pickle under construction.
struct Pickle(Vec<u8>);

impl Pickle {
    fn op(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.op(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) {
        // Names come from files whose headers are far below 4 GiB.
        self.op(b"X");
        self.op(&(text.len() as u32).to_le_bytes());
        self.op(text.as_bytes());
    }

    fn int(&mut self, value: usize) {
        match i32::try_from(value) {
            Ok(small) => {
                self.op(b"J");
                self.op(&small.to_le_bytes());
            }
            // A size in memory is below 2^63, so the sign stays clear.
            Err(_) => {
                self.op(&[0x8a, 8]);
                self.op(&(value as u64).to_le_bytes());
            }
        }
    }

    fn ints(&mut self, values: &[usize]) {
        self.op(b"(");
        values.iter().for_each(|&v| self.int(v));
        self.op(b"t");
    }

    fn tensor(&mut self, tensor: &Tensor, key: usize) {
        let storage = match tensor.dtype() {
            Dtype::F64 => "DoubleStorage",
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            Dtype::I64 => "LongStorage",
            Dtype::I32 => "IntStorage",
            Dtype::I16 => "ShortStorage",
            Dtype::I8 => "CharStorage",
            Dtype::U8 => "ByteStorage",
            Dtype::Bool => "BoolStorage",
        };
        let mut strides = vec![1usize; tensor.shape().len()];
        for axis in (1..strides.len()).rev() {
            // Only a tensor without elements can have lengths whose product overflows; its strides mean nothing.
            strides[axis - 1] = strides[axis].checked_mul(tensor.shape()[axis].max(1)).unwrap_or(1);
        }
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.op(b"((");
        self.text("storage");
        self.global("torch", storage);
        self.text(&key.to_string());
        self.text("cpu");
        self.int(tensor.elements());
        self.op(b"tQ");
        self.int(0);
        self.ints(tensor.shape());
        self.ints(&strides);
        self.op(b"\x89");
        self.global("collections", "OrderedDict");
        self.op(b")RtR");
    }
}

/// A zip archive under construction.
#[derive(Default)]
struct Zip {
    file: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

impl Zip {
    fn member(&mut self, name: &str, data: &[u8]) -> Result<()> {
        const HEADER: usize = 30;
        // Names and headers of the tensors allowed above may still add up, in theory.
        let too_large = || Error::unsupported("state dict is too large for one file of this format");
        let name = format!("{ROOT}/{name}");
        let header = self.file.len();
        let begin = header + HEADER + name.len() + 4;
        let padding = begin.next_multiple_of(ALIGNMENT) - begin;
        let size = u32::try_from(data.len()).map_err(|_| too_large())?;
        let offset = u32::try_from(header).map_err(|_| too_large())?;
        self.count = self.count.checked_add(1).ok_or_else(too_large)?;
        let crc = crc32(data);
        // Version needed, flags (names are UTF-8), method stored, a fixed date, checksum, both sizes.
        let mut common = Vec::new();
        for v in [20u16, 0x0800, 0, 0, 0x21] {
            common.extend(v.to_le_bytes());
        }
        for v in [crc, size, size] {
            common.extend(v.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());

        self.file.extend(0x0403_4b50u32.to_le_bytes());
        self.file.extend(&common);
        self.file.extend((padding as u16 + 4).to_le_bytes());
        self.file.extend(name.as_bytes());
        // The extra field "FB" is how torch pads.
        self.file.extend(b"FB");
        self.file.extend((padding as u16).to_le_bytes());
        self.file.resize(self.file.len() + padding, b'Z');
        self.file.extend(data);

        self.directory.extend(0x0201_4b50u32.to_le_bytes());
        self.directory.extend(20u16.to_le_bytes());
        self.directory.extend(&common);
        for v in [0u16; 4] {
            self.directory.extend(v.to_le_bytes()); // extra, comment, disk, attributes
        }
        self.directory.extend(0u32.to_le_bytes());
        self.directory.extend(offset.to_le_bytes());
        self.directory.extend(name.as_bytes());
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        let start = u32::try_from(self.file.len())
            .map_err(|_| Error::unsupported("state dict is too large for one file of this format"))?;
        self.file.extend(&self.directory);
        self.file.extend(0x0605_4b50u32.to_le_bytes());
        for v in [0, 0, self.count, self.count] {
            self.file.extend(v.to_le_bytes());
        }
        self.file.extend((self.directory.len() as u32).to_le_bytes());
        self.file.extend(start.to_le_bytes());
        self.file.extend(0u16.to_le_bytes());
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qberta_kernels::mapped::Bytes;

    #[test]
    fn what_is_written_reads_back_and_tied_tensors_share() {
        let a = Tensor::from_f32(vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let b = Tensor::from_i8(vec![300], &[-5; 300]).unwrap();
        let scalar = Tensor::from_f32(vec![], &[7.0]).unwrap();
        let empty = Tensor::from_f32(vec![0, 4], &[]).unwrap();
        let tensors: BTreeMap<String, Tensor> =
            [("a", &a), ("b", &b), ("c", &scalar), ("tied", &a), ("z", &empty)]
                .into_iter()
                .map(|(n, t)| (n.to_owned(), t.clone()))
                .collect();
        let file = write(&tensors).unwrap();
        assert!(file.len() < 2500, "{}", file.len());
        let read = crate::torch::read_bytes(&Bytes::from(file)).unwrap();
        assert_eq!(read.tensors, tensors);
    }

    #[test]
    fn what_needs_zip64_is_refused_before_it_is_written() {
        let sparse = tempfile::NamedTempFile::new().unwrap();
        sparse.as_file().set_len(MAX_BYTES + 1).unwrap();
        let bytes = Bytes::map(sparse.path()).unwrap();
        let large = Tensor::new(Dtype::U8, vec![bytes.len()], bytes).unwrap();
        let e = write(&BTreeMap::from([("w".to_owned(), large)])).unwrap_err();
        assert!(e.to_string().contains("too large") && e.advice().is_some(), "{e}");
    }
}
