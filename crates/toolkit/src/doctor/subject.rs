//! A path to named entries, whatever the container. Nothing is executed.

use super::graph::{self, Quantized};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use qberta_store::checkpoint::{Checkpoint, WEIGHT_FILES};
use qberta_store::load::CONFIG;
use qberta_store::torch::inspect::{Damage, Format, Root, StorageUse};
use qberta_store::torch::{self, Container, Entry, zip};
use qberta_store::{manifest, safetensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How the file is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// A PyTorch file.
    Torch(Format),
    /// A PyTorch archive whose writing stopped before there was anything in it.
    Unfinished,
    /// A safetensors file.
    Safetensors,
    /// A Hugging Face directory.
    Directory,
    /// A directory that qberta wrote.
    Artefact,
    /// An ONNX graph.
    Onnx,
}

impl Form {
    /// For people.
    pub fn describe(&self) -> &'static str {
        match self {
            Form::Torch(Format::Zip) => "PyTorch archive",
            Form::Torch(Format::Legacy) => "PyTorch file in the format of before 1.6",
            Form::Torch(Format::Script) => "TorchScript archive",
            Form::Unfinished => "PyTorch archive without content",
            Form::Safetensors => "safetensors file",
            Form::Directory => "Hugging Face directory",
            Form::Artefact => "qberta artefact",
            Form::Onnx => "ONNX graph",
        }
    }
}

/// A file as it was read.
#[derive(Debug)]
pub struct Subject {
    /// Where it lies.
    pub path: PathBuf,
    /// How it is stored.
    pub form: Form,
    /// What a PyTorch file was made from.
    pub root: Root,
    /// Everything it names.
    pub entries: BTreeMap<String, Entry>,
    /// Classes of modules, for files that hold modules.
    pub modules: BTreeMap<String, String>,
    /// Versions of modules, where a state dict keeps them.
    pub versions: BTreeMap<String, i64>,
    /// How storages are used.
    pub storages: Vec<StorageUse>,
    /// Size in bytes.
    pub bytes: u64,
    /// The method in the `quantization_config` of a directory.
    pub quantized_by: Option<String>,
    /// What changed since the file was written, as far as its checksums tell.
    pub damage: Vec<Damage>,
    /// The weight files.
    pub files: Vec<PathBuf>,
    /// Names of files beside them in a directory that look like weights and were not read.
    pub unread: Vec<String>,
    /// Names that lie under the `module` of a QuantWrapper in the file, and are read without it.
    pub unwrapped: BTreeSet<String>,
    /// The graph of an ONNX file.
    pub graph: Option<Quantized>,
}

impl Subject {
    pub(super) fn new(path: &Path, form: Form, bytes: u64) -> Subject {
        Subject {
            path: path.to_owned(),
            form,
            root: Root::StateDict,
            entries: BTreeMap::new(),
            modules: BTreeMap::new(),
            versions: BTreeMap::new(),
            storages: Vec::new(),
            bytes,
            quantized_by: None,
            damage: Vec::new(),
            files: vec![path.to_owned()],
            unread: Vec::new(),
            unwrapped: BTreeSet::new(),
            graph: None,
        }
    }

    /// Reads `query.module.weight` beside `query.quant.scale` as `query.weight`: a QuantWrapper, which is how a
    /// linear gets int8 input, puts itself in the linear's place.
    fn unwrap_linears(&mut self) {
        let within = |list: &BTreeMap<String, Entry>, stem: &str| {
            let stub = format!("{stem}.quant.");
            list.range(stub.clone()..).next().is_some_and(|(k, _)| k.starts_with(&stub))
        };
        let inner = |name: &String| {
            let (stem, rest) = name.rsplit_once(".module.")?;
            within(&self.entries, stem).then(|| (name.clone(), format!("{stem}.{rest}")))
        };
        let renamed: BTreeMap<String, String> = self
            .entries
            .keys()
            .filter_map(inner)
            .filter(|(_, new)| !self.entries.contains_key(new))
            .collect();
        for (old, new) in &renamed {
            if let Some(entry) = self.entries.remove(old) {
                self.entries.insert(new.clone(), entry);
            }
            for damage in &mut self.damage {
                if damage.entries.remove(old) {
                    damage.entries.insert(new.clone());
                }
            }
        }
        // Classes and versions are those of the linear; the wrapper's own class is kept beside it.
        let linears: Vec<String> = self
            .modules
            .keys()
            .chain(self.versions.keys())
            .filter(|m| m.ends_with(".module"))
            .cloned()
            .collect();
        for wrapped in linears {
            let stem = wrapped.strip_suffix(".module").unwrap_or(&wrapped);
            if !within(&self.entries, stem) {
                continue;
            }
            if let Some(class) = self.modules.remove(&wrapped) {
                let own = self.modules.insert(stem.to_owned(), class);
                self.modules.extend(own.map(|own| (wrapped.clone(), own)));
            }
            if let Some(version) = self.versions.remove(&wrapped) {
                self.versions.insert(stem.to_owned(), version);
            }
        }
        self.unwrapped = renamed.into_values().collect();
    }

    /// The entries whose bytes changed since they were written.
    pub fn damaged(&self) -> BTreeSet<&str> {
        self.damage.iter().flat_map(|d| &d.entries).map(String::as_str).collect()
    }
}

/// Reads `path`.
///
/// Errors: whatever keeps the file from being read; a pickle that would run code, named.
pub fn read(path: &Path) -> Result<Subject> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("cannot open", path.display(), &e))?;
    if metadata.is_dir() {
        return directory(path);
    }
    if !metadata.is_file() {
        return Err(Error::input("not a file").at(path.display()));
    }
    let file = Bytes::map(path).map_err(|e| Error::io("cannot read", path.display(), &e))?;
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match torch::container(&file) {
        Container::Zip if unfinished(&file) => Ok(Subject::new(path, Form::Unfinished, metadata.len())),
        Container::Zip | Container::Legacy => torch_file(path, &file),
        Container::Other if is_onnx(&file, &extension) => graph::read(path, metadata.len()),
        Container::Other if file.get(8) == Some(&b'{') || extension == "safetensors" => {
            let tensors = safetensors::read_bytes(&file).map_err(|e| e.at(path.display()))?;
            let mut subject = Subject::new(path, Form::Safetensors, metadata.len());
            subject.entries = plain(tensors);
            Ok(subject)
        }
        // Its messages know what lands on disks in place of weights.
        Container::Other => {
            let checkpoint = Checkpoint::open(path)?;
            let mut subject = Subject::new(path, Form::Safetensors, metadata.len());
            subject.entries = plain(checkpoint.tensors);
            Ok(subject)
        }
    }
}

fn torch_file(path: &Path, file: &Bytes) -> Result<Subject> {
    let read = torch::inspect::inspect_bytes(file).map_err(|e| e.at(path.display()))?;
    if let Some(refused) = read.refused {
        return Err(refused.at(path.display()));
    }
    let mut subject = Subject::new(path, Form::Torch(read.format), read.bytes);
    subject.root = read.root;
    subject.entries = read.entries;
    subject.modules = read.modules;
    subject.versions = read.versions;
    subject.storages = read.storages;
    subject.damage = read.damage;
    subject.unwrap_linears();
    Ok(subject)
}

fn directory(path: &Path) -> Result<Subject> {
    let candidates = candidates(path)?;
    // One PyTorch file is looked into, since it may hold what a loader refuses.
    let weights = WEIGHT_FILES.iter().map(|n| path.join(n)).find(|p| p.exists());
    let mut subject = match (weights, &candidates[..]) {
        (Some(file), _) if file.extension().is_some_and(|e| e == "bin") => read(&file)?,
        (None, [one]) => read(&path.join(one))?,
        (None, [_, _, ..]) => {
            return Err(Error::input("directory holds several files that may be the model")
                .at(path.display())
                .found(candidates.join(", "))
                .hint("pass one of them"));
        }
        _ => {
            let checkpoint = Checkpoint::open(path)?;
            let bytes = checkpoint.files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
            let mut subject = Subject::new(path, Form::Directory, bytes);
            subject.entries = plain(checkpoint.tensors);
            for shard in checkpoint.files.iter().filter(|f| f.extension().is_some_and(|e| e == "bin")) {
                subject.damage.extend(torch::inspect(shard)?.damage);
            }
            subject.files = checkpoint.files;
            subject
        }
    };
    let read = |n: &String| subject.files.iter().any(|f| f.file_name().is_some_and(|f| f == n.as_str()));
    subject.unread = candidates.iter().filter(|n| !read(n)).cloned().collect();
    subject.path = path.to_owned();
    if path.join(manifest::NAME).exists() {
        subject.form = Form::Artefact;
    } else if !matches!(subject.form, Form::Unfinished | Form::Onnx) && path.join(CONFIG).is_file() {
        subject.form = Form::Directory;
        let config = qberta_store::load::read_config(path)?;
        subject.quantized_by = config
            .get("quantization_config")
            .and_then(|q| q.get("quant_method"))
            .map(|m| m.as_str().map_or_else(|| m.to_string(), str::to_owned));
    }
    Ok(subject)
}

/// Names of the files in `dir` that may hold weights, sorted.
fn candidates(dir: &Path) -> Result<Vec<String>> {
    const ENDS: [&str; 7] = ["pt", "pth", "bin", "safetensors", "ckpt", "pkl", "onnx"];
    // Small files of training runs that are torch files and no models.
    const OTHERS: [&str; 5] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state"];
    let listing = std::fs::read_dir(dir).map_err(|e| Error::io("cannot list", dir.display(), &e))?;
    let mut names: Vec<String> = listing
        .take(10_000)
        .flatten()
        .filter(|e| e.path().is_file() && e.path().extension().is_some_and(|x| ENDS.iter().any(|n| x == *n)))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !OTHERS.iter().any(|o| n.starts_with(o)))
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn plain(tensors: BTreeMap<String, qberta_store::Tensor>) -> BTreeMap<String, Entry> {
    tensors.into_iter().map(|(n, tensor)| (n.clone(), Entry::Tensor { tensor, storage: n })).collect()
}

/// An archive of torch.save that holds its version and nothing to load.
fn unfinished(file: &Bytes) -> bool {
    let Ok(archive) = zip::Archive::open(file) else { return false };
    let has = |end: &str| archive.names().any(|n| n.ends_with(end));
    has("/version") && !has("/data.pkl")
}

/// An ONNX file is a protobuf message that opens with its version (field 1, a small number).
fn is_onnx(file: &[u8], extension: &str) -> bool {
    let opens =
        matches!(file, [0x08, version, tag, ..] if *version < 32 && matches!(tag, 0x12 | 0x1a | 0x22 | 0x3a));
    opens
        && (extension == "onnx"
            || file[..file.len().min(256)].windows(4).any(|w| w == b"onnx" || w == b"torc"))
}
