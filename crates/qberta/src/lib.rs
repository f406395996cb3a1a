//! Quantize DeBERTa and its family, save it, prove it, run it.
//!
//! This crate is the front door: it re-exports the parts under short names. The parts are crates of
//! their own so that each fence is a compiler fact: [`kernels`] (numbers; the only unsafe code),
//! [`model`] (what the network computes), [`store`] (bytes to model and back), [`toolkit`] (float to
//! int8), [`runtime`] (text to answers).

pub use qberta_kernels as kernels;
pub use qberta_model as model;
pub use qberta_runtime as runtime;
pub use qberta_store as store;
pub use qberta_toolkit as toolkit;

pub use qberta_kernels::{Context, Isa};
pub use qberta_model::{Error, Kind, Result, Task};
pub use qberta_runtime::{Answer, RawAnswer, Row, Session};
pub use qberta_toolkit::{Recipe, Request, quantize, verify};
