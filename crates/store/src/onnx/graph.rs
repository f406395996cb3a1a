//! The nodes and tensors of a graph.

use super::wire::{Message, Value};
use crate::safetensors::show;
use crate::tensor::{Dtype, Tensor, byte_len};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Most nodes accepted; a DeBERTa of 24 layers has about ten thousand.
pub const MAX_NODES: usize = 1 << 18;
/// Most tensors accepted.
pub const MAX_TENSORS: usize = 1 << 17;
/// Most names accepted: inputs and outputs of nodes.
pub const MAX_NAMES: usize = 1 << 20;
/// Most bytes of names kept, repeated ones counted again.
pub const MAX_NAME_BYTES: usize = 64 << 20;
/// Most axes of a tensor.
pub const MAX_RANK: usize = 8;
/// Deepest nesting of graphs in the branches of If and Loop.
pub const MAX_DEPTH: usize = 16;
/// Most bytes that tensors take which are written number by number (exporters write weights as raw bytes).
pub const MAX_UNPACKED_BYTES: usize = 64 << 20;

/// A graph.
#[derive(Debug, Default)]
pub struct Graph {
    /// Name and version of the program that wrote it.
    pub producer: String,
    /// Version of each set of operators; the standard one has no name.
    pub opsets: BTreeMap<String, u64>,
    /// Nodes of the graph and of all graphs inside it, in order.
    pub nodes: Vec<Node>,
    /// Tensors by name: initializers, and outputs of Constant nodes.
    pub tensors: BTreeMap<String, Held>,
    /// Names that are given when the graph runs.
    pub inputs: BTreeSet<String>,
    /// Names that it gives.
    pub outputs: BTreeSet<String>,
    /// Tensors whose bytes lie in a file that is not there, or not as long: name and why.
    pub absent: BTreeMap<String, String>,
    /// Length in bytes of each file beside the graph that holds tensors, by its relative path.
    pub files: BTreeMap<String, usize>,
}

/// An operation.
#[derive(Debug, Default)]
pub struct Node {
    /// Its name, often a path of modules.
    pub name: String,
    /// `MatMulInteger`, ...
    pub op: String,
    /// Names of what it reads; empty for an argument that is left out.
    pub inputs: Vec<String>,
    /// Names of what it makes.
    pub outputs: Vec<String>,
    /// The attribute `axis`.
    pub axis: Option<i64>,
    /// The attribute `bits`.
    pub bits: Option<i64>,
}

/// A tensor of the graph.
#[derive(Clone, Debug)]
pub enum Held {
    /// Its values.
    Tensor(Tensor),
    /// Of a type that nothing here reads (strings, four bits), or without its bytes: type and shape.
    Other(&'static str, Vec<usize>),
}

/// What is being read, and how much of the limits is left.
struct Reader<'f, F> {
    file: &'f Bytes,
    external: &'f F,
    graph: Graph,
    names: usize,
    name_bytes: usize,
    unpacked: usize,
    /// Bytes of files beside it that tensors view.
    viewed: usize,
}

pub(super) fn read<F: Fn(&str) -> Option<Bytes>>(file: &Bytes, external: &F) -> Result<Graph> {
    let mut reader =
        Reader { file, external, graph: Graph::default(), names: 0, name_bytes: 0, unpacked: 0, viewed: 0 };
    let mut found = false;
    let (mut by, mut version) = (String::new(), String::new());
    let mut message = Message::new(file, 0..file.len());
    while let Some((field, value)) = message.next()? {
        match (field, value) {
            (2, Value::Bytes(r)) => by = reader.text(r)?,
            (3, Value::Bytes(r)) => version = reader.text(r)?,
            (7, Value::Bytes(r)) => {
                found = true;
                reader.graph(r, 0)?;
            }
            (8, Value::Bytes(r)) => reader.opset(r)?,
            _ => {}
        }
    }
    if !found {
        return Err(Error::corrupt("file is no ONNX model: it holds no graph"));
    }
    reader.graph.producer = format!("{by} {version}").trim().to_owned();
    Ok(reader.graph)
}

impl<F: Fn(&str) -> Option<Bytes>> Reader<'_, F> {
    fn text(&mut self, range: Range<usize>) -> Result<String> {
        self.names += 1;
        self.name_bytes = self.name_bytes.saturating_add(range.len());
        if self.names > MAX_NAMES || self.name_bytes > MAX_NAME_BYTES {
            return Err(
                Error::unsupported("graph has too many names").expected(format!("at most {MAX_NAMES}"))
            );
        }
        let at = range.start;
        let text = std::str::from_utf8(&self.file[range])
            .map_err(|_| Error::corrupt("name is not UTF-8").at(format!("byte {at}")))?;
        Ok(text.to_owned())
    }

    fn opset(&mut self, range: Range<usize>) -> Result<()> {
        let file = self.file.clone();
        let (mut domain, mut version) = (String::new(), 0);
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(r)) => domain = self.text(r)?,
                (2, Value::Varint(v)) => version = v,
                _ => {}
            }
        }
        self.graph.opsets.insert(domain, version);
        Ok(())
    }

    fn graph(&mut self, range: Range<usize>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::unsupported("graphs nest too deeply").expected(format!("at most {MAX_DEPTH}")));
        }
        let file = self.file.clone();
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(r)) => self.node(r, depth)?,
                (5, Value::Bytes(r)) => {
                    let (name, tensor) = self.tensor(r)?;
                    self.keep(name, tensor)?;
                }
                (11, Value::Bytes(r)) => {
                    let name = self.value_name(r)?;
                    self.graph.inputs.insert(name);
                }
                (12, Value::Bytes(r)) => {
                    let name = self.value_name(r)?;
                    self.graph.outputs.insert(name);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn keep(&mut self, name: String, tensor: Held) -> Result<()> {
        if self.graph.tensors.len() == MAX_TENSORS {
            return Err(
                Error::unsupported("graph has too many tensors").expected(format!("at most {MAX_TENSORS}"))
            );
        }
        // Branches of one If may use a name each for itself, so a name twice is no lie.
        self.graph.tensors.insert(name, tensor);
        Ok(())
    }

    /// Field 1 of a ValueInfoProto.
    fn value_name(&mut self, range: Range<usize>) -> Result<String> {
        let file = self.file.clone();
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            if let (1, Value::Bytes(r)) = (field, value) {
                return self.text(r);
            }
        }
        Ok(String::new())
    }

    fn node(&mut self, range: Range<usize>, depth: usize) -> Result<()> {
        let file = self.file.clone();
        let mut node = Node::default();
        let mut constant = None;
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(r)) => node.inputs.push(self.text(r)?),
                (2, Value::Bytes(r)) => node.outputs.push(self.text(r)?),
                (3, Value::Bytes(r)) => node.name = self.text(r)?,
                (4, Value::Bytes(r)) => node.op = self.text(r)?,
                (5, Value::Bytes(r)) => {
                    if let Some(tensor) = self.attribute(r, &mut node, depth)? {
                        constant = Some(tensor);
                    }
                }
                _ => {}
            }
        }
        if let ("Constant", Some(tensor), Some(name)) = (&node.op[..], constant, node.outputs.first()) {
            self.keep(name.clone(), tensor)?;
        }
        if self.graph.nodes.len() == MAX_NODES {
            return Err(
                Error::unsupported("graph has too many nodes").expected(format!("at most {MAX_NODES}"))
            );
        }
        self.graph.nodes.push(node);
        Ok(())
    }

    /// Notes what matters of an attribute; returns the tensor called `value`.
    fn attribute(&mut self, range: Range<usize>, node: &mut Node, depth: usize) -> Result<Option<Held>> {
        let file = self.file.clone();
        let (mut name, mut number, mut tensor) = (None, None, None);
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(r)) => name = Some(&file[r]),
                (3, Value::Varint(v)) => number = Some(v.cast_signed()),
                (5, Value::Bytes(r)) => tensor = Some(r),
                (6 | 11, Value::Bytes(r)) => self.graph(r, depth + 1)?,
                _ => {}
            }
        }
        match (name, number, tensor) {
            (Some(b"axis"), Some(v), _) => node.axis = Some(v),
            (Some(b"bits"), Some(v), _) => node.bits = Some(v),
            (Some(b"value"), _, Some(r)) => return Ok(Some(self.tensor(r)?.1)),
            _ => {}
        }
        Ok(None)
    }

    fn tensor(&mut self, range: Range<usize>) -> Result<(String, Held)> {
        let file = self.file.clone();
        let mut parts = Parts::default();
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Varint(v)) => parts.dim(v)?,
                (1, Value::Bytes(r)) => {
                    let mut packed = Message::new(&file, r);
                    while !packed.is_done() {
                        parts.dim(packed.varint()?)?;
                    }
                }
                (2, Value::Varint(v)) => parts.kind = v,
                (8, Value::Bytes(r)) => parts.name = self.text(r)?,
                (9, Value::Bytes(r)) => parts.raw = Some(r),
                // float_data and double_data: packed, their bytes are those of the numbers.
                (4 | 10, Value::Bytes(r)) => parts.raw = Some(r),
                (5 | 7 | 11, value) => {
                    if parts.numbers.len() == MAX_NAMES {
                        return Err(Error::unsupported("tensor is written number by number"));
                    }
                    parts.numbers.push(value);
                }
                (13, Value::Bytes(r)) => self.external_entry(r, &mut parts)?,
                (14, Value::Varint(v)) => parts.outside = v == 1,
                _ => {}
            }
        }
        let name = std::mem::take(&mut parts.name);
        let held = self.held(&name, parts).map_err(|e| e.at(show(&name)))?;
        Ok((name, held))
    }

    fn external_entry(&mut self, range: Range<usize>, parts: &mut Parts) -> Result<()> {
        let file = self.file.clone();
        let (mut key, mut text) = (Vec::new(), String::new());
        let mut message = Message::new(&file, range);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(r)) => key = file[r.start..r.end.min(r.start + 16)].to_vec(),
                (2, Value::Bytes(r)) => text = self.text(r)?,
                _ => {}
            }
        }
        match &key[..] {
            b"location" => parts.location = text,
            b"offset" => parts.offset = text.parse().ok(),
            b"length" => parts.length = text.parse().ok(),
            _ => {}
        }
        Ok(())
    }

    fn held(&mut self, name: &str, parts: Parts) -> Result<Held> {
        let (dtype, word) = kind(parts.kind);
        let Some(dtype) = dtype else { return Ok(Held::Other(word, parts.shape)) };
        let needed = byte_len(dtype, &parts.shape)
            .ok_or_else(|| Error::corrupt("tensor is larger than memory can be"))?;
        let bytes = if parts.outside {
            match self.outside(&parts, needed) {
                Ok(bytes) => {
                    // Whoever looks at each value pays for every name.
                    self.viewed = self.viewed.saturating_add(bytes.len());
                    let most = self.graph.files.values().sum::<usize>().saturating_mul(4);
                    if self.viewed > most.saturating_add(MAX_UNPACKED_BYTES) {
                        return Err(Error::unsupported("tensors view the same bytes over and over"));
                    }
                    bytes
                }
                Err(why) => {
                    self.graph.absent.insert(name.to_owned(), why);
                    return Ok(Held::Other(word, parts.shape));
                }
            }
        } else if let Some(range) = parts.raw {
            self.file.slice(range).unwrap_or_else(|| Bytes::from(Vec::new()))
        } else {
            self.unpack(&parts.numbers, dtype)?
        };
        Ok(Held::Tensor(Tensor::new(dtype, parts.shape, bytes)?))
    }

    /// The bytes of a tensor in another file, or why they are not there.
    fn outside(&mut self, parts: &Parts, needed: usize) -> std::result::Result<Bytes, String> {
        let place = show(&parts.location);
        let file =
            (self.external)(&parts.location).ok_or_else(|| format!("its file {place} is not there"))?;
        self.graph.files.insert(parts.location.clone(), file.len());
        let start = parts.offset.unwrap_or(0);
        let length = parts.length.unwrap_or(needed);
        let range = start.checked_add(length).map(|end| start..end).filter(|_| length == needed);
        range.and_then(|r| file.slice(r)).ok_or_else(|| {
            format!("it is {needed} bytes at {start} of {place}, which has {} bytes", file.len())
        })
    }

    /// Numbers written one by one, as the bytes of `dtype`.
    fn unpack(&mut self, numbers: &[Value], dtype: Dtype) -> Result<Bytes> {
        let mut out: Vec<u8> = Vec::new();
        let mut put = |v: u64| {
            out.extend_from_slice(&v.to_le_bytes()[..dtype.bytes()]);
            self.unpacked += dtype.bytes();
            if self.unpacked > MAX_UNPACKED_BYTES {
                return Err(Error::unsupported("too many tensors are written number by number")
                    .expected(format!("at most {MAX_UNPACKED_BYTES} bytes")));
            }
            Ok(())
        };
        for value in numbers {
            match value {
                Value::Varint(v) => put(*v)?,
                Value::Bytes(r) => {
                    let mut packed = Message::new(self.file, r.clone());
                    while !packed.is_done() {
                        put(packed.varint()?)?;
                    }
                }
                Value::Fixed(_) => return Err(Error::corrupt("tensor mixes kinds of numbers")),
            }
        }
        Ok(Bytes::from(out))
    }
}

/// The fields of a TensorProto.
#[derive(Default)]
struct Parts {
    name: String,
    kind: u64,
    shape: Vec<usize>,
    raw: Option<Range<usize>>,
    numbers: Vec<Value>,
    outside: bool,
    location: String,
    offset: Option<usize>,
    length: Option<usize>,
}

impl Parts {
    fn dim(&mut self, length: u64) -> Result<()> {
        if self.shape.len() == MAX_RANK {
            return Err(
                Error::unsupported("tensor has too many axes").expected(format!("at most {MAX_RANK}"))
            );
        }
        let length = usize::try_from(length.cast_signed())
            .map_err(|_| Error::corrupt("tensor has an axis of negative length"))?;
        self.shape.push(length);
        Ok(())
    }
}

/// TensorProto.DataType: the type here, where there is one, and its name.
fn kind(number: u64) -> (Option<Dtype>, &'static str) {
    match number {
        1 => (Some(Dtype::F32), "float"),
        2 => (Some(Dtype::U8), "uint8"),
        3 => (Some(Dtype::I8), "int8"),
        5 => (Some(Dtype::I16), "int16"),
        6 => (Some(Dtype::I32), "int32"),
        7 => (Some(Dtype::I64), "int64"),
        9 => (Some(Dtype::Bool), "bool"),
        10 => (Some(Dtype::F16), "float16"),
        11 => (Some(Dtype::F64), "double"),
        16 => (Some(Dtype::BF16), "bfloat16"),
        4 => (None, "uint16"),
        8 => (None, "string"),
        12 => (None, "uint32"),
        13 => (None, "uint64"),
        14 | 15 => (None, "complex"),
        17..=20 => (None, "float8"),
        21 => (None, "uint4"),
        22 => (None, "int4"),
        23 => (None, "float4"),
        _ => (None, "of an unknown type"),
    }
}
