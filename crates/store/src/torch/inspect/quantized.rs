//! Quantized tensors of a file: codes, scales, zero points.

use super::Walk;
use crate::safetensors::show;
use crate::tensor::{Dtype, Tensor};
use crate::torch::entry::{Entry, Quantized, numbers};
use crate::torch::globals::{QDtype, QScheme};
use crate::torch::value::{Id, Quantizer, Value};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};

impl<F: Fn(&str) -> Option<Bytes>> Walk<'_, F> {
    pub(super) fn quantized(&mut self, name: &str, codes: Id, quantizer: Quantizer) -> Result<Quantized> {
        let (dtype, codes) = match self.nibbles(codes).map_err(|e| e.at(show(name)))? {
            Some((codes, storage, bytes)) => {
                self.note(name, storage, (0, bytes))?;
                (QDtype::QUInt4, codes)
            }
            None => {
                let codes = self.tensor(name, codes)?.0;
                let dtype = QDtype::of_codes(codes.dtype()).ok_or_else(|| {
                    Error::unsupported("quantized tensor has codes of an unknown type")
                        .at(show(name))
                        .found(codes.dtype())
                })?;
                (dtype, codes)
            }
        };
        Ok(match quantizer {
            Quantizer::PerTensor { scheme, scale, zero_point } => Quantized {
                dtype,
                scheme,
                scales: vec![scale],
                zero_points: vec![zero_point as f64],
                axis: 0,
                codes,
            },
            Quantizer::PerChannel { scheme, scales, zero_points, axis } => {
                let scales = numbers(&self.tensor(name, scales)?.0);
                let (zero_tensor, _) = self.tensor(name, zero_points)?;
                let zero_points = numbers(&zero_tensor);
                let channels = codes.shape().get(axis).copied();
                if channels != Some(scales.len()) || scales.len() != zero_points.len() {
                    return Err(Error::corrupt("quantized tensor has the wrong number of scales")
                        .at(show(name))
                        .expected(format!("one for each index of axis {axis} of {:?}", codes.shape()))
                        .found(format!("{} scales, {} zero points", scales.len(), zero_points.len())));
                }
                // Torch writes both kinds under one name; zero points that are floats tell them apart.
                let float = zero_tensor.dtype().is_float() && scheme == QScheme::PerChannelAffine;
                let scheme = if float { QScheme::PerChannelFloat } else { scheme };
                Quantized { dtype, scheme, scales, zero_points, axis, codes }
            }
        })
    }

    /// A module that pickles itself as a tuple instead of a dict. Quantized convolutions do; what else does is
    /// named, so that nobody takes its weights for missing.
    pub(super) fn tuple_state(&mut self, name: &str, module: Id, parts: &[Id]) -> Result<()> {
        let class = self.class(module);
        // The end of torch's `_ConvNd.__getstate__`, whose ten values before are sizes.
        let convolution = is_convolution(&class) && parts.len() == 15;
        if let [.., weight, bias, scale, zero_point, _training] = *parts
            && convolution
            && self.is_weight(weight)
        {
            for (part, id) in
                [("weight", weight), ("bias", bias), ("scale", scale), ("zero_point", zero_point)]
            {
                let key = if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
                let entry = match self.values.get(id) {
                    Value::Int(v) => Entry::Scalar(*v as f64),
                    Value::Float(v) => Entry::Scalar(*v),
                    _ if self.is_weight(id) => self.weight(&key, id)?,
                    _ => continue, // without a bias there is None
                };
                self.keep(key, entry)?;
            }
            return Ok(());
        }
        if parts.iter().any(|&p| self.is_weight(p)) {
            self.keep(name.to_owned(), Entry::Other(format!("a {class}, whose state cannot be read")))?;
        }
        Ok(())
    }

    /// The codes of a tensor of half bytes, one byte each, with its storage and size; `None` for others.
    fn nibbles(&self, id: Id) -> Result<Option<(Tensor, Id, usize)>> {
        let Value::Tensor { storage, offset, shape, .. } = self.values.get(id) else { return Ok(None) };
        let Value::Storage { nibbles: true, .. } = self.values.get(*storage) else { return Ok(None) };
        let (_, bytes) = self.builder.storage(*storage)?;
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // Torch packs a whole tensor at a time, so anything but one tensor in its storage is a lie.
        if *offset != 0 || count.is_none_or(|n| n.div_ceil(2) != bytes.len()) {
            return Err(Error::corrupt("codes of four bits do not fill their storage"));
        }
        let codes = bytes.iter().flat_map(|b| [b & 15, b >> 4]).take(count.unwrap_or(0)).collect::<Vec<u8>>();
        Ok(Some((Tensor::new(Dtype::U8, shape.clone(), Bytes::from(codes))?, *storage, bytes.len())))
    }
}

/// Whether a class is one of torch's quantized convolutions, static or dynamic, of this or an older path.
fn is_convolution(class: &str) -> bool {
    let last = class.rsplit('.').next().unwrap_or(class);
    class.starts_with("torch.") && class.contains(".quantized.") && last.contains("Conv")
}
