//! Reads ONNX graphs: which weights are int8, with which scales, and which products are still float.
//!
//! An ONNX file is one protobuf message. Three files: `wire` (bytes to fields), [`graph`] (fields to nodes and
//! tensors), [`quantized`] (nodes and tensors to weights with their scales). Tensors are slices of the file;
//! those kept in files beside it are read from there, and named where they are not.
//! Invariant: time and memory stay proportional to the file, and no path leaves its directory.

pub mod graph;
pub mod quantized;
mod wire;

pub use graph::{Graph, Node};
pub use quantized::{Activation, Product, Quantization, Runs};

use crate::checkpoint::map_file;
use qberta_kernels::mapped::Bytes;
use qberta_model::Result;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// Most files beside a graph that are opened.
const MAX_EXTERNAL_FILES: usize = 4096;

/// Reads the graph at `path`, and the files beside it that hold its tensors.
///
/// Errors: the file cannot be mapped, or what [`read_bytes`] refuses; both name the file.
pub fn read(path: &Path) -> Result<Graph> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let opened: RefCell<BTreeMap<String, Option<Bytes>>> = RefCell::default();
    let external = |location: &str| {
        let mut opened = opened.borrow_mut();
        if let Some(known) = opened.get(location) {
            return known.clone();
        }
        let inside =
            Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let file = dir.join(location);
        let usable = inside && opened.len() < MAX_EXTERNAL_FILES && file.is_file();
        let bytes = usable.then(|| Bytes::map(&file).ok()).flatten();
        opened.insert(location.to_owned(), bytes.clone());
        bytes
    };
    read_bytes(&map_file(path)?, external).map_err(|e| e.at(path.display()))
}

/// Reads the graph held in `file`; `external` gives the bytes of a file beside it by its relative path.
///
/// Errors: bytes that are no protobuf message, a message without a graph, tensors whose bytes do not fit
/// their shape, more nodes or names than the limits of [`graph`].
pub fn read_bytes(file: &Bytes, external: impl Fn(&str) -> Option<Bytes>) -> Result<Graph> {
    graph::read(file, &external)
}
