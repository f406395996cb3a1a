//! Stored weights to packed ones. Each linear is packed on its own, so they can be packed side by side.

use super::{Channels, finite, values};
use crate::int4::Int4;
use crate::layout::LinearRole;
use crate::tensor::{Dtype, Tensor};
use qberta_kernels::{PackedBf16, PackedF32, PackedI4, PackedI8};
use qberta_model::{Error, InputGrid, Linear, Result, Site};
use std::borrow::Cow;

/// A stored weight matrix `[out, in]`, of the right shape.
pub(super) enum Stored<'t> {
    Float(&'t Tensor),
    Int8 { tensor: &'t Tensor, scale: Vec<f32> },
    Int4(Int4),
}

impl Stored<'_> {
    /// The linear called `weight` whose input is used as it is.
    pub fn float_input(
        &self,
        weight: &str,
        [out, inp]: [usize; 2],
        bias: Option<Vec<f32>>,
    ) -> Result<Linear> {
        Ok(match self {
            Stored::Float(tensor) => match half(weight, tensor)? {
                Some(bits) => Linear::Bf16 { weight: PackedBf16::pack(&bits, out, inp), bias },
                None => Linear::F32 { weight: PackedF32::pack(&values(weight, tensor)?, out, inp), bias },
            },
            Stored::Int8 { tensor, scale } => {
                let codes = tensor.i8().map_err(|e| e.at(weight))?;
                Linear::WeightInt8 { weight: pack_int8(weight, codes, scale, (out, inp), &[])?, bias }
            }
            Stored::Int4(int4) => {
                let group = int4.group.inputs();
                let packed = pack_int4(weight, &int4.codes(), &int4.scale, [out, inp], group)?;
                Linear::WeightInt4 { weight: packed, bias }
            }
        })
    }
}

/// What a stored weight holds, read.
enum Whole<'w> {
    Float(Vec<f32>),
    Bf16(Vec<u16>),
    /// Codes and scales.
    Int8(&'w [i8], &'w [f32]),
    /// The same, and how many inputs share a scale.
    Int4(Vec<i8>, &'w [f32], usize),
}

/// A linear whose tensors are found: what is left to do depends on nothing else.
pub(super) struct Pending<'t> {
    pub module: String,
    pub role: LinearRole,
    pub stored: Stored<'t>,
    /// What happens to its input, if that is quantized.
    pub run: Option<(InputGrid, Channels)>,
    /// Of each site.
    pub biases: Vec<Option<Vec<f32>>>,
}

impl Pending<'_> {
    /// The linears of its sites. The file's copy of the weight may leave memory afterwards.
    pub fn pack(&self) -> Result<Vec<(Site, Linear)>> {
        let linears = self.linears()?;
        match &self.stored {
            Stored::Float(tensor) | Stored::Int8 { tensor, .. } => tensor.bytes().release(),
            Stored::Int4(int4) => int4.packed.release(),
        }
        Ok(linears)
    }

    fn linears(&self) -> Result<Vec<(Site, Linear)>> {
        let LinearRole { sites, run, inp, out, .. } = &self.role;
        let (parts, inp, out) = (sites.len(), *inp, out / sites.len());
        let weight = &format!("{}.weight", self.module);
        let whole = match &self.stored {
            Stored::Float(tensor) => match half(weight, tensor)? {
                Some(bits) => Whole::Bf16(bits),
                None => Whole::Float(values(weight, tensor)?),
            },
            Stored::Int8 { tensor, scale } => Whole::Int8(tensor.i8().map_err(|e| e.at(weight))?, scale),
            Stored::Int4(int4) => Whole::Int4(int4.codes(), &int4.scale, int4.group.inputs()),
        };
        let one = |(part, ((site, _), bias)): (usize, (&(Site, _), &Option<Vec<f32>>))| {
            let rows = (0..out).map(|r| (r / run * parts + part) * run + r % run);
            let rows = if parts > 1 { Some(rows.collect::<Vec<_>>()) } else { None };
            let linear = self.linear(weight, &whole, rows.as_deref(), [out, inp], bias.clone())?;
            Ok((*site, linear))
        };
        sites.iter().zip(&self.biases).enumerate().map(one).collect()
    }

    /// The linear of rows `rows` (all of them if `None`) of the weight.
    fn linear(
        &self,
        weight: &str,
        whole: &Whole,
        rows: Option<&[usize]>,
        [out, inp]: [usize; 2],
        bias: Option<Vec<f32>>,
    ) -> Result<Linear> {
        Ok(match (whole, &self.run) {
            (Whole::Float(values), _) => {
                Linear::F32 { weight: PackedF32::pack(&select(values, inp, rows), out, inp), bias }
            }
            (Whole::Bf16(bits), _) => {
                Linear::Bf16 { weight: PackedBf16::pack(&select(bits, inp, rows), out, inp), bias }
            }
            (Whole::Int4(codes, scale, group), run) => {
                let (codes, scale) = (select(codes, inp, rows), select(scale, inp / group, rows));
                let packed = pack_int4(weight, &codes, &scale, [out, inp], *group)?;
                match run {
                    Some((input, channels)) if channels.repeated.is_empty() => {
                        let shaping = channels.shaping(&self.module, inp)?;
                        Linear::Int4 { weight: packed, bias, input: *input, shaping }
                    }
                    Some(_) => {
                        return Err(
                            Error::corrupt("4-bit module is recorded with extra columns").at(&self.module)
                        );
                    }
                    None => Linear::WeightInt4 { weight: packed, bias },
                }
            }
            (Whole::Int8(codes, scale), run) => {
                let (codes, scale) = (select(codes, inp, rows), select(scale, 1, rows));
                let pack = |repeat: &[u32]| pack_int8(weight, &codes, &scale, (out, inp), repeat);
                match run {
                    Some((input, channels)) => {
                        let shaping = channels.shaping(weight, inp)?;
                        Linear::Int8 { weight: pack(shaping.columns())?, bias, input: *input, shaping }
                    }
                    None => Linear::WeightInt8 { weight: pack(&[])?, bias },
                }
            }
        })
    }
}

/// The bits of a bfloat16 tensor, whose values are finite; `None` for any other.
fn half(name: &str, tensor: &Tensor) -> Result<Option<Vec<u16>>> {
    if tensor.dtype() != Dtype::BF16 {
        return Ok(None);
    }
    let bits: Vec<u16> = tensor.bytes().as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    // All ones in the exponent is an infinity or a NaN.
    if bits.iter().any(|b| b & 0x7f80 == 0x7f80) {
        finite(name, &tensor.to_f32().map_err(|e| e.at(name))?)?;
    }
    Ok(Some(bits))
}

/// Packs codes `[out, in]`, followed by copies of columns `repeat`.
pub(super) fn pack_int8(
    name: &str,
    codes: &[i8],
    scale: &[f32],
    (out, inp): (usize, usize),
    repeat: &[u32],
) -> Result<PackedI8> {
    PackedI8::pack_repeating(codes, scale, out, inp, repeat)
        .map_err(|e| Error::corrupt("int8 weight cannot run").at(name).found(e))
}

fn pack_int4(
    name: &str,
    codes: &[i8],
    scale: &[f32],
    [out, inp]: [usize; 2],
    group: usize,
) -> Result<PackedI4> {
    PackedI4::pack(codes, scale, out, inp, group)
        .map_err(|e| Error::corrupt("4-bit weight cannot run").at(name).found(e))
}

/// Rows `rows` of `values`, each `width` long; all of them if `None`.
fn select<'v, T: Copy>(values: &'v [T], width: usize, rows: Option<&[usize]>) -> Cow<'v, [T]> {
    let Some(rows) = rows else { return Cow::Borrowed(values) };
    let mut some = Vec::with_capacity(rows.len() * width);
    rows.iter().for_each(|&r| some.extend_from_slice(&values[r * width..(r + 1) * width]));
    Cow::Owned(some)
}
