//! Integer and float kernels of qberta: numbers in, numbers out, no files, no text.
//!
//! Every function here gives the same bits on every instruction set, with any number of threads and next
//! to any other rows in the batch. Float work is therefore *defined* as an exact sequence of IEEE
//! operations (written out in each module), and the vector code is one generic program over 16 lanes that
//! is instantiated per instruction set. The only exception is the payload and sign of a NaN, which IEEE
//! leaves open: a NaN is a NaN on every machine, its bits are not part of the promise.
//!
//! ```
//! use qberta_kernels::{Context, Isa, Matrix, PackedI8, RowGrid, gemm_i8, quantize_rows, quantize_weight_rows};
//!
//! let cx = Context::new(Isa::best(), 1).unwrap();
//! let (codes, scale) = quantize_weight_rows(&[1.0, -2.0, 0.5, 4.0, 0.0, 1.0], 2, 3); // [out 2, in 3]
//! let w = PackedI8::pack(&codes, &scale, 2, 3).unwrap();
//! let x = Matrix::from_vec(1, 3, vec![1.0, 1.0, 2.0]);
//! let y = gemm_i8(&cx, &quantize_rows(&cx, &x, RowGrid::Symmetric), &w, None);
//! assert!((y.row(0)[1] - 6.0).abs() < 0.05);
//! ```

#[cfg(any(test, target_arch = "x86_64"))]
mod amx;
mod attention;
mod gemm_bf16;
mod gemm_f32;
mod gemm_i4;
mod gemm_i8;
mod isa;
mod lanes;
pub mod mapped;
mod matrix;
mod parallel;
mod pool;
mod rows;
#[cfg(test)]
mod testing;
mod tiles;

pub use attention::{Attention, HeadGrids, Operands, Queries, RelativeKeys, Span, Values, attend};
pub use gemm_bf16::{PackedBf16, gemm_f32_bf16};
pub use gemm_f32::{PackedF32, gemm_f32};
pub use gemm_i4::{GROUPS, PackedI4, gemm_f32_i4, gemm_i4};
pub use gemm_i8::{
    NormParameters, PackedI8, WEIGHT_STEPS, gemm_f32_i8, gemm_i8, gemm_i8_add_norm, gemm_i8_codes,
};
pub use isa::Isa;
pub use matrix::Matrix;
pub use parallel::{Context, Threads};
pub use rows::{
    Activation, FixedGrid, InputGrid, QuantizedRows, RowGrid, SHIFT_MAX, Shaping, activate, add,
    add_layer_norm, layer_norm, quantize_input, quantize_rows, quantize_rows_fixed, quantize_rows_split,
    quantize_weight_rows, softmax_row,
};
