//! Kernels over the rows of a matrix: one row is computed by one thread, from start to end.

mod activation;
mod layer_norm;
pub(crate) mod math;
mod quantize;
mod softmax;

pub(crate) use activation::Activate;
pub use activation::{Activation, activate, add};
pub(crate) use layer_norm::LayerNorm;
pub use layer_norm::{add_layer_norm, layer_norm};
pub use quantize::{
    FixedGrid, InputGrid, QuantizedRows, RowGrid, SHIFT_MAX, Shaping, quantize_input, quantize_rows,
    quantize_rows_fixed, quantize_rows_split, quantize_weight_rows,
};
pub(crate) use quantize::{QuantizeFixed, QuantizeRow, Room, symmetric_scale};
pub use softmax::softmax_row;
pub(crate) use softmax::{exp_sum, largest};

/// Least rows of `cols` values for a thread of its own: below this, waking it costs more than the work.
pub(crate) fn least_rows(cols: usize) -> usize {
    (8192 / cols.max(1)).max(1)
}
