//! A tensor as it lies in a file: dtype, shape and the little-endian bytes themselves.
//!
//! Readers hand out slices of the memory map, so a tensor may start at any address; every view here copes
//! with bytes that are not aligned. Invariant: `bytes.len() == product(shape) * dtype.bytes()`.

use half::{bf16, f16};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};

/// The element types this crate reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of an IEEE single.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte per truth value.
    Bool,
}

impl Dtype {
    /// Every dtype, widest first.
    pub const ALL: [Dtype; 10] = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::Bool,
    ];

    /// The name in a safetensors header: "F32", "BF16", "BOOL".
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
        }
    }

    /// The dtype with that safetensors name, if it is one of ours.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// Whether [`Tensor::to_f32`] accepts it.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A contiguous, row-major, little-endian tensor. Cloning shares the bytes. Equality compares dtype, shape
/// and every bit (so a NaN equals itself).
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes[..] == other.bytes[..]
    }
}

impl Tensor {
    /// A tensor over `bytes`, which must hold exactly `product(shape)` elements of `dtype`.
    ///
    /// Errors: the product overflows, or the byte length differs from what shape and dtype need.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Bytes) -> Result<Tensor> {
        let needed = byte_len(dtype, &shape).ok_or_else(|| {
            Error::corrupt("tensor is larger than memory can be").found(format!("{shape:?} {dtype}"))
        })?;
        if needed != bytes.len() {
            return Err(Error::corrupt("tensor has the wrong number of bytes")
                .expected(format!("{needed} for {shape:?} {dtype}"))
                .found(bytes.len()));
        }
        Ok(Tensor { dtype, shape, bytes })
    }

    /// An F32 tensor holding `values`, row-major.
    ///
    /// Errors: as [`Tensor::new`].
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Tensor> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(Dtype::F32, shape, Bytes::from(bytes))
    }

    /// A BF16 tensor holding `values` rounded to nearest, ties to even, row-major.
    ///
    /// Errors: as [`Tensor::new`], and a finite value beyond the largest bfloat16.
    pub fn from_bf16(shape: Vec<usize>, values: &[f32]) -> Result<Tensor> {
        if let Some(v) = values.iter().find(|v| v.is_finite() && !bf16::from_f32(**v).is_finite()) {
            return Err(Error::input("value has no bfloat16 near it")
                .expected(format!("at most {:e} either way", f32::from(bf16::MAX)))
                .found(format!("{v:e}"))
                .hint("keep the module in float"));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        Tensor::new(Dtype::BF16, shape, Bytes::from(bytes))
    }

    /// An I8 tensor holding `codes`, row-major.
    ///
    /// Errors: as [`Tensor::new`].
    pub fn from_i8(shape: Vec<usize>, codes: &[i8]) -> Result<Tensor> {
        Tensor::new(Dtype::I8, shape, Bytes::from(bytemuck::cast_slice::<i8, u8>(codes).to_vec()))
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Lengths of the axes, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements as stored.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// The values as f32. F16 and BF16 widen exactly; F64 is rounded to nearest.
    ///
    /// Errors: an integer or bool tensor; a finite F64 too large for f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let b = &self.bytes[..];
        Ok(match self.dtype {
            Dtype::F32 => b.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
            Dtype::F16 => b.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f32()).collect(),
            Dtype::BF16 => b.as_chunks().0.iter().map(|c| bf16::from_le_bytes(*c).to_f32()).collect(),
            Dtype::F64 => {
                let mut values = Vec::with_capacity(self.elements());
                for (i, c) in b.as_chunks().0.iter().enumerate() {
                    let wide = f64::from_le_bytes(*c);
                    let narrow = wide as f32;
                    if wide.is_finite() && !narrow.is_finite() {
                        return Err(Error::unsupported("F64 value does not fit f32")
                            .found(format!("{wide:e} at {i}")));
                    }
                    values.push(narrow);
                }
                values
            }
            other => {
                return Err(Error::unsupported("tensor does not hold floating-point values").found(other));
            }
        })
    }

    /// The codes of an I8 tensor, without a copy.
    ///
    /// Errors: any other dtype.
    pub fn i8(&self) -> Result<&[i8]> {
        if self.dtype != Dtype::I8 {
            return Err(Error::unsupported("tensor does not hold 8-bit codes")
                .expected("I8")
                .found(self.dtype));
        }
        Ok(bytemuck::cast_slice(&self.bytes[..]))
    }

    /// Row-major index of the first NaN or infinity; `None` if there is none, as for integers.
    pub fn first_non_finite(&self) -> Option<usize> {
        let b = &self.bytes[..];
        match self.dtype {
            Dtype::F64 => b.as_chunks().0.iter().position(|c| !f64::from_le_bytes(*c).is_finite()),
            Dtype::F32 => b.as_chunks().0.iter().position(|c| !f32::from_le_bytes(*c).is_finite()),
            Dtype::F16 => b.as_chunks().0.iter().position(|c| !f16::from_le_bytes(*c).is_finite()),
            Dtype::BF16 => b.as_chunks().0.iter().position(|c| !bf16::from_le_bytes(*c).is_finite()),
            _ => None,
        }
    }
}

/// Bytes that `shape` needs in `dtype`; `None` on overflow.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?.checked_mul(dtype.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bytes` as a slice that starts at an odd offset of its buffer.
    fn unaligned(bytes: &[u8]) -> Bytes {
        let mut padded = vec![0xEEu8];
        padded.extend_from_slice(bytes);
        let all = Bytes::from(padded);
        all.slice(1..all.len()).unwrap()
    }

    #[test]
    fn every_float_reads_from_unaligned_bytes() {
        let want = [1.5f32, -2.0, 0.0, f32::INFINITY];
        let f32s: Vec<u8> = want.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f64s: Vec<u8> = want.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
        let f16s: Vec<u8> = want.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = want.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        for (dtype, bytes) in
            [(Dtype::F32, f32s), (Dtype::F64, f64s), (Dtype::F16, f16s), (Dtype::BF16, bf16s)]
        {
            let t = Tensor::new(dtype, vec![2, 2], unaligned(&bytes)).unwrap();
            assert_eq!(t.to_f32().unwrap(), want, "{dtype}");
            assert_eq!(t.first_non_finite(), Some(3), "{dtype}");
            assert_eq!(t.elements(), 4);
        }
    }

    #[test]
    fn a_shape_that_lies_is_refused() {
        assert!(Tensor::new(Dtype::F32, vec![2], Bytes::from(vec![0; 7])).is_err());
        assert!(Tensor::new(Dtype::F32, vec![usize::MAX, 2], Bytes::from(vec![])).is_err());
        assert!(Tensor::new(Dtype::F64, vec![usize::MAX], Bytes::from(vec![])).is_err());
        assert_eq!(Tensor::new(Dtype::F32, vec![0, 4], Bytes::from(vec![])).unwrap().elements(), 0);
        assert_eq!(Tensor::from_f32(vec![], &[3.0]).unwrap().elements(), 1);
    }

    #[test]
    fn integers_are_not_floats_and_floats_are_not_codes() {
        let t = Tensor::from_i8(vec![3], &[-1, 0, 127]).unwrap();
        assert_eq!(t.i8().unwrap(), [-1, 0, 127]);
        assert!(t.to_f32().is_err());
        assert_eq!(t.first_non_finite(), None);
        assert!(Tensor::from_f32(vec![1], &[1.0]).unwrap().i8().is_err());
    }

    #[test]
    fn a_double_that_would_become_infinite_is_refused() {
        let bytes = 1e300f64.to_le_bytes().to_vec();
        let e = Tensor::new(Dtype::F64, vec![1], Bytes::from(bytes)).unwrap().to_f32().unwrap_err();
        assert!(e.to_string().contains("does not fit"), "{e}");
    }

    #[test]
    fn names_are_those_of_safetensors() {
        for d in Dtype::ALL {
            assert_eq!(Dtype::from_name(d.name()), Some(d));
        }
        assert_eq!(Dtype::from_name("F8_E4M3"), None);
    }
}
