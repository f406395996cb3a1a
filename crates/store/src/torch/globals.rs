//! The names a checkpoint may mention. Everything else is refused, by name, before it is called.

use crate::safetensors::show;
use crate::tensor::Dtype;
use qberta_model::{Error, Result};

/// A name that the machine knows. None of them runs code: each stands for a kind of [`super::value::Value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `torch._utils._rebuild_tensor_v2`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: a tensor that was trained.
    RebuildParameter,
    /// `torch.FloatStorage` and its siblings; `torch.storage.UntypedStorage` counts bytes.
    Storage(Dtype),
    /// `torch.QUInt4x2Storage`: bytes that hold two codes each.
    NibbleStorage,
    /// `torch.storage.TypedStorage`, which alone does not say of what.
    TypedStorage,
    /// `torch.device`.
    Device,
    /// `torch.Size`.
    Size,
    /// `torch.float32` and its siblings, as plain data.
    Dtype(Dtype),
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `_codecs.encode`: how protocol 2 spells bytes.
    Encode,
    /// `torch._utils._rebuild_qtensor`: a quantized view of a storage.
    RebuildQTensor,
    /// `torch.per_tensor_affine` and its siblings.
    QScheme(QScheme),
    /// `torch.qint8` and its siblings, as plain data.
    QDtype(QDtype),
}

/// How codes become numbers.
#[allow(clippy::enum_variant_names)] // torch's own names
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QScheme {
    /// One scale and zero point.
    PerTensorAffine,
    /// One scale, zero point 0.
    PerTensorSymmetric,
    /// A scale and zero point for each index of one axis.
    PerChannelAffine,
    /// A scale for each index of one axis, zero point 0.
    PerChannelSymmetric,
    /// As `PerChannelAffine`, with zero points that are floats.
    PerChannelFloat,
}

impl QScheme {
    /// Torch's name for it, without `torch.`.
    pub fn name(self) -> &'static str {
        match self {
            QScheme::PerTensorAffine => "per_tensor_affine",
            QScheme::PerTensorSymmetric => "per_tensor_symmetric",
            QScheme::PerChannelAffine => "per_channel_affine",
            QScheme::PerChannelSymmetric => "per_channel_symmetric",
            QScheme::PerChannelFloat => "per_channel_affine_float_qparams",
        }
    }

    /// Whether every index of an axis has a scale of its own.
    pub fn per_channel(self) -> bool {
        !matches!(self, QScheme::PerTensorAffine | QScheme::PerTensorSymmetric)
    }
}

/// The element types of torch's quantized tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QDtype {
    /// Signed bytes.
    QInt8,
    /// Unsigned bytes.
    QUInt8,
    /// Signed 32-bit integers, used for biases.
    QInt32,
    /// Unsigned half bytes, two to a byte, the first one in the low half.
    QUInt4,
}

impl QDtype {
    /// Torch's name for it, without `torch.`.
    pub fn name(self) -> &'static str {
        match self {
            QDtype::QInt8 => "qint8",
            QDtype::QUInt8 => "quint8",
            QDtype::QInt32 => "qint32",
            QDtype::QUInt4 => "quint4x2",
        }
    }

    /// The quantized type whose codes are stored as `dtype`.
    pub fn of_codes(dtype: Dtype) -> Option<QDtype> {
        match dtype {
            Dtype::I8 => Some(QDtype::QInt8),
            Dtype::U8 => Some(QDtype::QUInt8),
            Dtype::I32 => Some(QDtype::QInt32),
            _ => None,
        }
    }
}

/// What `module.name` stands for.
///
/// Errors: any name that is not on the list, repeated in the message.
pub fn lookup(module: &str, name: &str) -> Result<Global> {
    let known = match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        ("torch._utils", "_rebuild_qtensor") => Global::RebuildQTensor,
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
        ("torch", "CharStorage" | "QInt8Storage") => Global::Storage(Dtype::I8),
        ("torch", "ByteStorage" | "QUInt8Storage") => Global::Storage(Dtype::U8),
        ("torch", "QUInt4x2Storage") => Global::NibbleStorage,
        ("torch", "QInt32Storage") => Global::Storage(Dtype::I32),
        ("torch", "BoolStorage") => Global::Storage(Dtype::Bool),
        ("torch.storage", "UntypedStorage") => Global::Storage(Dtype::U8),
        ("torch.storage", "TypedStorage") => Global::TypedStorage,
        ("torch", "device") => Global::Device,
        ("torch", "Size") => Global::Size,
        ("torch", "float64") => Global::Dtype(Dtype::F64),
        ("torch", "float32") => Global::Dtype(Dtype::F32),
        ("torch", "float16") => Global::Dtype(Dtype::F16),
        ("torch", "bfloat16") => Global::Dtype(Dtype::BF16),
        ("torch", "int64") => Global::Dtype(Dtype::I64),
        ("torch", "int32") => Global::Dtype(Dtype::I32),
        ("torch", "int16") => Global::Dtype(Dtype::I16),
        ("torch", "int8") => Global::Dtype(Dtype::I8),
        ("torch", "uint8") => Global::Dtype(Dtype::U8),
        ("torch", "bool") => Global::Dtype(Dtype::Bool),
        ("torch", "qint8") => Global::QDtype(QDtype::QInt8),
        ("torch", "quint8") => Global::QDtype(QDtype::QUInt8),
        ("torch", "qint32") => Global::QDtype(QDtype::QInt32),
        ("torch", "quint4x2") => Global::QDtype(QDtype::QUInt4),
        ("torch", "per_tensor_affine") => Global::QScheme(QScheme::PerTensorAffine),
        ("torch", "per_tensor_symmetric") => Global::QScheme(QScheme::PerTensorSymmetric),
        ("torch", "per_channel_affine") => Global::QScheme(QScheme::PerChannelAffine),
        ("torch", "per_channel_symmetric") => Global::QScheme(QScheme::PerChannelSymmetric),
        ("torch", "per_channel_affine_float_qparams") => Global::QScheme(QScheme::PerChannelFloat),
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("_codecs", "encode") => Global::Encode,
        _ => return Err(refusal(module, name)),
    };
    Ok(known)
}

/// Whether a name that is not on the list belongs to nothing but code: no weights file of any framework
/// has a reason to mention it.
pub(super) fn is_hostile(module: &str, name: &str) -> bool {
    const MODULES: [&str; 25] = [
        "_operator",
        "_pickle",
        "asyncio",
        "bdb",
        "code",
        "codeop",
        "commands",
        "ctypes",
        "importlib",
        "marshal",
        "multiprocessing",
        "nt",
        "operator",
        "os",
        "pdb",
        "pickle",
        "posix",
        "pty",
        "runpy",
        "shutil",
        "socket",
        "subprocess",
        "sys",
        "types",
        "webbrowser",
    ];
    // Containers and numbers; everything else in builtins (eval, getattr, open) acts.
    const PLAIN: [&str; 12] = [
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "object",
        "range",
        "set",
        "slice",
    ];
    let root = module.split('.').next().unwrap_or(module);
    match root {
        "builtins" | "__builtin__" | "__builtins__" => !PLAIN.contains(&name),
        _ => MODULES.contains(&root),
    }
}

/// Whether calling a name that is not on the list can be taken for the construction of an object.
/// Functions cannot: what they would return is known to nobody who does not run them.
pub(super) fn is_constructor(module: &str, name: &str) -> bool {
    let root = module.split('.').next().unwrap_or(module);
    let last = name.rsplit('.').next().unwrap_or(name).trim_start_matches('_');
    match root {
        "builtins" | "__builtin__" => !is_hostile(module, name),
        "functools" => name == "partial",
        "torch" | "__torch__" | "transformers" | "torchao" | "numpy" | "collections" | "__main__" => {
            last.starts_with(|c: char| c.is_ascii_uppercase())
                || last.starts_with("rebuild_")
                || (root == "numpy" && matches!(last, "reconstruct" | "ndarray" | "dtype" | "scalar"))
                || (root == "collections" && name == "defaultdict")
        }
        _ => false,
    }
}

/// The error for a name that is not on the list.
pub(super) fn refusal(module: &str, name: &str) -> Error {
    let tensor = (module == "torch._utils" && name.starts_with("_rebuild_"))
        || (module == "torch" && name.ends_with("Storage"));
    let hint = if tensor {
        "the file holds a kind of tensor this version does not read (sparse, complex, sub-byte or a subclass); \
         convert it to plain dense tensors in Python and save the state_dict"
    } else {
        "nothing was executed. If you trust where the file comes from, load it in Python and save \
         model.state_dict() alone, or use the model's safetensors file"
    };
    Error::unsupported(format!("loading this file would execute {}.{}", show(module), show(name))).hint(hint)
}
