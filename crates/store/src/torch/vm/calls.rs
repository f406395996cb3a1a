//! The calls a checkpoint makes: each is matched against what torch writes and becomes a [`Value`].

use super::Machine;
use crate::tensor::Dtype;
use crate::torch::globals::{self, Global, QScheme};
use crate::torch::value::{Id, Quantizer, Value};
use qberta_model::{Error, Result};

/// Most axes of a tensor. Every view keeps its own shape, so this bounds what one costs.
pub const MAX_RANK: usize = 8;

impl Machine<'_> {
    /// REDUCE: replaces a function and its arguments by what the call stands for.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let global = match *self.get(callee) {
            Value::Global(global) => global,
            Value::Foreign(_) | Value::Object { .. } => {
                self.judge(callee);
                return self.push(Value::Object { class: callee, args, state: None });
            }
            _ => return Err(self.unexpected("REDUCE", callee, "a function")),
        };
        let Value::Tuple(args) = self.get(args) else {
            return Err(self.unexpected("REDUCE", args, "a tuple of arguments"));
        };
        let bad = || Error::corrupt(format!("{global:?} is called with arguments torch does not give it"));
        match (global, &args[..]) {
            // A storage of a type outside the list: what views it is foreign as well.
            (Global::RebuildTensor | Global::RebuildQTensor | Global::RebuildParameter, [first, ..])
                if matches!(self.get(*first), Value::Object { .. }) =>
            {
                let args = self.empty_tuple()?;
                self.push(Value::Object { class: callee, args, state: None })
            }
            // storage, offset, size, stride[, requires_grad, hooks[, metadata]]
            (Global::RebuildTensor, [storage, offset, size, stride, rest @ ..])
                if matches!(rest.len(), 0 | 2 | 3) =>
            {
                if rest.get(2).is_some_and(|&m| !self.is_empty(m)) {
                    return Err(Error::unsupported("tensor is a lazy conjugate or negation of its storage"));
                }
                let view = self.view([*storage, *offset, *size, *stride]).ok_or_else(bad)?;
                self.push(view)
            }
            // storage, offset, size, stride, quantizer, requires_grad, hooks
            (Global::RebuildQTensor, [storage, offset, size, stride, quantizer, _, _]) => {
                let quantizer = self.quantizer(*quantizer).ok_or_else(bad)?;
                let view = self.view([*storage, *offset, *size, *stride]).ok_or_else(bad)?;
                // The codes are a value of their own that only this tensor refers to.
                self.push(view)?;
                let codes = self.pop()?;
                self.push(Value::QTensor { codes, quantizer })
            }
            // data, requires_grad, hooks[, state]
            (Global::RebuildParameter, [data, _, _] | [data, _, _, _])
                if matches!(self.get(*data), Value::Tensor { .. } | Value::QTensor { .. }) =>
            {
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
        // The legacy stream adds a view, which no torch since 0.4 has set, and modules with their source text.
        let (tag, kind, key, elements) = match parts[..] {
            [tag, kind, key, _location, elements] => (tag, kind, key, elements),
            [tag, kind, key, _location, elements, view] if matches!(self.get(view), Value::None) => {
                (tag, kind, key, elements)
            }
            [tag, class, _file, _source]
                if self.text_of(tag) == Some("module") && matches!(self.get(class), Value::Foreign(_)) =>
            {
                return self.push_id(class);
            }
            _ => return Err(bad()),
        };
        if self.text_of(tag) == Some("storage") && matches!(self.get(kind), Value::Foreign(_)) {
            let args = self.empty_tuple()?;
            return self.push(Value::Object { class: kind, args, state: None });
        }
        let (dtype, nibbles) = match (self.text_of(tag), self.get(kind), self.text_of(key)) {
            (Some("storage"), Value::Global(Global::Storage(dtype)), Some(_)) => (*dtype, false),
            (Some("storage"), Value::Global(Global::NibbleStorage), Some(_)) => (Dtype::U8, true),
            _ => return Err(bad()),
        };
        let elements = self.size(elements).ok_or_else(bad)?;
        self.push(Value::Storage { key, dtype, elements, nibbles })
    }

    /// NEWOBJ: `class.__new__(class, *args)`, in files that are only looked at.
    pub(super) fn new_object(&mut self) -> Result<()> {
        let args = self.pop()?;
        let class = self.pop()?;
        match (self.get(class), self.get(args)) {
            (Value::Foreign(_), Value::Tuple(_)) => self.push(Value::Object { class, args, state: None }),
            // torch.Size and OrderedDict have no other way to be made in protocol 4.
            (Value::Global(Global::OrderedDict), Value::Tuple(a)) if a.is_empty() => {
                self.push(Value::Dict(Vec::new()))
            }
            _ => Err(self.unexpected("NEWOBJ", class, "a class")),
        }
    }

    /// BUILD on an object.
    pub(super) fn build(&mut self, target: Id, new: Id) -> Result<()> {
        match &mut self.nodes[target.0 as usize] {
            Value::Object { state, .. } => {
                *state = Some(new);
                Ok(())
            }
            // The state of a dict is its attributes (torch: `_metadata`), which hold no weights.
            Value::Dict(_) => {
                self.attributes.insert(target, new);
                Ok(())
            }
            _ => Err(self.unexpected("BUILD", target, "a dict")),
        }
    }

    /// Remembers a call that cannot be taken for the construction of an object.
    fn judge(&mut self, callee: Id) {
        let Value::Foreign(name) = self.get(callee) else { return };
        let (module, name) = name.rsplit_once('\n').unwrap_or(("", name));
        if !globals::is_constructor(module, name) {
            let error = globals::refusal(module, name);
            self.refuse(error);
        }
    }

    /// A value for objects whose arguments nobody needs.
    fn empty_tuple(&mut self) -> Result<Id> {
        self.push(Value::Tuple(Vec::new()))?;
        self.pop()
    }

    /// storage, offset, size, stride
    fn view(&self, [storage, offset, size, stride]: [Id; 4]) -> Option<Value> {
        let Value::Storage { .. } = self.get(storage) else { return None };
        let (shape, stride) = (self.sizes(size)?, self.sizes(stride)?);
        (shape.len() == stride.len()).then_some(Value::Tensor {
            storage,
            offset: self.size(offset)?,
            shape,
            stride,
        })
    }

    /// qscheme, scale, zero point; or qscheme, scales, zero points, axis
    fn quantizer(&self, id: Id) -> Option<Quantizer> {
        let Value::Tuple(parts) = self.get(id) else { return None };
        let scheme = |id: Id| match self.get(id) {
            Value::Global(Global::QScheme(scheme)) => Some(*scheme),
            _ => None,
        };
        let tensor = |id: Id| matches!(self.get(id), Value::Tensor { .. }).then_some(id);
        match parts[..] {
            [name, scale, zero_point] => {
                let scheme = scheme(name).filter(|s| !s.per_channel())?;
                let scale = match self.get(scale) {
                    Value::Float(v) => *v,
                    Value::Int(v) => *v as f64,
                    _ => return None,
                };
                let Value::Int(zero_point) = *self.get(zero_point) else { return None };
                Some(Quantizer::PerTensor { scheme, scale, zero_point })
            }
            [name, scales, zero_points, axis] => {
                let scheme = scheme(name).filter(|s: &QScheme| s.per_channel())?;
                let (scales, zero_points) = (tensor(scales)?, tensor(zero_points)?);
                Some(Quantizer::PerChannel { scheme, scales, zero_points, axis: self.size(axis)? })
            }
            _ => None,
        }
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
