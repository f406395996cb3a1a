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
}

/// What `module.name` stands for.
///
/// Errors: any name that is not on the list, repeated in the message.
pub fn lookup(module: &str, name: &str) -> Result<Global> {
    let known = match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
        ("torch", "CharStorage") => Global::Storage(Dtype::I8),
        ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
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
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("_codecs", "encode") => Global::Encode,
        _ => return Err(refusal(module, name)),
    };
    Ok(known)
}

/// The error for a name that is not on the list.
pub(super) fn refusal(module: &str, name: &str) -> Error {
    let tensor = (module == "torch._utils" && name.starts_with("_rebuild_"))
        || (module == "torch" && name.ends_with("Storage"));
    let hint = if tensor {
        "the file holds a kind of tensor this version does not read (quantized, sparse, complex or a subclass); \
         convert it to plain dense tensors in Python and save the state_dict"
    } else {
        "nothing was executed. If you trust where the file comes from, load it in Python and save \
         model.state_dict() alone, or use the model's safetensors file"
    };
    Error::unsupported(format!("loading this file would execute {}.{}", show(module), show(name))).hint(hint)
}
