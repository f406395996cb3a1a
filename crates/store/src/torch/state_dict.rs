//! From the values of a pickle to named tensors.
//!
//! A view whose strides are those of a row-major array shares the file's bytes. Any other is copied into
//! that order, against a budget: a stride of 0 can make a terabyte out of four bytes.

use super::value::{Id, Value, Values};
use crate::safetensors::show;
use crate::tensor::{Dtype, Tensor, byte_len};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Keys under which training scripts keep the state dict, in order of preference.
pub const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// Bytes that may be copied whatever the file's size.
pub const COPY_BASE_BYTES: usize = 64 << 20;
/// Bytes that may be copied beyond that, per byte of the file.
pub const COPY_PER_FILE_BYTE: usize = 4;

/// Named tensors, and the names of what was left out.
#[derive(Debug)]
pub struct StateDict {
    /// The tensors.
    pub tensors: BTreeMap<String, Tensor>,
    /// Entries that hold no tensor ("epoch", "optimizer"), sorted.
    pub skipped: Vec<String>,
}

/// Builds the tensors of the state dict in `values`. `member` gives the bytes of a storage by its key,
/// `file_len` (bytes) sets the copy budget.
///
/// Errors: no state dict; a name twice; a storage that is missing or of another size; a view that reaches
/// outside its storage; more copying than the budget allows.
pub fn resolve(
    values: &Values,
    member: impl Fn(&str) -> Option<Bytes>,
    file_len: usize,
) -> Result<StateDict> {
    let mut skipped = Vec::new();
    let named = named_tensors(values, &mut skipped)?;
    let mut builder = Builder::new(values, member, file_len);
    let mut tensors = BTreeMap::new();
    for (name, id) in named {
        let tensor = builder.tensor(id).map_err(|e| e.at(show(name)))?;
        tensors.insert(name.to_string(), tensor);
    }
    skipped.sort_unstable();
    Ok(StateDict { tensors, skipped })
}

/// Name and value of every tensor of the state dict; names of the other entries go to `skipped`.
fn named_tensors<'v>(values: &'v Values, skipped: &mut Vec<String>) -> Result<BTreeMap<&'v str, Id>> {
    let is_tensor = |id: Id| matches!(values.get(id), Value::Tensor { .. });
    let none = |found: String| {
        Error::unsupported("file holds no state dict")
            .expected(format!("a dict from names to tensors, or one under {}", WRAPPERS.join(", ")))
            .found(found)
            .hint(super::RESAVE)
    };
    let Value::Dict(root) = values.get(values.root()) else {
        return Err(none(values.get(values.root()).kind().to_string()));
    };
    let once = |pairs: &'v [(Id, Id)]| {
        let mut keys = BTreeSet::new();
        match pairs.iter().filter_map(|&(k, _)| values.text(k)).find(|name| !keys.insert(*name)) {
            Some(name) => Err(twice(name)),
            None => Ok(()),
        }
    };
    once(root)?;
    let wrapped = WRAPPERS.iter().find_map(|w| {
        let (_, inner) = root.iter().find(|(k, _)| values.text(*k) == Some(w))?;
        match values.get(*inner) {
            Value::Dict(pairs) if pairs.iter().any(|&(_, v)| is_tensor(v) || is_quantized(values, v)) => {
                Some((*inner, pairs))
            }
            _ => None,
        }
    });
    let dict = match wrapped {
        Some((inner, pairs)) => {
            skipped.extend(root.iter().filter(|&&(_, v)| v != inner).map(|&(k, _)| label(values, k)));
            once(pairs)?;
            pairs
        }
        None => root,
    };
    let mut named = BTreeMap::new();
    for &(key, value) in dict {
        if is_quantized(values, value) {
            return Err(Error::unsupported("file holds quantized tensors of PyTorch")
                .at(label(values, key))
                .hint("`qberta doctor FILE` says what it is, and `--rescue` makes an artefact of it"));
        }
        match values.text(key) {
            Some(name) if is_tensor(value) => {
                named.insert(name, value);
            }
            _ => skipped.push(label(values, key)),
        }
    }
    if named.is_empty() {
        let keys: Vec<String> = root.iter().take(8).map(|&(k, _)| label(values, k)).collect();
        return Err(none(format!("a dict with {} entries: {}", root.len(), keys.join(", "))));
    }
    Ok(named)
}

/// A quantized tensor, alone or packed with its bias.
fn is_quantized(values: &Values, id: Id) -> bool {
    match values.get(id) {
        Value::QTensor { .. } => true,
        Value::Tuple(parts) => parts
            .first()
            .is_some_and(|&p| matches!(values.get(p), Value::QTensor { .. } | Value::Tensor { .. })),
        _ => false,
    }
}

pub(super) fn twice(name: &str) -> Error {
    Error::corrupt("dict holds the same name twice").at(show(name))
}

/// A key of a dict, for people.
pub(super) fn label(values: &Values, key: Id) -> String {
    match values.get(key) {
        Value::Str(s) => show(s),
        Value::Int(i) => i.to_string(),
        other => format!("({} as a key)", other.kind()),
    }
}

pub(super) struct Builder<'v, F> {
    values: &'v Values,
    member: F,
    /// Bytes that may still be copied.
    budget: usize,
    /// Tied weights are one value under several names; they stay one tensor.
    done: BTreeMap<Id, Tensor>,
}

impl<'v, F: Fn(&str) -> Option<Bytes>> Builder<'v, F> {
    pub(super) fn new(values: &'v Values, member: F, file_len: usize) -> Builder<'v, F> {
        let budget = file_len.saturating_mul(COPY_PER_FILE_BYTE).saturating_add(COPY_BASE_BYTES);
        Builder { values, member, budget, done: BTreeMap::new() }
    }

    pub(super) fn tensor(&mut self, id: Id) -> Result<Tensor> {
        if let Some(tensor) = self.done.get(&id) {
            return Ok(tensor.clone());
        }
        let Value::Tensor { storage, offset, shape, stride } = self.values.get(id) else {
            return Err(Error::corrupt("not a tensor").found(self.values.get(id).kind()));
        };
        let (dtype, bytes) = self.storage(*storage)?;
        if matches!(self.values.get(*storage), Value::Storage { nibbles: true, .. }) {
            return Err(Error::unsupported("plain tensor views codes of four bits"));
        }
        let view = View { dtype, offset: *offset, shape, stride };
        let bytes = match view.contiguous_range(bytes.len())? {
            Some(range) => bytes.slice(range).ok_or_else(|| view.outside(bytes.len()))?,
            None => {
                let needed = view.check(bytes.len())?;
                self.budget = self.budget.checked_sub(needed).ok_or_else(|| {
                    Error::unsupported("strided tensors unfold to far more than the file holds")
                        .found(format!("{needed} more bytes for {shape:?} {dtype}"))
                })?;
                Bytes::from(view.copy(&bytes, needed)?)
            }
        };
        let tensor = Tensor::new(dtype, shape.clone(), bytes)?;
        self.done.insert(id, tensor.clone());
        Ok(tensor)
    }

    pub(super) fn storage(&self, id: Id) -> Result<(Dtype, Bytes)> {
        let Value::Storage { key, dtype, elements, .. } = self.values.get(id) else {
            return Err(Error::corrupt("tensor does not view a storage"));
        };
        let key = self.values.text(*key).unwrap_or_default();
        let place = || format!("data/{}", show(key));
        let bytes = (self.member)(key).ok_or_else(|| {
            Error::corrupt("storage is missing from the archive")
                .at(place())
                .hint("the file was not copied completely")
        })?;
        if elements.checked_mul(dtype.bytes()) != Some(bytes.len()) {
            return Err(Error::corrupt("storage has the wrong size")
                .at(place())
                .expected(format!("{elements} elements of {dtype}"))
                .found(format!("{} bytes", bytes.len())));
        }
        Ok((*dtype, bytes))
    }
}

/// A strided view of a storage; offsets and strides count elements.
struct View<'v> {
    dtype: Dtype,
    offset: usize,
    shape: &'v [usize],
    stride: &'v [usize],
}

impl View<'_> {
    fn outside(&self, storage_len: usize) -> Error {
        Error::corrupt("tensor reaches outside its storage").found(format!(
            "offset {}, shape {:?}, stride {:?} in {} elements",
            self.offset,
            self.shape,
            self.stride,
            storage_len / self.dtype.bytes()
        ))
    }

    /// The view's range of bytes, if its strides are row-major; axes of length 1 may have any stride.
    fn contiguous_range(&self, storage_len: usize) -> Result<Option<std::ops::Range<usize>>> {
        let outside = || self.outside(storage_len);
        let needed = byte_len(self.dtype, self.shape).ok_or_else(outside)?;
        if needed == 0 {
            return Ok(Some(0..0));
        }
        let mut step = 1;
        for (&length, &stride) in self.shape.iter().zip(self.stride).rev() {
            if length != 1 && stride != step {
                return Ok(None);
            }
            step *= length; // at most the number of elements, which byte_len has checked
        }
        let start = self.offset.checked_mul(self.dtype.bytes()).ok_or_else(outside)?;
        let end = start.checked_add(needed).ok_or_else(outside)?;
        Ok(Some(start..end))
    }

    /// Checks that the last element lies inside a storage of `storage_len` bytes; returns the bytes that a
    /// row-major copy needs.
    fn check(&self, storage_len: usize) -> Result<usize> {
        let last = self.shape.iter().zip(self.stride).try_fold(self.offset, |at, (&length, &stride)| {
            at.checked_add(length.checked_sub(1)?.checked_mul(stride)?)
        });
        match (last, byte_len(self.dtype, self.shape)) {
            (Some(last), Some(needed)) if last < storage_len / self.dtype.bytes() => Ok(needed),
            _ => Err(self.outside(storage_len)),
        }
    }

    /// The elements in row-major order: `needed` bytes, as computed by [`View::check`].
    fn copy(&self, storage: &[u8], needed: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        out.try_reserve_exact(needed).map_err(|_| {
            Error::unsupported("no memory for a strided tensor").found(format!("{needed} bytes"))
        })?;
        match self.dtype.bytes() {
            1 => self.copy_elements::<1>(storage, &mut out),
            2 => self.copy_elements::<2>(storage, &mut out),
            4 => self.copy_elements::<4>(storage, &mut out),
            _ => self.copy_elements::<8>(storage, &mut out),
        }
        Ok(out)
    }

    fn copy_elements<const WIDTH: usize>(&self, storage: &[u8], out: &mut Vec<u8>) {
        let source = storage.as_chunks::<WIDTH>().0;
        // contiguous_range has dealt with scalars, so there is an innermost axis.
        let (Some((&row, outer)), Some((&step, strides))) =
            (self.shape.split_last(), self.stride.split_last())
        else {
            return;
        };
        let mut index = vec![0usize; outer.len()];
        let mut start = self.offset;
        loop {
            for i in 0..row {
                out.extend_from_slice(&source[start + i * step]);
            }
            // Next row: an odometer over the outer axes, innermost first.
            let mut axis = outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                start += strides[axis];
                if index[axis] < outer[axis] {
                    break;
                }
                start -= strides[axis] * outer[axis];
                index[axis] = 0;
            }
        }
    }
}
