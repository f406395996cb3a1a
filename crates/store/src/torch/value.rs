//! What a pickle describes: an arena of values that refer to each other by index.
//!
//! Pickles share and could nest without bound; with indices instead of boxes, sharing is free, dropping
//! never recurses, and a cycle is something to look for rather than something to run into.

use super::globals::{Global, QScheme};
use crate::tensor::Dtype;
use qberta_model::{Error, Result};
use std::collections::HashMap;

/// Deepest nesting of containers accepted; optimizer states reach about six.
pub const MAX_DEPTH: u32 = 128;

/// Index of a value in [`Values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(super) u32);

/// One value. Containers hold the indices of what they contain.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// An integer too wide for 64 bits, whose digits nobody here needs.
    WideInt,
    /// A float.
    Float(f64),
    /// A str.
    Str(Box<str>),
    /// A bytes or bytearray.
    Bytes(Box<[u8]>),
    /// A tuple, or a `torch.Size`.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dict or `OrderedDict`: key, value, in order of insertion; keys may repeat.
    Dict(Vec<(Id, Id)>),
    /// An allowed name, not (yet) called.
    Global(Global),
    /// `torch.device(...)`.
    Device,
    /// A storage: the member `data/<key>`, of `elements` elements.
    Storage {
        /// Name of the member, a `Str`.
        key: Id,
        /// Element type.
        dtype: Dtype,
        /// Number of elements; bytes where `nibbles`.
        elements: usize,
        /// Each byte holds two codes.
        nibbles: bool,
    },
    /// A view of a storage.
    Tensor {
        /// The `Storage`.
        storage: Id,
        /// First element, counted in elements.
        offset: usize,
        /// Lengths of the axes.
        shape: Vec<usize>,
        /// Distance between neighbours along each axis, in elements; as long as `shape`.
        stride: Vec<usize>,
    },
    /// A tensor whose elements are codes.
    QTensor {
        /// The `Tensor` of the codes.
        codes: Id,
        /// How they become numbers.
        quantizer: Quantizer,
    },
    /// A name outside the list, of files that are only looked at: `module.name`.
    Foreign(Box<str>),
    /// What a call of such a name would make. Nothing was called.
    Object {
        /// The `Foreign` (or another object) that is called.
        class: Id,
        /// Its arguments.
        args: Id,
        /// What BUILD attached.
        state: Option<Id>,
    },
}

/// The parameters of a quantized tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantizer {
    /// The same for the whole tensor.
    PerTensor {
        /// As written.
        scheme: QScheme,
        /// Value of one step.
        scale: f64,
        /// The code of 0.
        zero_point: i64,
    },
    /// One for each index of an axis.
    PerChannel {
        /// As written.
        scheme: QScheme,
        /// The `Tensor` of the scales.
        scales: Id,
        /// The `Tensor` of the zero points.
        zero_points: Id,
        /// The axis.
        axis: usize,
    },
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) | Value::WideInt => "an int",
            Value::Float(_) => "a float",
            Value::Str(_) => "a str",
            Value::Bytes(_) => "bytes",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global(_) => "a type or function",
            Value::Device => "a torch.device",
            Value::Storage { .. } => "a storage",
            Value::Tensor { .. } => "a tensor",
            Value::QTensor { .. } => "a quantized tensor",
            Value::Foreign(_) => "a foreign type or function",
            Value::Object { .. } => "an object",
        }
    }
}

/// All values of a pickle, and which of them is the result.
#[derive(Debug)]
pub struct Values {
    pub(super) nodes: Vec<Value>,
    pub(super) root: Id,
    /// What BUILD attached to dicts.
    pub(super) attributes: HashMap<Id, Id>,
}

impl Values {
    /// The value that the pickle describes.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The value behind `id`.
    pub fn get(&self, id: Id) -> &Value {
        // The machine only hands out indices of nodes it has pushed, and nodes are never removed.
        &self.nodes[id.0 as usize]
    }

    /// The attributes of the dict `id`: where torch keeps `_metadata`, the versions of modules. They may
    /// refer back to the dict, so nobody may follow them without counting.
    pub fn attributes(&self, id: Id) -> Option<Id> {
        self.attributes.get(&id).copied()
    }

    /// The text behind `id`, if it is a str.
    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Str(s) = self.get(id) { Some(s) } else { None }
    }

    /// Every storage the pickle mentions: key and element type.
    pub(super) fn storages(&self) -> impl Iterator<Item = (&str, Dtype)> {
        self.nodes.iter().filter_map(|node| match node {
            Value::Storage { key, dtype, .. } => Some((self.text(*key)?, *dtype)),
            _ => None,
        })
    }

    /// Refuses cycles and nesting deeper than [`MAX_DEPTH`], in one pass without recursion.
    pub(super) fn check_shape(&self) -> Result<()> {
        // depth[n] = containers on the longest path down from n; 0 = not seen, IN_PROGRESS = on the path.
        const IN_PROGRESS: u32 = u32::MAX;
        let mut depth = vec![0u32; self.nodes.len()];
        // (node, next child to visit)
        let mut path: Vec<(Id, usize)> = vec![(self.root, 0)];
        while let Some((id, next)) = path.last_mut() {
            let here = id.0 as usize;
            depth[here] = IN_PROGRESS;
            if let Some(child) = self.child(*id, *next) {
                *next += 1;
                match depth[child.0 as usize] {
                    IN_PROGRESS => {
                        return Err(Error::unsupported("pickle describes a structure that contains itself"));
                    }
                    0 => path.push((child, 0)),
                    _ => {}
                }
                continue;
            }
            let children = (0..).map_while(|i| self.child(*id, i));
            let deepest = children.map(|c| depth[c.0 as usize]).max().unwrap_or(0);
            if deepest >= MAX_DEPTH {
                return Err(Error::unsupported("pickle nests too deeply")
                    .expected(format!("at most {MAX_DEPTH} containers inside each other")));
            }
            depth[here] = deepest + 1;
            path.pop();
        }
        Ok(())
    }

    /// The `i`-th value that `id` refers to.
    fn child(&self, id: Id, i: usize) -> Option<Id> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => items.get(i).copied(),
            Value::Dict(pairs) => pairs.get(i / 2).map(|&(k, v)| if i.is_multiple_of(2) { k } else { v }),
            Value::Storage { key, .. } => (i == 0).then_some(*key),
            Value::Tensor { storage, .. } => (i == 0).then_some(*storage),
            Value::QTensor { codes, quantizer: Quantizer::PerTensor { .. } } => (i == 0).then_some(*codes),
            Value::QTensor { codes, quantizer: Quantizer::PerChannel { scales, zero_points, .. } } => {
                [*codes, *scales, *zero_points].get(i).copied()
            }
            Value::Object { class, args, state } => match i {
                0 => Some(*class),
                1 => Some(*args),
                2 => *state,
                _ => None,
            },
            _ => None,
        }
    }
}
