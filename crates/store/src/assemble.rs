//! Named tensors to a runnable model, with an account of every tensor: what is there and fits is looked up module by
//! module, then linears are packed side by side (`linears`).

mod linears;

use linears::{Pending, Stored, pack_int8};

use crate::int4::{self, PARTS};
use crate::layout::{self, LinearRole, Module, Role};
use crate::names;
use crate::tensor::{Dtype, Tensor};
use qberta_kernels::{Context, FixedGrid, HeadGrids, Operands, PackedF32, RowGrid, Shaping, Values};
use qberta_model::{
    Architecture, Error, FloatFormat, HeadSlot, InputGrid, Linear, Model, Norm, Result, Site, Table,
    TalkingHeads, Weights,
};
use std::collections::{BTreeMap, BTreeSet};

/// Suffix of the tensor that holds the scales of an int8 weight, as in compressed-tensors.
pub const SCALE: &str = "_scale";

/// Ends of the names of the tensors `[1]` that hold the grid of a static input, as in compressed-tensors: the
/// scale, and the zero point as a signed code (0..=255 less 128).
pub const INPUT_GRID: [&str; 2] = ["input_scale", "input_zero_point"];

/// Ends of the names of the tensors `[heads]` that hold the scales of the queries and of the keys of an attention whose
/// scores are products of codes on stored grids.
pub const HEAD_GRIDS: [&str; 2] = ["q_scale", "k_scale"];

/// How an int8 module treats its input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Int8Input {
    /// Quantized per token while running.
    Dynamic(RowGrid, Channels),
    /// Quantized with the grid stored beside the weight.
    Static(Channels),
    /// Queries and keys quantized with the grids stored for each head.
    StaticHeads(Channels),
    /// Values of an attention quantized per channel while running.
    DynamicChannels(Channels),
    /// Left in float.
    Float,
}

/// What happens to the channels of an input before it is coded (see [`Shaping`]).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Channels {
    /// The channel that each extra column repeats, ascending.
    pub repeated: Vec<u32>,
    /// The power of two that each channel is divided by; empty if none is.
    pub shifts: Vec<i8>,
}

impl Channels {
    fn is_empty(&self) -> bool {
        self.repeated.is_empty() && self.shifts.is_empty()
    }

    fn shaping(&self, weight: &str, inp: usize) -> Result<Shaping> {
        Shaping::new(self.repeated.clone(), inp)
            .and_then(|shaping| shaping.smoothed(&self.shifts, inp))
            .map_err(|e| Error::corrupt("channels of the input are unusable").at(weight).found(e))
    }
}

/// What became of the tensors of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Tensors that the model reads, or that its class holds.
    pub used: BTreeSet<String>,
    /// Tensors left out, with the reason.
    pub ignored: BTreeMap<String, String>,
}

/// Builds a model from canonical tensors (see [`names::canonical`]). `inputs` says how each int8 module
/// treats its input.
///
/// Errors: a missing tensor, a wrong shape or type, a value that is not finite; each names the tensor.
pub fn assemble(
    arch: &Architecture,
    tensors: &BTreeMap<String, Tensor>,
    inputs: impl Fn(&str) -> Int8Input,
    cx: &Context,
) -> Result<(Model, Account)> {
    let mut builder =
        Builder { tensors, used: BTreeSet::new(), weights: Weights::default(), pending: Vec::new() };
    for module in layout::modules(arch) {
        builder.module(&module, inputs(&module.name))?;
    }
    let Builder { used, mut weights, pending, .. } = builder;
    for packed in cx.threads.each(pending.len(), |i| pending[i].pack()) {
        weights.linears.extend(packed?);
    }
    let ignored = tensors
        .keys()
        .filter(|n| !used.contains(*n))
        .map(|n| {
            let tied = arch.head.task == qberta_model::Task::FillMask && is_decoder(n);
            let reason = if tied {
                "equal to the word table, stored once".to_owned()
            } else {
                names::reason_to_ignore(arch, n)
            };
            (n.clone(), reason)
        })
        .collect();
    let model = Model::new(arch.clone(), weights, cx)?;
    Ok((model, Account { used, ignored }))
}

fn is_decoder(name: &str) -> bool {
    [
        "cls.predictions.decoder.weight",
        "lm_head.decoder.weight",
        "vocab_projector.weight",
        "generator_lm_head.weight",
    ]
    .contains(&name)
        || ["cls.predictions.decoder.bias", "lm_head.decoder.bias"].contains(&name)
}

struct Builder<'t> {
    tensors: &'t BTreeMap<String, Tensor>,
    used: BTreeSet<String>,
    weights: Weights,
    /// Linears that are still to be packed.
    pending: Vec<Pending<'t>>,
}

impl<'t> Builder<'t> {
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<&'t Tensor> {
        let tensor = self.tensors.get(name).ok_or_else(|| {
            Error::corrupt("tensor is missing from the checkpoint").at(name).expected(format!("{shape:?}")).hint(
                "every layer must come from the file; nothing is initialised at random. Check that config.json \
                 (architectures, sizes) belongs to these weights",
            )
        })?;
        if tensor.shape() != shape {
            return Err(Error::corrupt("tensor has the wrong shape")
                .at(name)
                .expected(format!("{shape:?}"))
                .found(format!("{:?}", tensor.shape()))
                .hint("config.json and the weights disagree"));
        }
        self.used.insert(name.to_owned());
        Ok(tensor)
    }

    fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        values(name, self.get(name, shape)?)
    }

    fn scales(&mut self, weight: &str, rows: usize) -> Result<Vec<f32>> {
        let name = format!("{weight}{SCALE}");
        let scale = self.floats(&name, &[rows, 1])?;
        match scale.iter().position(|s| *s <= 0.0) {
            Some(row) => Err(Error::corrupt("scale is not positive")
                .at(name)
                .found(format!("{} in row {row}", scale[row]))),
            None => Ok(scale),
        }
    }

    /// The 4-bit weight called `name`, of this shape.
    fn int4(&mut self, name: &str, out: usize, inp: usize) -> Result<int4::Int4> {
        let int4 = int4::read(self.tensors, name)?;
        if (int4.rows, int4.cols) != (out, inp) {
            return Err(Error::corrupt("tensor has the wrong shape")
                .at(name)
                .expected(format!("[{out}, {inp}]"))
                .found(format!("[{}, {}] in 4 bits", int4.rows, int4.cols))
                .hint("config.json and the weights disagree"));
        }
        self.used.extend(PARTS.map(|end| format!("{name}{end}")));
        Ok(int4)
    }

    fn matrix(&mut self, name: &str, out: usize, inp: usize) -> Result<Stored<'t>> {
        if int4::is_there(self.tensors, name) {
            return Ok(Stored::Int4(self.int4(name, out, inp)?));
        }
        let tensor = self.get(name, &[out, inp])?;
        if tensor.dtype() != Dtype::I8 {
            return Ok(Stored::Float(tensor));
        }
        let scale = self.scales(name, out)?;
        Ok(Stored::Int8 { tensor, scale })
    }

    fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<Table> {
        if int4::is_there(self.tensors, name) {
            let int4 = self.int4(name, rows, width)?;
            return Table::int4(rows, width, int4.packed, int4.scale, int4.group.inputs())
                .ok_or_else(|| Error::corrupt("4-bit table has the wrong shape").at(name));
        }
        let tensor = self.get(name, &[rows, width])?;
        let table = match float_format(tensor.dtype()) {
            Some(format) => Table::float(rows, width, format, tensor.bytes().clone()),
            None if tensor.dtype() == Dtype::I8 => {
                let scale = self.scales(name, rows)?;
                Table::int8(rows, width, tensor.bytes().clone(), scale)
            }
            None => None,
        };
        table.ok_or_else(|| {
            Error::unsupported("table has an element type that cannot be read")
                .at(name)
                .expected("F32, F16, BF16 or I8")
                .found(tensor.dtype().name())
        })
    }

    fn module(&mut self, module: &Module, input: Int8Input) -> Result<()> {
        let name = module.name.as_str();
        let weight = format!("{name}.weight");
        match (&input, &module.role) {
            (Int8Input::Static(_), Role::Linear(_) | Role::Scores { .. }) => {}
            (Int8Input::StaticHeads(_), Role::Scores { .. }) => {}
            (Int8Input::Static(_) | Int8Input::StaticHeads(_), _) => {
                return Err(Error::corrupt("static input is recorded for a module that has none").at(name));
            }
            (Int8Input::DynamicChannels(_), role) if !matches!(role, Role::Context { .. }) => {
                return Err(Error::corrupt("only the context of an attention has values as codes").at(name));
            }
            _ => {}
        }
        match &module.role {
            Role::Table { site, rows, width } => {
                let table = self.table(&weight, *rows, *width)?;
                self.weights.tables.insert(*site, table);
            }
            Role::Norm { site, width } => {
                let norm = Norm {
                    weight: self.floats(&weight, &[*width])?,
                    bias: self.floats(&format!("{name}.bias"), &[*width])?,
                };
                self.weights.norms.insert(*site, norm);
            }
            Role::Linear(role) => self.linear(name, role, input)?,
            Role::Conv { hidden, groups, kernel } => {
                let stored = self.floats(&weight, &[*hidden, hidden / groups, *kernel])?;
                let dense = conv_as_linear(&stored, *hidden, *groups, *kernel);
                let bias = Some(self.floats(&format!("{name}.bias"), &[*hidden])?);
                let weight = PackedF32::pack(&dense, *hidden, kernel * hidden);
                self.weights.linears.insert(Site::Conv, Linear::F32 { weight, bias });
            }
            Role::Scores { layer, heads } => {
                let operands = match input {
                    Int8Input::Float => Operands::Float,
                    Int8Input::Dynamic(RowGrid::Symmetric, channels) if channels.is_empty() => Operands::Int8,
                    Int8Input::StaticHeads(channels) if channels.is_empty() => {
                        Operands::Int8Static(self.head_grids(name, *heads)?)
                    }
                    _ => {
                        return Err(Error::corrupt("attention scores cannot be computed like this")
                            .at(name)
                            .expected("float input, int8 per-token symmetric dynamic or int8 per-head symmetric static, without extra columns"));
                    }
                };
                self.weights.scores.resize(*layer, Operands::Float);
                self.weights.scores.push(operands);
            }
            Role::Context { layer } => {
                let values = match input {
                    Int8Input::Float => Values::Float,
                    Int8Input::DynamicChannels(channels) if channels.is_empty() => Values::Int8,
                    _ => {
                        return Err(Error::corrupt("attention context cannot be computed like this")
                            .at(name)
                            .expected(
                                "float input or int8 per-channel asymmetric dynamic, without extra columns",
                            ));
                    }
                };
                self.weights.context.resize(*layer, Values::Float);
                self.weights.context.push(values);
            }
            Role::Mix { layer, after_softmax, heads } => {
                let values = self.floats(&weight, &[*heads, *heads])?;
                if self.weights.talking.len() <= *layer {
                    self.weights.talking.resize(*layer + 1, TalkingHeads { logits: vec![], weights: vec![] });
                }
                let mix = &mut self.weights.talking[*layer];
                *(if *after_softmax { &mut mix.weights } else { &mut mix.logits }) = values;
            }
            Role::Vocabulary { bias, out, inp } => self.vocabulary(&weight, bias, *out, *inp)?,
            Role::Kept => {
                for part in ["weight", "bias"] {
                    let tensor = format!("{name}.{part}");
                    if self.tensors.contains_key(&tensor) {
                        self.used.insert(tensor);
                    }
                }
            }
        }
        Ok(())
    }

    /// The stored grid of a static input.
    fn input_grid(&mut self, module: &str) -> Result<FixedGrid> {
        let [scale_name, zero_name] = INPUT_GRID.map(|end| format!("{module}.{end}"));
        for name in [&scale_name, &zero_name] {
            if !self.tensors.contains_key(name) {
                return Err(Error::corrupt(
                    "static input has no stored grid: the model was never calibrated",
                )
                .at(name)
                .expected("a tensor [1]")
                .hint("quantize again with --recipe static --calibration FILE"));
            }
        }
        let scale = self.floats(&scale_name, &[1])?[0];
        let zero = self.get(&zero_name, &[1])?.i8().map_err(|e| e.at(&zero_name))?[0];
        FixedGrid::new(scale, zero.cast_unsigned() ^ 0x80)
            .map_err(|e| Error::corrupt("input scale is unusable").at(scale_name).found(e))
    }

    /// The stored grids of the queries and keys of an attention.
    fn head_grids(&mut self, module: &str, heads: usize) -> Result<HeadGrids> {
        let [query, key] = HEAD_GRIDS.map(|end| format!("{module}.{end}"));
        for name in [&query, &key] {
            if !self.tensors.contains_key(name) {
                return Err(Error::corrupt("attention has no stored grids: the model was never calibrated")
                    .at(name)
                    .expected(format!("a tensor [{heads}]"))
                    .hint("quantize again with a recipe of static scores and --calibration FILE"));
            }
        }
        let [queries, keys] = [self.floats(&query, &[heads])?, self.floats(&key, &[heads])?];
        HeadGrids::new(&queries, &keys)
            .map_err(|e| Error::corrupt("scale of an attention is unusable").at(module).found(e))
    }

    fn linear(&mut self, module: &str, role: &LinearRole, input: Int8Input) -> Result<()> {
        let weight = &format!("{module}.weight");
        let stored = self.matrix(weight, role.out, role.inp)?;
        let float = matches!(stored, Stored::Float(_));
        let run = match input {
            Int8Input::Static(_) if float => {
                return Err(Error::corrupt("static input is recorded for a float weight").at(weight));
            }
            Int8Input::Float => None,
            _ if float => None,
            Int8Input::Dynamic(grid, channels) => Some((InputGrid::Row(grid), channels)),
            Int8Input::StaticHeads(_) | Int8Input::DynamicChannels(_) => {
                return Err(Error::corrupt("grids of attention are recorded for a linear").at(weight));
            }
            Int8Input::Static(channels) => Some((InputGrid::Fixed(self.input_grid(module)?), channels)),
        };
        let out = role.out / role.sites.len();
        let bias = |builder: &mut Self, bias: &Option<String>| {
            bias.as_deref().map(|b| builder.floats(b, &[out])).transpose()
        };
        let biases = role.sites.iter().map(|(_, b)| bias(self, b)).collect::<Result<_>>()?;
        self.pending.push(Pending { module: module.to_owned(), role: role.clone(), stored, run, biases });
        Ok(())
    }

    /// The vocabulary projection: its own weights if the file has them and they differ from the word
    /// table, else the word table itself, int8 rows becoming int8 output channels.
    fn vocabulary(&mut self, weight: &str, bias: &[String], out: usize, inp: usize) -> Result<()> {
        let stored = bias.iter().find(|b| self.tensors.contains_key(*b)).or(bias.first());
        let bias = stored.map(|b| self.floats(b, &[out])).transpose()?;
        let word = self.tensors.iter().find(|(n, _)| n.ends_with("embeddings.word_embeddings.weight"));
        let equal =
            |t: &Tensor| word.is_some_and(|(_, w)| w.dtype() == t.dtype() && w.bytes()[..] == t.bytes()[..]);
        let packed = int4::is_there(self.tensors, weight);
        let own = packed || self.tensors.get(weight).is_some_and(|t| !equal(t));
        let int8 = self.tensors.get(weight).is_some_and(|t| t.dtype() == Dtype::I8);
        if packed || int8 {
            // An artefact repeats the codes here, because Hugging Face cannot tie quantized weights.
            if int8 {
                self.scales(weight, out)?;
            }
            let copy = format!("{}.bias", weight.trim_end_matches(".weight"));
            self.used.extend([weight.to_owned(), copy].into_iter().filter(|n| self.tensors.contains_key(n)));
        }
        let linear = match (own, &self.weights.tables.get(&Site::WordTable)) {
            (true, _) => self.matrix(weight, out, inp)?.float_input(weight, [out, inp], bias)?,
            (false, Some(table)) => match (table.int8_parts(), word) {
                (Some((codes, scale)), _) => {
                    let packed =
                        pack_int8("word table", bytemuck::cast_slice(codes), scale, (out, inp), &[])?;
                    Linear::WeightInt8 { weight: packed, bias }
                }
                (None, Some((name, tensor))) if tensor.dtype() == Dtype::BF16 => {
                    Stored::Float(tensor).float_input(name, [out, inp], bias)?
                }
                (None, _) => {
                    let mut values = vec![0.0; out * inp];
                    for (row, cells) in values.chunks_exact_mut(inp).enumerate() {
                        table.read(row, cells);
                    }
                    finite("word table", &values)?;
                    Linear::F32 { weight: PackedF32::pack(&values, out, inp), bias }
                }
            },
            (false, None) => return Err(Error::corrupt("word table is missing").at(weight)),
        };
        self.weights.linears.insert(Site::Head(HeadSlot::Output), linear);
        Ok(())
    }
}

/// `[hidden, hidden / groups, kernel]` as a linear over `kernel` neighbours side by side, tap-major;
/// channels of other groups get zero weights.
fn conv_as_linear(stored: &[f32], hidden: usize, groups: usize, kernel: usize) -> Vec<f32> {
    let inner = hidden / groups;
    let mut dense = vec![0.0; hidden * kernel * hidden];
    for out in 0..hidden {
        let first = out / inner * inner;
        for c in 0..inner {
            for tap in 0..kernel {
                dense[out * kernel * hidden + tap * hidden + first + c] =
                    stored[(out * inner + c) * kernel + tap];
            }
        }
    }
    dense
}

/// The format of a float table that can be read where it lies.
fn float_format(dtype: Dtype) -> Option<FloatFormat> {
    match dtype {
        Dtype::F32 => Some(FloatFormat::F32),
        Dtype::F16 => Some(FloatFormat::F16),
        Dtype::BF16 => Some(FloatFormat::Bf16),
        _ => None,
    }
}

/// The values of a float tensor.
fn values(name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
    let values = tensor.to_f32().map_err(|e| e.at(name))?;
    finite(name, &values)?;
    Ok(values)
}

fn finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::corrupt("value is not finite")
            .at(name)
            .found(format!("{} at element {i}", values[i]))
            .hint("the checkpoint is damaged or training diverged; quantizing it would hide that")),
    }
}
