//! What [`super::inspect`](mod@super::inspect) finds in a file, and the arithmetic of quantized tensors.

use super::globals::{QDtype, QScheme};
use super::zip::Damaged;
use crate::tensor::{Dtype, Tensor};
use qberta_model::Error;
use std::collections::{BTreeMap, BTreeSet};

/// What a PyTorch file holds.
#[derive(Debug)]
pub struct TorchFile {
    /// How it is stored.
    pub format: Format,
    /// What was saved.
    pub root: Root,
    /// Tensors and other values by name.
    pub entries: BTreeMap<String, Entry>,
    /// Class of every module by its name, for files that hold modules; the root is the empty name.
    pub modules: BTreeMap<String, String>,
    /// Version of each module by its name, where the state dict kept its `_metadata`.
    pub versions: BTreeMap<String, i64>,
    /// Every name the pickle mentions.
    pub globals: Vec<String>,
    /// Why loading this file with Python would run code that is no part of a model.
    pub refused: Option<Error>,
    /// Storages that tensors view: key, bytes stored, bytes that some tensor views, name of a tensor.
    pub storages: Vec<StorageUse>,
    /// What changed since the file was written, as far as its checksums tell.
    pub damage: Vec<Damage>,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// A member of the archive whose bytes are not those that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The member and both checksums.
    pub member: Damaged,
    /// Names of the entries that read it.
    pub entries: BTreeSet<String>,
}

/// How a PyTorch file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A zip archive.
    Zip,
    /// The stream of before 1.6.
    Legacy,
    /// A TorchScript archive.
    Script,
}

/// What a PyTorch file was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A dict of tensors.
    StateDict,
    /// A training checkpoint with the dict under this key.
    Wrapped(String),
    /// A whole module of this class.
    Module(String),
    /// Something else, described.
    Other(String),
}

/// One named value.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A plain tensor and the key of its storage.
    Tensor {
        /// The values.
        tensor: Tensor,
        /// The storage it views; equal keys are tied weights.
        storage: String,
    },
    /// A quantized tensor.
    Quantized(Quantized),
    /// The weight and bias of a quantized module, as its `_packed_params`.
    Packed {
        /// The weight: quantized, or a plain tensor for float16.
        weight: Box<Entry>,
        /// The bias.
        bias: Option<Tensor>,
    },
    /// A number.
    Scalar(f64),
    /// Anything else, described.
    Other(String),
}

/// A quantized tensor: `value = (code - zero_point) * scale`.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Type of the codes.
    pub dtype: QDtype,
    /// As written.
    pub scheme: QScheme,
    /// One scale, or one for each index of `axis`.
    pub scales: Vec<f64>,
    /// As many zero points as scales.
    pub zero_points: Vec<f64>,
    /// The axis of per-channel scales; 0 for the others.
    pub axis: usize,
    /// The codes, with the tensor's shape.
    pub codes: Tensor,
}

/// What is used of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageUse {
    /// Its key.
    pub key: String,
    /// Bytes stored.
    pub bytes: u64,
    /// Bytes that tensors view, at most `bytes`.
    pub used: u64,
    /// A tensor that views it.
    pub example: String,
}

impl Quantized {
    /// The codes, widened.
    pub fn codes(&self) -> Vec<i32> {
        let b = &self.codes.bytes()[..];
        match self.codes.dtype() {
            Dtype::I8 => b.iter().map(|&c| i32::from(c.cast_signed())).collect(),
            Dtype::U8 => b.iter().map(|&c| i32::from(c)).collect(),
            _ => b.as_chunks().0.iter().map(|c| i32::from_le_bytes(*c)).collect(),
        }
    }

    /// The values, with torch's arithmetic: scale and difference in f32, one product.
    pub fn dequantize(&self) -> Vec<f32> {
        let shape = self.codes.shape();
        let inner: usize = shape.iter().skip(self.axis + 1).product::<usize>().max(1);
        let several = self.scales.len() > 1;
        let value = |(i, code): (usize, i32)| {
            let channel = if several { i / inner % self.scales.len() } else { 0 };
            (code as f32 - self.zero_points[channel] as f32) * self.scales[channel] as f32
        };
        self.codes().into_iter().enumerate().map(value).collect()
    }
}

/// The values of a tensor of scales or zero points.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    let b = &tensor.bytes()[..];
    match tensor.dtype() {
        Dtype::F64 => b.as_chunks().0.iter().map(|c| f64::from_le_bytes(*c)).collect(),
        Dtype::I64 => b.as_chunks().0.iter().map(|c| i64::from_le_bytes(*c) as f64).collect(),
        Dtype::I32 => b.as_chunks().0.iter().map(|c| f64::from(i32::from_le_bytes(*c))).collect(),
        Dtype::I16 => b.as_chunks().0.iter().map(|c| f64::from(i16::from_le_bytes(*c))).collect(),
        Dtype::I8 => b.iter().map(|&c| f64::from(c.cast_signed())).collect(),
        Dtype::U8 | Dtype::Bool => b.iter().map(|&c| f64::from(c)).collect(),
        _ => tensor.to_f32().unwrap_or_default().into_iter().map(f64::from).collect(),
    }
}
