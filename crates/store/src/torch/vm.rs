//! The pickle machine: runs the program in `data.pkl` over [`Value`]s.
//!
//! It knows the opcodes that torch's picklers emit in protocols 2 to 5 and refuses the rest by number.
//! Calls (REDUCE) are matched, never made. Every limit below is checked before memory is taken, so a
//! hostile program costs at most a small multiple of its own length.

mod calls;
mod code;

pub use calls::MAX_RANK;
use code::{Code, truncated};

use super::globals;
use super::value::{Id, Value, Values};
use crate::safetensors::show;
use qberta_model::{Error, Result};
use std::collections::{BTreeSet, HashMap};

/// Most values a program may push, copy or memoise; a checkpoint needs about 25 per tensor.
pub const MAX_VALUES: usize = 4 << 20;
/// Deepest stack; picklers write containers in batches of 1000.
pub const MAX_STACK: usize = 1 << 18;
/// Most MARKs open at once; each level of nesting opens one or two.
pub const MAX_MARKS: usize = 1024;
/// Longest LONG1 or LONG4 integer, in bytes.
pub const MAX_LONG_BYTES: usize = 1024;

/// Runs the one program that `pickle` is.
///
/// Errors: an unknown opcode, a name outside [`globals`], a limit exceeded, a call with other arguments
/// than torch's, a program that ends too early or too late, a result that contains itself.
pub fn run(pickle: &[u8]) -> Result<Values> {
    let (values, end) = run_prefix(pickle)?;
    if end != pickle.len() {
        return Err(Error::corrupt("pickle has bytes after its end").found(pickle.len() - end));
    }
    Ok(values)
}

/// Runs the program at the start of `stream`; also returns where it ends, for streams of several.
///
/// Errors: as [`run`], except that bytes may follow.
pub fn run_prefix(stream: &[u8]) -> Result<(Values, usize)> {
    let (values, end, _) = Machine::new(stream, None).run()?;
    Ok((values, end))
}

/// What a program mentions that the machine does not know. Filled while looking, never acted upon.
#[derive(Debug, Default)]
pub struct Foreign {
    /// Every name the program mentions, allowed ones too, as `module.name`.
    pub globals: BTreeSet<String>,
    /// The first name that only code has a reason to mention, or the first call of a function.
    pub refused: Option<Error>,
}

/// Most names kept in [`Foreign::globals`]; a saved model mentions about 60.
pub const MAX_GLOBALS: usize = 4096;

/// Runs the program at the start of `stream` to see what it describes: names outside [`globals`] become
/// inert values instead of errors.
///
/// Errors: as [`run_prefix`], except for unknown names.
pub fn look(stream: &[u8]) -> Result<(Values, usize, Foreign)> {
    Machine::new(stream, Some(Foreign::default())).run()
}

/// What the program remembers. Picklers number their slots from 0, so those are a list.
#[derive(Default)]
struct Memo {
    dense: Vec<Id>,
    sparse: HashMap<u32, Id>,
}

impl Memo {
    fn set(&mut self, slot: u32, id: Id) {
        let (at, end) = (slot as usize, self.dense.len());
        if at < end {
            self.dense[at] = id;
        } else if at == end {
            self.sparse.remove(&slot);
            self.dense.push(id);
        } else {
            self.sparse.insert(slot, id);
        }
    }

    fn get(&self, slot: u32) -> Option<Id> {
        self.dense.get(slot as usize).or_else(|| self.sparse.get(&slot)).copied()
    }

    /// How many slots are set, for MEMOIZE.
    fn len(&self) -> usize {
        self.dense.len() + self.sparse.len()
    }
}

struct Machine<'a> {
    code: Code<'a>,
    nodes: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Memo,
    attributes: HashMap<Id, Id>,
    charged: usize,
    /// Set when the program is only looked at.
    foreign: Option<Foreign>,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8], foreign: Option<Foreign>) -> Machine<'a> {
        Machine {
            code: Code::new(code),
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Memo::default(),
            attributes: HashMap::new(),
            charged: 0,
            foreign,
        }
    }

    fn run(mut self) -> Result<(Values, usize, Foreign)> {
        loop {
            let start = self.code.at();
            if let Some(root) = self.step().map_err(|e| e.at(format!("byte {start}")))? {
                let values = Values { nodes: self.nodes, root, attributes: self.attributes };
                values.check_shape()?;
                return Ok((values, self.code.at(), self.foreign.unwrap_or_default()));
            }
        }
    }

    /// Pushes what `module.name` stands for.
    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let known = globals::lookup(module, name);
        let Some(foreign) = &mut self.foreign else { return self.push(Value::Global(known?)) };
        if foreign.globals.len() < MAX_GLOBALS {
            foreign.globals.insert(format!("{}.{}", show(module), show(name)));
        }
        match known {
            Ok(global) => self.push(Value::Global(global)),
            Err(error) => {
                if globals::is_hostile(module, name) {
                    self.refuse(error);
                }
                // Names have no line breaks; a hostile one only makes its own module longer.
                self.push(Value::Foreign(format!("{module}\n{name}").into()))
            }
        }
    }

    fn refuse(&mut self, error: Error) {
        if let Some(foreign) = &mut self.foreign {
            foreign.refused.get_or_insert(error);
        }
    }

    /// Executes one opcode; the result, if that was STOP.
    fn step(&mut self) -> Result<Option<Id>> {
        let opcode = self.code.u8()?;
        if opcode != 0x80 && self.code.at() == 1 {
            return Err(
                Error::corrupt("pickle does not begin with a protocol").found(format!("{opcode:#04x}"))
            );
        }
        match opcode {
            0x80 => {
                let protocol = self.code.u8()?;
                if !(2..=5).contains(&protocol) || self.code.at() != 2 {
                    return Err(Error::unsupported("pickle protocol").expected("2 to 5").found(protocol));
                }
            }
            0x95 => {
                let length = self.code.length8()?;
                if length > self.code.left() {
                    return Err(truncated());
                }
            }
            b'.' => {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(Error::corrupt("pickle ends with values left over"));
                }
                return Ok(Some(root));
            }
            b'(' => {
                if self.marks.len() == MAX_MARKS {
                    return Err(limit("open MARKs", MAX_MARKS));
                }
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let v = self.code.u8()?;
                self.push(Value::Int(v.into()))?;
            }
            b'M' => {
                let v = u16::from_le_bytes(self.code.array()?);
                self.push(Value::Int(v.into()))?;
            }
            b'J' => {
                let v = i32::from_le_bytes(self.code.array()?);
                self.push(Value::Int(v.into()))?;
            }
            0x8a => {
                let n = self.code.u8()?.into();
                self.long(n)?;
            }
            0x8b => {
                let n = i32::from_le_bytes(self.code.array()?);
                self.long(usize::try_from(n).map_err(|_| Error::corrupt("integer has a negative length"))?)?;
            }
            b'G' => {
                let v = f64::from_be_bytes(self.code.array()?);
                self.push(Value::Float(v))?;
            }
            0x8c => {
                let n = self.code.u8()?.into();
                self.text(n)?;
            }
            b'X' => {
                let n = self.code.length4()?;
                self.text(n)?;
            }
            // Strings of Python 2, in files of torch 0.4 and before.
            b'U' => {
                let n = self.code.u8()?.into();
                self.text(n)?;
            }
            b'T' => {
                let n = self.code.length4()?;
                self.text(n)?;
            }
            0x8d => {
                let n = self.code.length8()?;
                self.text(n)?;
            }
            b'C' => {
                let n = self.code.u8()?.into();
                self.blob(n)?;
            }
            b'B' => {
                let n = self.code.length4()?;
                self.blob(n)?;
            }
            0x8e | 0x96 => {
                let n = self.code.length8()?;
                self.blob(n)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            0x85 => self.tuple_of(1)?,
            0x86 => self.tuple_of(2)?,
            0x87 => self.tuple_of(3)?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            b'q' => {
                let slot = self.code.u8()?.into();
                self.remember(slot)?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.code.array()?);
                self.remember(slot)?;
            }
            0x94 => {
                // The memo cannot outgrow MAX_VALUES, so its length fits.
                let slot = self.memo.len() as u32;
                self.remember(slot)?;
            }
            b'h' => {
                let slot = self.code.u8()?.into();
                self.recall(slot)?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.code.array()?);
                self.recall(slot)?;
            }
            b'c' => {
                let module = self.code.line()?;
                let name = self.code.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.text_of(module), self.text_of(name)) else {
                    return Err(Error::corrupt("STACK_GLOBAL needs two strings"));
                };
                let (module, name) = (module.to_owned(), name.to_owned());
                self.global(&module, &name)?;
            }
            b'i' => {
                let module = self.code.line()?;
                let name = self.code.line()?;
                return Err(globals::refusal(module, name));
            }
            b'R' => self.reduce()?,
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                self.build(target, state)?;
            }
            0x81 if self.foreign.is_some() => self.new_object()?,
            // Sets hold nothing that a model needs; they are read as lists.
            0x8f if self.foreign.is_some() => self.push(Value::List(Vec::new()))?,
            0x90 if self.foreign.is_some() => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            0x91 if self.foreign.is_some() => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b'Q' => self.persistent()?,
            other => {
                return Err(Error::unsupported("pickle uses an opcode that torch does not emit")
                    .found(format!("{other:#04x} {:?}", char::from(other))));
            }
        }
        Ok(None)
    }

    // Constants in the program.

    fn text(&mut self, n: usize) -> Result<()> {
        let text =
            std::str::from_utf8(self.code.take(n)?).map_err(|_| Error::corrupt("string is not UTF-8"))?;
        self.push(Value::Str(text.into()))
    }

    fn blob(&mut self, n: usize) -> Result<()> {
        let bytes = self.code.take(n)?;
        self.push(Value::Bytes(bytes.into()))
    }

    /// Pushes the two's-complement, little-endian integer in the next `n` bytes.
    fn long(&mut self, n: usize) -> Result<()> {
        if n > MAX_LONG_BYTES {
            return Err(limit("bytes of an integer", MAX_LONG_BYTES));
        }
        let digits = self.code.take(n)?;
        let fill = if digits.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        if n > wide.len() {
            return self.push(Value::WideInt);
        }
        wide[..n].copy_from_slice(digits);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    // Stack, memo, values.

    fn charge(&mut self, n: usize) -> Result<()> {
        self.charged = self.charged.saturating_add(n);
        if self.charged > MAX_VALUES { Err(limit("values", MAX_VALUES)) } else { Ok(()) }
    }

    fn push(&mut self, value: Value) -> Result<()> {
        // Fits: every node has been charged, and MAX_VALUES is far below 2^32.
        let id = Id(self.nodes.len() as u32);
        self.push_id(id)?;
        self.nodes.push(value);
        Ok(())
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        self.charge(1)?;
        if self.stack.len() == MAX_STACK {
            return Err(limit("values on the stack", MAX_STACK));
        }
        self.stack.push(id);
        Ok(())
    }

    /// The lowest index of the stack that may be popped: the innermost MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(Error::corrupt("pickle takes from an empty stack")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| Error::corrupt("pickle closes a MARK that is not open"))?;
        // pop never goes below the innermost MARK, so `mark` lies within the stack.
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn remember(&mut self, slot: u32) -> Result<()> {
        self.charge(1)?;
        let id = self.top()?;
        self.memo.set(slot, id);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<()> {
        let id =
            self.memo.get(slot).ok_or_else(|| Error::corrupt("pickle recalls a value it never stored"))?;
        self.push_id(id)
    }

    fn get(&self, id: Id) -> &Value {
        &self.nodes[id.0 as usize]
    }

    fn text_of(&self, id: Id) -> Option<&str> {
        if let Value::Str(s) = self.get(id) { Some(s) } else { None }
    }

    fn unexpected(&self, what: &str, id: Id, expected: &str) -> Error {
        Error::corrupt(format!("{what} on the wrong kind of value"))
            .expected(expected)
            .found(self.get(id).kind())
    }

    // Containers.

    fn tuple_of(&mut self, n: usize) -> Result<()> {
        if self.stack.len() < self.floor() + n {
            return Err(Error::corrupt("pickle takes from an empty stack"));
        }
        let items = self.stack.split_off(self.stack.len() - n);
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match &mut self.nodes[list.0 as usize] {
            Value::List(all) => all.extend(items),
            _ => return Err(self.unexpected("APPEND", list, "a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<()> {
        let dict = self.top()?;
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(Error::corrupt("pickle sets a key without a value"));
        }
        match &mut self.nodes[dict.0 as usize] {
            Value::Dict(all) => all.extend(pairs.iter().map(|&[k, v]| (k, v))),
            _ => return Err(self.unexpected("SETITEM", dict, "a dict")),
        }
        Ok(())
    }
}

fn limit(what: &str, most: usize) -> Error {
    Error::unsupported(format!("pickle has too many {what}")).expected(format!("at most {most}"))
}
