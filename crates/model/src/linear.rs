//! How weights are stored, and what each storage does with activations. Quantizing a model replaces
//! variants here; the forward does not change.

use qberta_kernels::{
    Activation, Context, InputGrid, Matrix, NormParameters, PackedBf16, PackedF32, PackedI4, PackedI8,
    QuantizedRows, Shaping, gemm_f32, gemm_f32_bf16, gemm_f32_i4, gemm_f32_i8, gemm_i4, gemm_i8,
    gemm_i8_add_norm, gemm_i8_codes, mapped::Bytes, quantize_input,
};

/// A linear layer `y = x Wᵀ + b`, `W [out, in]`.
#[derive(Clone, Debug)]
pub enum Linear {
    /// Float weights.
    F32 {
        /// Packed weights.
        weight: PackedF32,
        /// `[out]`.
        bias: Option<Vec<f32>>,
    },
    /// Float weights in 16 bits, f32 arithmetic.
    Bf16 {
        /// Packed weights.
        weight: PackedBf16,
        /// `[out]`.
        bias: Option<Vec<f32>>,
    },
    /// Int8 weights per output channel, activations quantized while running (W8A8).
    Int8 {
        /// Packed codes and scales, `[out, in + split columns]`.
        weight: PackedI8,
        /// `[out]`, added in f32.
        bias: Option<Vec<f32>>,
        /// How a row of activations becomes codes.
        input: InputGrid,
        /// What happens to the channels of the input first.
        shaping: Shaping,
    },
    /// 4-bit weights in groups of inputs, activations quantized while running (W4A8).
    Int4 {
        /// Packed codes and scales.
        weight: PackedI4,
        /// `[out]`, added in f32.
        bias: Option<Vec<f32>>,
        /// How a row of activations becomes codes.
        input: InputGrid,
        /// What happens to the channels of the input first; no extra columns.
        shaping: Shaping,
    },
    /// 4-bit weights in groups of inputs, float activations.
    WeightInt4 {
        /// Packed codes and scales.
        weight: PackedI4,
        /// `[out]`.
        bias: Option<Vec<f32>>,
    },
    /// Int8 weights per output channel, float activations.
    WeightInt8 {
        /// Packed codes and scales.
        weight: PackedI8,
        /// `[out]`.
        bias: Option<Vec<f32>>,
    },
}

impl Linear {
    /// `x [rows, in]` to `[rows, out]`.
    pub fn forward(&self, cx: &Context, x: &Matrix) -> Matrix {
        match self {
            Linear::F32 { weight, bias } => gemm_f32(cx, x, weight, bias.as_deref()),
            Linear::Bf16 { weight, bias } => gemm_f32_bf16(cx, x, weight, bias.as_deref()),
            Linear::Int8 { weight, bias, input, shaping } => {
                gemm_i8(cx, &quantize_input(cx, x, *input, shaping), weight, bias.as_deref())
            }
            Linear::Int4 { weight, bias, input, shaping } => {
                gemm_i4(cx, &quantize_input(cx, x, *input, shaping), weight, bias.as_deref())
            }
            Linear::WeightInt4 { weight, bias } => gemm_f32_i4(cx, x, weight, bias.as_deref()),
            Linear::WeightInt8 { weight, bias } => gemm_f32_i8(cx, x, weight, bias.as_deref()),
        }
    }

    /// [`Linear::forward`] of several linears on one input, whose codes are made once where they are the same.
    pub fn forward_all<const N: usize>(cx: &Context, linears: [&Linear; N], x: &Matrix) -> [Matrix; N] {
        let mut made: Option<((InputGrid, &Shaping), QuantizedRows)> = None;
        linears.map(|linear| match linear {
            Linear::Int8 { weight, bias, input, shaping } => {
                let wanted = (*input, shaping);
                let codes = match made.take() {
                    Some((grid, codes)) if grid == wanted => codes,
                    _ => quantize_input(cx, x, *input, shaping),
                };
                let y = gemm_i8(cx, &codes, weight, bias.as_deref());
                made = Some((wanted, codes));
                y
            }
            _ => linear.forward(cx, x),
        })
    }

    /// `norm(self.forward(x) + residual)`; `None` if this linear cannot do it in one go.
    pub fn forward_norm(
        &self,
        cx: &Context,
        x: &Matrix,
        residual: &Matrix,
        norm: NormParameters,
    ) -> Option<Matrix> {
        let Linear::Int8 { weight, bias, input, shaping } = self else { return None };
        let codes = quantize_input(cx, x, *input, shaping);
        Some(gemm_i8_add_norm(cx, &codes, weight, bias.as_deref(), residual, norm))
    }

    /// `norm(down(f(up(x))) + x)`, the feed-forward block of a layer; `None` if the two cannot do it in one go.
    pub fn feed_forward(
        cx: &Context,
        [up, down]: [&Linear; 2],
        f: Activation,
        x: &Matrix,
        norm: NormParameters,
    ) -> Option<Matrix> {
        let Linear::Int8 { weight: w, bias: b, input, shaping } = up else { return None };
        let Linear::Int8 { weight, bias, input: inner, shaping: inner_shaping } = down else { return None };
        let codes = quantize_input(cx, x, *input, shaping);
        let codes = gemm_i8_codes(cx, &codes, w, b.as_deref(), f, (*inner, inner_shaping));
        Some(gemm_i8_add_norm(cx, &codes, weight, bias.as_deref(), x, norm))
    }

    /// The same with activations kept in f32: what runs once at load is not worth an error of its own.
    pub fn forward_float_input(&self, cx: &Context, x: &Matrix) -> Matrix {
        match self {
            Linear::Int8 { weight, bias, shaping, .. } => {
                gemm_f32_i8(cx, &smoothed(x, shaping, weight.inp()), weight, bias.as_deref())
            }
            Linear::Int4 { weight, bias, shaping, .. } => {
                gemm_f32_i4(cx, &smoothed(x, shaping, weight.inp()), weight, bias.as_deref())
            }
            _ => self.forward(cx, x),
        }
    }

    /// The grid of the input and what happens to it first, if it is quantized.
    pub fn input(&self) -> Option<(InputGrid, Shaping)> {
        match self {
            Linear::Int8 { input, shaping, .. } => Some((*input, shaping.clone())),
            Linear::Int4 { input, shaping, .. } => Some((*input, shaping.clone())),
            _ => None,
        }
    }

    /// Float weights `[out, in]`, row-major, and biases; `None` if they are quantized.
    pub fn float(&self) -> Option<(Vec<f32>, Option<&[f32]>)> {
        match self {
            Linear::F32 { weight, bias } => Some((weight.unpack(), bias.as_deref())),
            Linear::Bf16 { weight, bias } => Some((weight.unpack(), bias.as_deref())),
            _ => None,
        }
    }

    /// Bytes of weights that a product reads, without biases, scales of channels and extra columns.
    pub fn weight_bytes(&self) -> usize {
        let (out, inp) = self.shape();
        match self {
            Linear::F32 { .. } => 4 * out * inp,
            Linear::Bf16 { .. } => 2 * out * inp,
            Linear::Int8 { .. } | Linear::WeightInt8 { .. } => out * inp,
            Linear::Int4 { weight, .. } | Linear::WeightInt4 { weight, .. } => {
                out * (inp / 2 + 8 * inp.div_ceil(weight.group()))
            }
        }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Linear::F32 { weight, .. } => (weight.out(), weight.inp()),
            Linear::Bf16 { weight, .. } => (weight.out(), weight.inp()),
            Linear::Int8 { weight, shaping, .. } => (weight.out(), weight.inp() - shaping.columns().len()),
            Linear::WeightInt8 { weight, .. } => (weight.out(), weight.inp()),
            Linear::Int4 { weight, .. } | Linear::WeightInt4 { weight, .. } => (weight.out(), weight.inp()),
        }
    }
}

/// `x` as a float product with shaped weights reads it: smoothed, with extra columns of zeros up to `cols`, since a
/// float value needs no others and adds nothing to any sum there.
fn smoothed(x: &Matrix, shaping: &Shaping, cols: usize) -> Matrix {
    let mut wide = Matrix::zeros(x.rows(), cols);
    for i in 0..x.rows() {
        let row = &mut wide.row_mut(i)[..x.cols()];
        row.copy_from_slice(x.row(i));
        shaping.smooth(row);
    }
    wide
}

/// The element type of a float table kept as file bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloatFormat {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatFormat {
    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            FloatFormat::F32 => 4,
            FloatFormat::F16 | FloatFormat::Bf16 => 2,
        }
    }
}

/// An embedding table `[rows, width]`, read row by row where it lies; never expanded.
#[derive(Clone, Debug)]
pub struct Table {
    rows: usize,
    width: usize,
    cells: Cells,
}

#[derive(Clone, Debug)]
enum Cells {
    Float { format: FloatFormat, bytes: Bytes },
    Int8 { codes: Bytes, scale: Vec<f32> },
    Int4 { packed: Bytes, scale: Vec<f32>, group: usize },
}

impl Table {
    /// A float table over little-endian `bytes`.
    ///
    /// `None` if the byte count does not fit the shape.
    pub fn float(rows: usize, width: usize, format: FloatFormat, bytes: Bytes) -> Option<Table> {
        let fits = rows.checked_mul(width)?.checked_mul(format.bytes())? == bytes.len();
        fits.then_some(Table { rows, width, cells: Cells::Float { format, bytes } })
    }

    /// A table of int8 codes with one scale per row.
    ///
    /// `None` if the counts do not fit the shape.
    pub fn int8(rows: usize, width: usize, codes: Bytes, scale: Vec<f32>) -> Option<Table> {
        let fits = rows.checked_mul(width)? == codes.len() && scale.len() == rows;
        fits.then_some(Table { rows, width, cells: Cells::Int8 { codes, scale } })
    }

    /// A table of 4-bit codes, two to a byte (the first in the low half) as code + 8, `group` > 0 columns of a row
    /// with one scale.
    ///
    /// `None` if the counts do not fit the shape.
    pub fn int4(rows: usize, width: usize, packed: Bytes, scale: Vec<f32>, group: usize) -> Option<Table> {
        let even = width.is_multiple_of(2) && group > 0 && width.is_multiple_of(group);
        let fits = even && rows.checked_mul(width / 2)? == packed.len();
        let scaled = fits && rows.checked_mul(width / group)? == scale.len();
        scaled.then_some(Table { rows, width, cells: Cells::Int4 { packed, scale, group } })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes row `row` into `out`, `[width]`. Integers: `code * scale`.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.width);
        let cells = row * self.width..(row + 1) * self.width;
        match &self.cells {
            Cells::Int8 { codes, scale } => {
                let scale = scale[row];
                for (y, &c) in out.iter_mut().zip(&codes[cells]) {
                    *y = f32::from(c as i8) * scale;
                }
            }
            Cells::Int4 { packed, scale, group } => {
                let groups = self.width / group;
                let bytes = &packed[cells.start / 2..cells.end / 2];
                let scale = &scale[row * groups..(row + 1) * groups];
                for (k, y) in out.iter_mut().enumerate() {
                    let code = (bytes[k / 2] >> (k % 2 * 4) & 15).cast_signed() - 8;
                    *y = f32::from(code) * scale[k / group];
                }
            }
            Cells::Float { format, bytes } => {
                let n = format.bytes();
                let bytes = bytes[cells.start * n..cells.end * n].chunks_exact(n);
                for (y, b) in out.iter_mut().zip(bytes) {
                    *y = match format {
                        FloatFormat::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                        FloatFormat::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                        FloatFormat::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                    };
                }
            }
        }
    }

    /// Codes and scales, if the table is int8.
    pub fn int8_parts(&self) -> Option<(&Bytes, &[f32])> {
        match &self.cells {
            Cells::Int8 { codes, scale } => Some((codes, scale)),
            Cells::Float { .. } | Cells::Int4 { .. } => None,
        }
    }
}

/// LayerNorm parameters, each `[width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Gain.
    pub weight: Vec<f32>,
    /// Shift.
    pub bias: Vec<f32>,
}
