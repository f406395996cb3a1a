//! What a pickle describes: an arena of values that refer to each other by index.
//!
//! Pickles share and could nest without bound; with indices instead of boxes, sharing is free, dropping
//! never recurses, and a cycle is something to look for rather than something to run into.

use super::globals::Global;
use crate::tensor::Dtype;
use qberta_model::{Error, Result};

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
        /// Number of elements.
        elements: usize,
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
        }
    }
}

/// All values of a pickle, and which of them is the result.
#[derive(Debug)]
pub struct Values {
    pub(super) nodes: Vec<Value>,
    pub(super) root: Id,
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

    /// The text behind `id`, if it is a str.
    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Str(s) = self.get(id) { Some(s) } else { None }
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
            _ => None,
        }
    }
}
