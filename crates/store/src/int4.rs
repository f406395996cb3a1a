//! 4-bit group weights as compressed-tensors stores them (`pack-quantized`): for a module `X`
//!
//! - `X.weight_packed`: int32 `[rows, cols / 8]`, column `k` in bits `4 (k % 8)..` of word `k / 8`, as code + 8;
//! - `X.weight_scale`: float32 `[rows, cols / group]`, finite and positive;
//! - `X.weight_shape`: int64 `[2]`, rows and columns.
//!
//! The weight is `code * scale`, one float32 product.

use crate::assemble::SCALE;
use crate::manifest::Group;
use crate::tensor::{Dtype, Tensor};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::collections::BTreeMap;

/// What follows the name of a weight in the name of its codes.
pub const PACKED: &str = "_packed";

/// What follows the name of a weight in the name of its shape.
pub const SHAPE: &str = "_shape";

/// The ends of all three names.
pub const PARTS: [&str; 3] = [PACKED, SCALE, SHAPE];

/// A 4-bit matrix, checked: `codes` as stored (two to a byte, code + 8), `scale [rows, cols / group]`.
#[derive(Clone, Debug)]
pub struct Int4 {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Columns that share a scale.
    pub group: Group,
    /// `[rows, cols / 2]`.
    pub packed: Bytes,
    /// `[rows, cols / group]`.
    pub scale: Vec<f32>,
}

/// The tensors of the weight called `name`, from `codes [rows, cols]` in [-8, 7] and `scale [rows, cols / group]`.
///
/// Errors: counts that do not fit, columns that the group does not divide, a code of more than 4 bits.
pub fn tensors(
    name: &str,
    codes: &[i8],
    scale: &[f32],
    [rows, cols]: [usize; 2],
    group: Group,
) -> Result<Vec<(String, Tensor)>> {
    let fits = cols.is_multiple_of(group.inputs()) && rows.checked_mul(cols) == Some(codes.len());
    if !fits || codes.iter().any(|c| !(-8..8).contains(c)) {
        return Err(Error::input("weight cannot be stored in 4 bits")
            .at(name)
            .expected(format!("codes in -8..=7, columns divided by {}", group.inputs()))
            .found(format!("{} codes of a [{rows}, {cols}] weight", codes.len())));
    }
    let nibble = |c: i8| (c + 8).cast_unsigned();
    let bytes: Vec<u8> = codes.as_chunks().0.iter().map(|&[a, b]| nibble(a) | nibble(b) << 4).collect();
    let shape: Vec<u8> = [rows, cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
    Ok(vec![
        (format!("{name}{PACKED}"), Tensor::new(Dtype::I32, vec![rows, cols / 8], Bytes::from(bytes))?),
        (format!("{name}{SCALE}"), Tensor::from_f32(vec![rows, cols / group.inputs()], scale)?),
        (format!("{name}{SHAPE}"), Tensor::new(Dtype::I64, vec![2], Bytes::from(shape))?),
    ])
}

/// Whether the weight called `name` is stored in 4 bits.
pub fn is_there(tensors: &BTreeMap<String, Tensor>, name: &str) -> bool {
    tensors.contains_key(&format!("{name}{PACKED}"))
}

/// Reads the weight called `name`, of whatever shape it says it has.
///
/// Errors: a missing tensor, a wrong shape or type, a group that is not 32, 64 or 128, a bad scale.
pub fn read(tensors: &BTreeMap<String, Tensor>, name: &str) -> Result<Int4> {
    let part = |end: &str, dtype: Dtype| -> Result<(String, &Tensor)> {
        let name = format!("{name}{end}");
        match tensors.get(&name) {
            None => Err(Error::corrupt("part of a 4-bit weight is missing").at(name)),
            Some(t) if t.dtype() != dtype => Err(Error::corrupt("part of a 4-bit weight has the wrong type")
                .at(name)
                .expected(dtype)
                .found(t.dtype())),
            Some(t) => Ok((name, t)),
        }
    };
    let misshapen = |name: &str, expected: String, found: &Tensor| {
        Error::corrupt("part of a 4-bit weight has the wrong shape")
            .at(name)
            .expected(expected)
            .found(format!("{:?}", found.shape()))
    };
    let (shape_name, shape) = part(SHAPE, Dtype::I64)?;
    if shape.shape() != [2] {
        return Err(misshapen(&shape_name, "[2]".into(), shape));
    }
    let sizes: Vec<i64> = shape.bytes().as_chunks().0.iter().map(|c| i64::from_le_bytes(*c)).collect();
    let (packed_name, packed) = part(PACKED, Dtype::I32)?;
    let (scale_name, scales) = part(SCALE, Dtype::F32)?;
    let size = |at: usize| usize::try_from(sizes[at]).ok();
    let (Some(rows), Some(cols)) = (size(0), size(1)) else {
        return Err(Error::corrupt("shape of a 4-bit weight is negative").at(shape_name).found(sizes[0]));
    };
    // Compared as products of what the file holds, so that a huge claim cannot overflow.
    if !cols.is_multiple_of(32) || packed.shape() != [rows, cols / 8] {
        return Err(misshapen(&packed_name, format!("[{rows}, {cols} / 8], columns in groups"), packed));
    }
    let group = match *scales.shape() {
        [r, n] if r == rows && n > 0 && cols.is_multiple_of(n) => Group::of(cols / n),
        _ => None,
    };
    let Some(group) = group else {
        return Err(misshapen(&scale_name, format!("[{rows}, {cols} / 32, 64 or 128]"), scales));
    };
    let scale = scales.to_f32()?;
    if let Some(at) = scale.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(Error::corrupt("scale is not a finite number above 0")
            .at(scale_name)
            .found(format!("{} at element {at}", scale[at])));
    }
    Ok(Int4 { rows, cols, group, packed: packed.bytes().clone(), scale })
}

impl Int4 {
    /// Codes in [-8, 7], `[rows, cols]`.
    pub fn codes(&self) -> Vec<i8> {
        self.packed.iter().flat_map(|b| [(b & 15).cast_signed() - 8, (b >> 4).cast_signed() - 8]).collect()
    }

    /// The weight in float32, `[rows, cols]`.
    ///
    /// Errors: as [`Tensor::from_f32`].
    pub fn to_float(&self) -> Result<Tensor> {
        let groups = self.codes();
        let groups = groups.chunks(self.group.inputs()).zip(&self.scale);
        let values: Vec<f32> = groups.flat_map(|(g, s)| g.iter().map(move |&c| f32::from(c) * s)).collect();
        Tensor::from_f32(vec![self.rows, self.cols], &values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(codes: &[i8], rows: usize, cols: usize, group: Group) -> BTreeMap<String, Tensor> {
        let scale: Vec<f32> = (0..rows * cols / group.inputs()).map(|i| 0.5 + i as f32).collect();
        tensors("x.weight", codes, &scale, [rows, cols], group).unwrap().into_iter().collect()
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(rows in 1usize..5, blocks in 1usize..4, group in 0usize..3, seed: u64) {
            let group = Group::ALL[group];
            let cols = blocks * group.inputs();
            let codes: Vec<i8> = (0..rows * cols)
                .map(|i| (seed.rotate_left(i as u32 % 64).wrapping_mul(0x9e37_79b9) >> 20 & 15) as i8 - 8)
                .collect();
            let read = read(&stored(&codes, rows, cols, group), "x.weight").unwrap();
            prop_assert_eq!(read.codes(), codes.clone());
            prop_assert_eq!((read.rows, read.cols, read.group), (rows, cols, group));
            let float = read.to_float().unwrap().to_f32().unwrap();
            prop_assert_eq!(float[cols - 1], f32::from(codes[cols - 1]) * read.scale[blocks - 1]);
        }
    }

    #[test]
    fn the_layout_is_that_of_compressed_tensors() {
        // pack_to_int32(torch.tensor([[-8, -7, .., 7, 0 * 16]], dtype=torch.int8), 4) of compressed-tensors 0.20.
        let codes: Vec<i8> = (-8..8).chain([0; 16]).collect();
        let tensors = stored(&codes, 1, 32, Group::G32);
        let words: Vec<u32> =
            tensors["x.weight_packed"].bytes().as_chunks().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
        assert_eq!(words, [0x7654_3210, 0xfedc_ba98, 0x8888_8888, 0x8888_8888]);
    }

    #[test]
    fn hostile_parts_are_refused() {
        type Edit = fn(&mut BTreeMap<String, Tensor>);
        let edits: [(&str, Edit); 9] = [
            ("missing", |t| drop(t.remove("x.weight_shape"))),
            ("missing", |t| drop(t.remove("x.weight_scale"))),
            ("wrong type", |t| {
                drop(t.insert("x.weight_packed".into(), Tensor::from_f32(vec![2, 8], &[0.0; 16]).unwrap()))
            }),
            ("wrong shape", |t| {
                drop(t.insert("x.weight_scale".into(), Tensor::from_f32(vec![2, 3], &[1.0; 6]).unwrap()))
            }),
            ("wrong shape", |t| {
                drop(t.insert("x.weight_scale".into(), Tensor::from_f32(vec![2, 0], &[]).unwrap()))
            }),
            ("not a finite", |t| {
                drop(
                    t.insert(
                        "x.weight_scale".into(),
                        Tensor::from_f32(vec![2, 1], &[1.0, f32::NAN]).unwrap(),
                    ),
                )
            }),
            ("not a finite", |t| {
                drop(t.insert("x.weight_scale".into(), Tensor::from_f32(vec![2, 1], &[1.0, -0.0]).unwrap()))
            }),
            ("negative", |t| set_shape(t, [-2, 64])),
            ("wrong shape", |t| set_shape(t, [i64::MAX, i64::MAX - 31])),
        ];
        for (expected, edit) in edits {
            let mut tensors = stored(&[1; 128], 2, 64, Group::G64);
            assert!(read(&tensors, "x.weight").is_ok());
            edit(&mut tensors);
            let error = read(&tensors, "x.weight").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(super::tensors("x", &[8; 32], &[1.0], [1, 32], Group::G32).is_err());
        assert!(super::tensors("x", &[1; 48], &[1.0], [1, 48], Group::G32).is_err());
    }

    fn set_shape(tensors: &mut BTreeMap<String, Tensor>, sizes: [i64; 2]) {
        let bytes: Vec<u8> = sizes.iter().flat_map(|n| n.to_le_bytes()).collect();
        let tensor = Tensor::new(Dtype::I64, vec![2], Bytes::from(bytes)).unwrap();
        tensors.insert("x.weight_shape".into(), tensor);
    }
}
