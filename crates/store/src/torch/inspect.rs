//! Looks into any PyTorch file: what it is, what it holds, which names it mentions.
//!
//! [`super::read`] wants weights and refuses the rest. This reader wants to say what a file is, so names
//! outside the list become inert values, modules are unfolded into the tensors they hold, and quantized
//! tensors and packed parameters are read as codes, scales and zero points. Still nothing is executed, and
//! a call that only code has a reason to make is reported in [`TorchFile::refused`].

mod quantized;

use super::globals::Global;
use super::state_dict::{Builder, WRAPPERS, label, twice};
use super::value::{Id, Value, Values};
use super::vm::Foreign;
use super::{Container, MAX_PICKLE_BYTES, container, legacy, root, vm, zip};
use crate::checkpoint::map_file;
use crate::safetensors::show;
use crate::tensor::Tensor;
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use super::entry::{Damage, Entry, Format, Quantized, Root, StorageUse, TorchFile};

const REPACKED: &str = "a zip program packed the archive again; unpack it and pack it with `zip -0 -r`";

/// Most values visited while unfolding; sharing could otherwise unfold a small file without end.
pub const MAX_VISITS: usize = 1 << 18;
/// Most bytes of names kept.
pub const MAX_NAME_BYTES: usize = 64 << 20;

/// Bytes that all entries together may view, beyond [`VIEWS_PER_FILE_BYTE`]. Names cost nothing in a file and
/// whoever looks at each value pays for every one of them.
pub const VIEWS_BASE_BYTES: usize = 64 << 20;
/// Bytes viewed per byte of the file. Tied weights view theirs twice.
pub const VIEWS_PER_FILE_BYTE: usize = 4;

/// Looks into the PyTorch file at `path`.
///
/// Errors: the file cannot be mapped, or what [`inspect_bytes`] refuses; both name the file.
pub fn inspect(path: &Path) -> Result<TorchFile> {
    inspect_bytes(&map_file(path)?).map_err(|e| e.at(path.display()))
}

/// Looks into a PyTorch file held in `file`.
///
/// Errors: not a PyTorch file; a malformed archive or pickle; anything beyond the limits of this module and
/// of [`vm`]; tensors that reach outside their storage. Unknown names alone are no error.
pub fn inspect_bytes(file: &Bytes) -> Result<TorchFile> {
    match container(file) {
        Container::Legacy => {
            let stream = legacy::open(file, true)?;
            let member = |key: &str| stream.storages.get(key).cloned();
            // The old format keeps no checksums.
            unfold(&stream.values, stream.foreign, member, BTreeMap::new(), (file.len(), Format::Legacy))
        }
        Container::Other => Err(super::not_a_checkpoint(file)),
        Container::Zip => {
            let archive = zip::Archive::open(file)?;
            let damaged = archive.damaged();
            let Some(first) = damaged.first() else {
                return inspect_archive(&archive, &damaged, file.len());
            };
            // A damaged pickle may say anything; what it seems to say is not what went wrong.
            let hint = format!(
                "nothing was executed. The checksum of {} is {:08x} and was {:08x} when it was written; \
                 copy the file again",
                show(&first.name),
                first.found,
                first.recorded
            );
            match inspect_archive(&archive, &damaged, file.len()) {
                Ok(mut read) => {
                    read.refused = read.refused.map(|e| e.hint(hint));
                    Ok(read)
                }
                Err(e) => Err(e.hint(hint)),
            }
        }
    }
}

fn inspect_archive(archive: &zip::Archive, damaged: &[zip::Damaged], file_len: usize) -> Result<TorchFile> {
    let script = archive.names().any(|n| {
        n.split_once('/').is_some_and(|(_, rest)| rest == "constants.pkl" || rest.starts_with("code/"))
    });
    let root = root(archive)?;
    super::check_byte_order(archive, &root)?;
    let pickle = archive.member(&format!("{root}/data.pkl")).ok_or_else(|| {
        Error::unsupported("data.pkl is compressed; torch stores it as it is").hint(REPACKED)
    })?;
    if !script {
        archive.check_stored().map_err(|e| e.hint(REPACKED))?;
    }
    if pickle.len() > MAX_PICKLE_BYTES {
        return Err(Error::unsupported("pickle is too long").found(pickle.len()));
    }
    let (values, end, foreign) = vm::look(&pickle).map_err(|e| e.at("data.pkl"))?;
    if end != pickle.len() {
        return Err(Error::corrupt("pickle has bytes after its end").found(pickle.len() - end));
    }
    let member = |key: &str| archive.member(&format!("{root}/data/{key}"));
    let format = if script { Format::Script } else { Format::Zip };
    let storages = format!("{root}/data/");
    let damage = damaged
        .iter()
        .map(|d| {
            let key = d.name.strip_prefix(&storages).unwrap_or(&d.name);
            (key.to_owned(), Damage { member: d.clone(), entries: BTreeSet::new() })
        })
        .collect();
    unfold(&values, foreign, member, damage, (file_len, format))
}

/// `damage` by the key of the storage, or the name of a member that is none.
fn unfold(
    values: &Values,
    foreign: Foreign,
    member: impl Fn(&str) -> Option<Bytes>,
    damage: BTreeMap<String, Damage>,
    (file_len, format): (usize, Format),
) -> Result<TorchFile> {
    let mut walk = Walk {
        values,
        builder: Builder::new(values, member, file_len),
        entries: BTreeMap::new(),
        modules: BTreeMap::new(),
        versions: BTreeMap::new(),
        storages: BTreeMap::new(),
        damage,
        visits: 0,
        views: file_len.saturating_mul(VIEWS_PER_FILE_BYTE).saturating_add(VIEWS_BASE_BYTES),
        name_bytes: 0,
    };
    let root = walk.root()?;
    let Walk { entries, modules, versions, storages, damage, .. } = walk;
    let storages = storages
        .into_iter()
        .map(|(key, s)| {
            let used: u64 = s.views.iter().map(|&(_, bytes)| bytes as u64).sum();
            StorageUse { key, bytes: s.bytes, used: used.min(s.bytes), example: s.example }
        })
        .collect();
    Ok(TorchFile {
        format,
        root,
        entries,
        modules,
        versions,
        globals: foreign.globals.into_iter().collect(),
        refused: foreign.refused,
        storages,
        damage: damage.into_values().collect(),
        bytes: file_len as u64,
    })
}

/// A storage while views of it are collected.
struct Seen {
    bytes: u64,
    example: String,
    /// Offset in elements and size in bytes of each view.
    views: BTreeSet<(usize, usize)>,
}

struct Walk<'v, F> {
    values: &'v Values,
    builder: Builder<'v, F>,
    entries: BTreeMap<String, Entry>,
    modules: BTreeMap<String, String>,
    versions: BTreeMap<String, i64>,
    storages: BTreeMap<String, Seen>,
    damage: BTreeMap<String, Damage>,
    visits: usize,
    /// Bytes that may still be viewed.
    views: usize,
    name_bytes: usize,
}

impl<'v, F: Fn(&str) -> Option<Bytes>> Walk<'v, F> {
    fn root(&mut self) -> Result<Root> {
        let id = self.values.root();
        match self.values.get(id) {
            Value::Object { .. } => {
                self.object("", id)?;
                Ok(Root::Module(self.class(id)))
            }
            Value::Dict(pairs) => {
                // In the order of preference of [`super::state_dict`], so that both readers see the same weights.
                let wrapper = WRAPPERS.iter().find_map(|w| {
                    let (_, v) = pairs.iter().find(|(k, _)| self.values.text(*k) == Some(w))?;
                    match self.values.get(*v) {
                        Value::Dict(inner) if inner.iter().any(|&(_, v)| self.is_weight(v)) => Some((*w, *v)),
                        Value::Object { .. } => Some((*w, *v)),
                        _ => None,
                    }
                });
                let wrapper = wrapper.or_else(|| self.only_dict_of_weights(pairs));
                let Some((key, inner)) = wrapper else {
                    self.versions(id)?;
                    self.pairs("", pairs, false)?;
                    return Ok(Root::StateDict);
                };
                match self.values.get(inner) {
                    Value::Dict(pairs) => {
                        self.versions(inner)?;
                        self.pairs("", pairs, false)?;
                    }
                    _ => {
                        self.object("", inner)?;
                        return Ok(Root::Module(self.class(inner)));
                    }
                }
                Ok(Root::Wrapped(key.to_owned()))
            }
            Value::Tensor { .. } | Value::QTensor { .. } => {
                let entry = self.weight("", id)?;
                self.keep(String::new(), entry)?;
                Ok(Root::Other("a single tensor".to_owned()))
            }
            other => Ok(Root::Other(other.kind().to_owned())),
        }
    }

    /// The one dict of weights among the values of a dict that holds none itself, whatever its key.
    fn only_dict_of_weights(&self, pairs: &'v [(Id, Id)]) -> Option<(&'v str, Id)> {
        if pairs.iter().any(|&(_, v)| self.is_weight(v)) {
            return None;
        }
        let mut dicts = pairs.iter().filter_map(|&(k, v)| match self.values.get(v) {
            Value::Dict(inner) if inner.iter().any(|&(_, v)| self.is_weight(v)) => {
                Some((self.values.text(k)?, v))
            }
            _ => None,
        });
        dicts.next().filter(|_| dicts.next().is_none())
    }

    /// Notes the versions of modules that torch attached to the state dict `id`.
    fn versions(&mut self, id: Id) -> Result<()> {
        let entry = |id: Id, name: &str| match self.values.get(id) {
            Value::Dict(pairs) => pairs.iter().find(|(k, _)| self.values.text(*k) == Some(name)).map(|p| p.1),
            _ => None,
        };
        let Some(metadata) = self.values.attributes(id).and_then(|a| entry(a, "_metadata")) else {
            return Ok(());
        };
        let Value::Dict(pairs) = self.values.get(metadata) else { return Ok(()) };
        let mut versions = BTreeMap::new();
        // `version` is the first entry of a small dict; a large one would make this slow for nothing.
        for &(name, about) in pairs.iter().take(MAX_VISITS) {
            if !matches!(self.values.get(about), Value::Dict(p) if p.len() <= 8) {
                continue;
            }
            let version = entry(about, "version");
            if let (Some(name), Some(Value::Int(v))) =
                (self.values.text(name), version.map(|v| self.values.get(v)))
            {
                versions.insert(name, *v);
            }
        }
        for (name, version) in versions {
            self.spend(name)?;
            self.versions.insert(name.to_owned(), version);
        }
        Ok(())
    }

    fn is_weight(&self, id: Id) -> bool {
        matches!(self.values.get(id), Value::Tensor { .. } | Value::QTensor { .. })
            || self.packed(id).is_some()
    }

    /// Weight and bias, if the value is a packed pair.
    fn packed(&self, id: Id) -> Option<(Id, Option<Id>)> {
        let Value::Tuple(parts) = self.values.get(id) else { return None };
        let tensor = |id: Id| matches!(self.values.get(id), Value::Tensor { .. } | Value::QTensor { .. });
        match parts[..] {
            [weight, bias] if tensor(weight) => match self.values.get(bias) {
                Value::None => Some((weight, None)),
                Value::Tensor { .. } => Some((weight, Some(bias))),
                _ => None,
            },
            _ => None,
        }
    }

    /// Entries of a dict; `module` says that it is the state of a module.
    fn pairs(&mut self, prefix: &str, pairs: &'v [(Id, Id)], module: bool) -> Result<()> {
        for &(key, value) in pairs {
            self.visits += 1;
            if self.visits > MAX_VISITS {
                return Err(Error::unsupported("file unfolds to too many values")
                    .expected(format!("at most {MAX_VISITS}")));
            }
            let Some(text) = self.values.text(key) else { continue };
            let name = if prefix.is_empty() { text.to_owned() } else { format!("{prefix}.{text}") };
            if self.is_weight(value) {
                let entry = self.weight(&name, value)?;
                self.keep(name, entry)?;
                continue;
            }
            match self.values.get(value) {
                Value::Dict(inner) if module && ["_parameters", "_buffers", "_modules"].contains(&text) => {
                    self.pairs(prefix, inner, true)?;
                }
                Value::Object { .. } => self.object(&name, value)?,
                Value::Global(global) => {
                    let described = match global {
                        Global::QDtype(d) => format!("torch.{}", d.name()),
                        Global::QScheme(s) => format!("torch.{}", s.name()),
                        Global::Dtype(d) => format!("torch dtype {}", d.name()),
                        other => format!("{other:?}"),
                    };
                    self.keep(name, Entry::Other(described))?;
                }
                Value::Int(v) if !module || is_parameter(text) => {
                    self.keep(name, Entry::Scalar(*v as f64))?;
                }
                Value::Float(v) if !module || is_parameter(text) => self.keep(name, Entry::Scalar(*v))?,
                _ if module => {}
                other => self.keep(name, Entry::Other(other.kind().to_owned()))?,
            }
        }
        // Keys that are numbers (an optimizer's) come last: a name may look like one.
        for &(key, value) in pairs.iter().filter(|&&(k, _)| !module && self.values.text(k).is_none()) {
            let name = label(self.values, key);
            if !self.entries.contains_key(&name) {
                self.keep(name, Entry::Other(self.values.get(value).kind().to_owned()))?;
            }
        }
        Ok(())
    }

    /// A module: its class, and what its state holds.
    fn object(&mut self, name: &str, id: Id) -> Result<()> {
        let Value::Object { state, .. } = self.values.get(id) else { return Ok(()) };
        let class = self.class(id);
        self.spend(name)?;
        self.modules.insert(name.to_owned(), class);
        let Some(mut state) = *state else { return Ok(()) };
        // A script object's state comes with the name of its class.
        if let Value::Tuple(parts) = self.values.get(state)
            && let [inner, class] = parts[..]
            && self.values.text(class).is_some()
        {
            state = inner;
        }
        if self.is_weight(state) {
            let entry = self.weight(name, state)?;
            return self.keep(name.to_owned(), entry);
        }
        match self.values.get(state) {
            Value::Dict(pairs) => self.pairs(name, pairs, true),
            Value::Tuple(parts) => self.tuple_state(name, id, parts),
            _ => Ok(()),
        }
    }

    /// The class of an object, through whatever made it.
    fn class(&self, mut id: Id) -> String {
        loop {
            match self.values.get(id) {
                Value::Object { class, .. } => id = *class,
                Value::Foreign(name) => return show(&name.replace('\n', ".")),
                other => return other.kind().to_owned(),
            }
        }
    }

    fn weight(&mut self, name: &str, id: Id) -> Result<Entry> {
        let entry = match self.values.get(id) {
            Value::QTensor { codes, quantizer } => {
                Entry::Quantized(self.quantized(name, *codes, *quantizer)?)
            }
            Value::Tuple(_) => {
                let Some((weight, bias)) = self.packed(id) else {
                    return Ok(Entry::Other("a tuple".to_owned()));
                };
                let weight = Box::new(self.weight(name, weight)?);
                let bias = bias.map(|b| self.tensor(name, b)).transpose()?.map(|(t, _)| t);
                Entry::Packed { weight, bias }
            }
            _ => {
                let (tensor, storage) = self.tensor(name, id)?;
                Entry::Tensor { tensor, storage }
            }
        };
        Ok(entry)
    }

    fn tensor(&mut self, name: &str, id: Id) -> Result<(Tensor, String)> {
        let tensor = self.builder.tensor(id).map_err(|e| e.at(show(name)))?;
        let Value::Tensor { storage, offset, .. } = self.values.get(id) else {
            return Ok((tensor, String::new()));
        };
        let key = self.note(name, *storage, (*offset, tensor.bytes().len()))?;
        Ok((tensor, key))
    }

    /// Notes that `name` views so many bytes of a storage, from an offset in elements; returns its key.
    fn note(&mut self, name: &str, storage: Id, view: (usize, usize)) -> Result<String> {
        self.views = self.views.checked_sub(view.1).ok_or_else(|| {
            Error::unsupported("tensors view the same bytes over and over").at(show(name)).expected(format!(
                "at most {VIEWS_PER_FILE_BYTE} bytes for each of the file and {VIEWS_BASE_BYTES} more"
            ))
        })?;
        let Value::Storage { key, dtype, elements, .. } = self.values.get(storage) else {
            return Ok(String::new());
        };
        let key = self.values.text(*key).unwrap_or_default();
        let bytes = (*elements as u64).saturating_mul(dtype.bytes() as u64);
        let seen = self.storages.entry(key.to_owned()).or_insert_with(|| Seen {
            bytes,
            example: name.to_owned(),
            views: BTreeSet::new(),
        });
        seen.views.insert(view);
        if let Some(damage) = self.damage.get_mut(key) {
            damage.entries.insert(name.to_owned());
        }
        Ok(key.to_owned())
    }

    fn spend(&mut self, name: &str) -> Result<()> {
        self.name_bytes = self.name_bytes.saturating_add(name.len());
        if self.name_bytes > MAX_NAME_BYTES {
            return Err(Error::unsupported("names of the file are too long altogether"));
        }
        Ok(())
    }

    fn keep(&mut self, name: String, entry: Entry) -> Result<()> {
        self.spend(&name)?;
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(twice(&name)),
        }
    }
}

/// Attributes of modules that describe quantization.
fn is_parameter(key: &str) -> bool {
    ["scale", "zero_point", "fake_quant_enabled", "observer_enabled", "dtype", "quant_min", "quant_max"]
        .contains(&key)
}
