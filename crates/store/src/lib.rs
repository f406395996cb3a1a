//! Bytes to model and back: checkpoints, PyTorch files, proven artefacts.
//!
//! Reading order: [`tensor`], [`safetensors`] and [`torch`] (files to named tensors), [`checkpoint`]
//! (a directory of them), [`names`] and [`layout`] (which module is which), [`assemble`] (tensors to a
//! model), [`load`] (a path to a model), [`manifest`] and [`atomic`] (artefacts).
//!
//! Invariants: a file, however malformed, gives an error and never a panic; every tensor is used or
//! reported; nothing but [`atomic`] writes.

pub mod assemble;
pub mod atomic;
pub mod checkpoint;
pub mod digest;
pub mod int4;
pub mod layout;
pub mod load;
pub mod manifest;
pub mod names;
pub mod onnx;
pub mod safetensors;
pub mod tensor;
pub mod torch;
pub mod whole;

pub use assemble::{Account, Int8Input};
pub use load::{Loaded, Source};
pub use manifest::Manifest;
pub use tensor::{Dtype, Tensor};
