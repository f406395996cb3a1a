//! The calls a checkpoint makes: each is matched against what torch writes and becomes a [`Value`].

use super::Machine;
use crate::torch::globals::Global;
use crate::torch::value::{Id, Value};
use qberta_model::{Error, Result};

/// Most axes of a tensor. Every view keeps its own shape, so this bounds what one costs.
pub const MAX_RANK: usize = 8;

impl Machine<'_> {
    /// REDUCE: replaces a function and its arguments by what the call stands for.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let Value::Global(global) = *self.get(callee) else {
            return Err(self.unexpected("REDUCE", callee, "a function"));
        };
        let Value::Tuple(args) = self.get(args) else {
            return Err(self.unexpected("REDUCE", args, "a tuple of arguments"));
        };
        let bad = || Error::corrupt(format!("{global:?} is called with arguments torch does not give it"));
        match (global, &args[..]) {
            // storage, offset, size, stride, requires_grad, hooks[, metadata]
            (Global::RebuildTensor, [storage, offset, size, stride, _, _, rest @ ..]) if rest.len() <= 1 => {
                if !rest.iter().all(|&m| self.is_empty(m)) {
                    return Err(Error::unsupported("tensor is a lazy conjugate or negation of its storage"));
                }
                if !matches!(self.get(*storage), Value::Storage { .. }) {
                    return Err(bad());
                }
                let shape = self.sizes(*size).ok_or_else(bad)?;
                let strides = self.sizes(*stride).ok_or_else(bad)?;
                if shape.len() != strides.len() {
                    return Err(bad());
                }
                let offset = self.size(*offset).ok_or_else(bad)?;
                let storage = *storage;
                self.push(Value::Tensor { storage, offset, shape, stride: strides })
            }
            // data, requires_grad, hooks
            (Global::RebuildParameter, [data, _, _]) if matches!(self.get(*data), Value::Tensor { .. }) => {
                let data = *data;
                self.push_id(data)
            }
            (Global::Size, [items]) if matches!(self.get(*items), Value::Tuple(_)) => {
                let items = *items;
                self.push_id(items)
            }
            (Global::Device, [_] | [_, _]) => self.push(Value::Device),
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::OrderedDict, [list]) => {
                let pairs = self.pairs(*list).ok_or_else(bad)?;
                self.charge(pairs.len())?;
                self.push(Value::Dict(pairs))
            }
            (Global::Encode, [text, codec]) if self.text_of(*codec) == Some("latin1") => {
                let text = self.text_of(*text).ok_or_else(bad)?;
                let n = text.len();
                let bytes =
                    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Box<[u8]>>>();
                let bytes = bytes.ok_or_else(bad)?;
                self.charge(n)?;
                self.push(Value::Bytes(bytes))
            }
            _ => Err(bad()),
        }
    }

    /// BINPERSID: torch's ("storage", type, key, location, elements).
    pub(super) fn persistent(&mut self) -> Result<()> {
        let bad = || Error::corrupt("persistent id is not one of torch's storages");
        let id = self.pop()?;
        let Value::Tuple(parts) = self.get(id) else { return Err(bad()) };
        let [tag, kind, key, _location, elements] = parts[..] else { return Err(bad()) };
        let (Some("storage"), Value::Global(Global::Storage(dtype)), Some(_)) =
            (self.text_of(tag), self.get(kind), self.text_of(key))
        else {
            return Err(bad());
        };
        let dtype = *dtype;
        let elements = self.size(elements).ok_or_else(bad)?;
        self.push(Value::Storage { key, dtype, elements })
    }

    fn is_empty(&self, id: Id) -> bool {
        match self.get(id) {
            Value::None => true,
            Value::Dict(pairs) => pairs.is_empty(),
            _ => false,
        }
    }

    fn size(&self, id: Id) -> Option<usize> {
        if let Value::Int(v) = self.get(id) { usize::try_from(*v).ok() } else { None }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match self.get(id) {
            Value::Tuple(items) if items.len() <= MAX_RANK => items.iter().map(|&i| self.size(i)).collect(),
            _ => None,
        }
    }

    fn pairs(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        let Value::List(items) = self.get(id) else { return None };
        let pair = |&id: &Id| match self.get(id) {
            Value::Tuple(p) | Value::List(p) => <[Id; 2]>::try_from(&p[..]).ok().map(|[k, v]| (k, v)),
            _ => None,
        };
        items.iter().map(pair).collect()
    }
}
