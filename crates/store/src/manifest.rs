//! `qberta.json`: what compressed-tensors cannot say about an artefact, and the proof that it works.
//!
//! Canonical bytes: two-space JSON, keys sorted, one newline at the end. The manifest carries the digest
//! of its own canonical bytes (with that field empty), so a changed byte anywhere in it is caught too.

use crate::assemble::{Channels, Int8Input};
use crate::digest;
use qberta_kernels::RowGrid;
use qberta_model::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// File name of the manifest.
pub const NAME: &str = "qberta.json";

/// Newest version of the artefact format; older ones are read too.
///
/// 1: dynamic and weight-only modules. 2: static inputs and the record of their calibration, gates, recipe files.
/// 3: 4-bit group weights, weights fitted to data. 4: attention scores from int8 codes, smoothing, QuantEase.
/// 5: attention scores from int8 codes on stored grids, bfloat16 weights. 6: attention context from codes.
/// A manifest carries the lowest version that can say what it says ([`Manifest::seal`]), so what version 1 could
/// say is written as version 1, byte for byte.
pub const FORMAT_VERSION: u32 = 6;

// Fields are declared in alphabetical order: serde writes them in this order, and the file has sorted keys.

/// The manifest of an artefact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Where the scales of static inputs and fitted weights came from; present exactly when there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// SHA-256 of the canonical bytes with this field empty.
    pub digest: String,
    /// Every other file of the artefact by name.
    pub files: BTreeMap<String, FileRecord>,
    /// How weights were fitted to the calibration data, if they were (version 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fitted: Option<FitRecord>,
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Gates that it passed before it was written (version 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateRecord>,
    /// Tensors of the source that were left out, with the reason.
    pub ignored_tensors: BTreeMap<String, String>,
    /// What was decided for each module that could be quantized.
    pub plan: BTreeMap<String, Decision>,
    /// Inputs with the bits of the outputs they must give.
    pub probes: Vec<Probe>,
    /// What was asked.
    pub recipe: RecipeRecord,
    /// Smoothing of quantized inputs by module: the power of two that each channel is divided by (version 4).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub smooth: BTreeMap<String, Vec<i8>>,
    /// Where the weights came from: digests of the source files by name.
    pub source: BTreeMap<String, FileRecord>,
    /// Extra input columns of int8 modules: the channel each one repeats, ascending.
    pub splits: BTreeMap<String, Vec<u32>>,
    /// SHA-256 of each tensor (type, shape, bytes), to name the first damaged one.
    pub tensors: BTreeMap<String, String>,
    /// The version of the tool that wrote it.
    pub tool: String,
}

/// What calibration data did to weights and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitRecord {
    /// Biases of quantized linears make up for the mean error of their outputs.
    pub bias_correction: bool,
    /// How weights were rounded.
    pub rounding: Rounding,
}

/// How a weight becomes a code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest code.
    #[default]
    Nearest,
    /// One input after the other, each making up for the error of those before on the calibration data.
    Gptq,
    /// GPTQ, and then code by code as long as the outputs on the calibration data get closer (version 4).
    Quantease,
}

/// The data that set the scales of static inputs, or that weights were fitted to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// How ranges of static inputs were chosen; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observer: Option<String>,
    /// Sequences seen.
    pub sequences: u64,
    /// SHA-256 of their token ids and types, in order.
    pub sha256: String,
    /// Tokens seen.
    pub tokens: u64,
}

/// Size and digest of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// The recipe as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeRecord {
    /// Its name.
    pub name: String,
    /// Patterns of modules kept in float.
    pub skip: Vec<String>,
    /// The canonical text of a recipe that is not a preset (version 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toml: Option<String>,
}

/// A gate that an artefact passed. Figures are in points, as decimal text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateRecord {
    /// The data it was decided on: its name, size and digest.
    pub data: BTreeMap<String, FileRecord>,
    /// What decided: `interval` (its lower end) or `point`.
    pub decided_on: String,
    /// The figure of the artefact.
    pub figure: String,
    /// The gate as written.
    pub gate: String,
    /// The 95 % interval of `value`, empty if there is none.
    pub interval: Vec<String>,
    /// The figure of the float model, where it was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Examples.
    pub rows: u64,
    /// What the gate bounds: the difference from the float model, or the figure.
    pub value: String,
}

/// How one module is stored and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// What happens to its input.
    pub input: Input,
    /// How its weight is stored.
    pub weight: Weight,
}

/// What happens to the input of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Used as it is.
    #[serde(rename = "float")]
    Float,
    /// Quantized per token while running, `code * scale`.
    #[serde(rename = "int8 per-token symmetric dynamic")]
    TokenSymmetric,
    /// Quantized per token while running, `(code - zero_point) * scale`.
    #[serde(rename = "int8 per-token asymmetric dynamic")]
    TokenAsymmetric,
    /// Quantized with one stored grid, `(code - zero_point) * scale`.
    #[serde(rename = "int8 per-tensor asymmetric static")]
    TensorStatic,
    /// Of an attention: queries and keys quantized with one stored grid for each head, `code * scale` (version 5).
    #[serde(rename = "int8 per-head symmetric static")]
    HeadStatic,
    /// Of an attention's context: values quantized per sequence and channel while running, `centre + code * scale`,
    /// weights in 14 bits (version 6).
    #[serde(rename = "int8 per-channel asymmetric dynamic")]
    ChannelAsymmetric,
}

impl Input {
    /// Whether its grid is stored, so that data have set it.
    pub fn is_static(self) -> bool {
        matches!(self, Input::TensorStatic | Input::HeadStatic)
    }
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Weight {
    /// As in the source.
    Float,
    /// Rounded to bfloat16 (version 5).
    Bf16,
    /// Codes in [-127, 127] with one scale per output channel (rows of a table count as channels).
    Int8Channel,
    /// Codes in [-7, 7] with one scale per output channel and group of inputs.
    Int4(Group),
}

/// Inputs that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// 32.
    G32,
    /// 64.
    G64,
    /// 128.
    G128,
}

impl Group {
    /// Every size.
    pub const ALL: [Group; 3] = [Group::G32, Group::G64, Group::G128];

    /// How many inputs.
    pub fn inputs(self) -> usize {
        match self {
            Group::G32 => 32,
            Group::G64 => 64,
            Group::G128 => 128,
        }
    }

    /// The group of so many inputs.
    pub fn of(inputs: usize) -> Option<Group> {
        Group::ALL.into_iter().find(|g| g.inputs() == inputs)
    }
}

impl Weight {
    /// Whether it is stored as integers and scales.
    pub fn is_coded(self) -> bool {
        !matches!(self, Weight::Float | Weight::Bf16)
    }

    /// Every way of storing a weight, by its name in a manifest.
    const NAMES: [(Weight, &str); 6] = [
        (Weight::Float, "float"),
        (Weight::Bf16, "bf16"),
        (Weight::Int8Channel, "int8 per-channel symmetric"),
        (Weight::Int4(Group::G32), "int4 per-group-32 symmetric"),
        (Weight::Int4(Group::G64), "int4 per-group-64 symmetric"),
        (Weight::Int4(Group::G128), "int4 per-group-128 symmetric"),
    ];
}

impl From<Weight> for String {
    fn from(weight: Weight) -> String {
        Weight::NAMES.iter().find(|(w, _)| *w == weight).map_or_else(String::new, |(_, n)| (*n).to_owned())
    }
}

impl TryFrom<String> for Weight {
    type Error = String;
    fn try_from(name: String) -> std::result::Result<Weight, String> {
        let known = Weight::NAMES.iter().find(|(_, n)| *n == name);
        known.map(|(w, _)| *w).ok_or_else(|| format!("unknown way of storing a weight {name:?}"))
    }
}

impl Decision {
    /// Left as it is.
    pub const FLOAT: Decision = Decision { input: Input::Float, weight: Weight::Float };

    /// Of an attention, which has no weight: its scores are products of int8 codes, each row of each head (query,
    /// key, projected position) on its own grid.
    pub const INT8_SCORES: Decision = Decision { input: Input::TokenSymmetric, weight: Weight::Float };

    /// The same with one stored grid for the queries of each head, and one for its keys; positions as above.
    pub const STATIC_SCORES: Decision = Decision { input: Input::HeadStatic, weight: Weight::Float };

    /// Of an attention's context, which has no weight either: attention weights and values are codes.
    pub const INT8_CONTEXT: Decision = Decision { input: Input::ChannelAsymmetric, weight: Weight::Float };

    /// Whether it is about the scores of an attention.
    pub fn of_scores(self) -> bool {
        self == Decision::INT8_SCORES || self == Decision::STATIC_SCORES
    }

    /// Whether it is about products of activations with each other: only those have codes without a weight.
    pub fn of_attention(self) -> bool {
        self.of_scores() || self == Decision::INT8_CONTEXT
    }
}

/// One recorded input and the output it must give, bit for bit, alone or in any batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Little-endian f32 bits of the first values, hex.
    pub bits: String,
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// SHA-256 of the bits of all values.
    pub sha256: String,
    /// Rows and columns of the output.
    pub shape: [usize; 2],
    /// Token types, empty when the model has none.
    pub token_type_ids: Vec<u32>,
}

impl Manifest {
    /// How `module` treats its input, as the loader needs to know it.
    pub fn int8_input(&self, module: &str) -> Int8Input {
        let channels = || Channels {
            repeated: self.splits.get(module).cloned().unwrap_or_default(),
            shifts: self.smooth.get(module).cloned().unwrap_or_default(),
        };
        let grid = match self.plan.get(module).map(|d| d.input) {
            None | Some(Input::Float) => return Int8Input::Float,
            Some(Input::TensorStatic) => return Int8Input::Static(channels()),
            Some(Input::HeadStatic) => return Int8Input::StaticHeads(channels()),
            Some(Input::ChannelAsymmetric) => return Int8Input::DynamicChannels(channels()),
            Some(Input::TokenSymmetric) => RowGrid::Symmetric,
            Some(Input::TokenAsymmetric) => RowGrid::Asymmetric,
        };
        Int8Input::Dynamic(grid, channels())
    }

    /// Whether some input of the plan is static.
    fn is_static(&self) -> bool {
        self.plan.values().any(|d| d.input.is_static())
    }

    /// Whether inputs belong to their weights, and plan and calibration together.
    fn consistent(&self) -> Result<()> {
        let possible = |d: &Decision| match d.weight {
            Weight::Float => d.input == Input::Float || d.of_attention(),
            Weight::Bf16 => d.input == Input::Float,
            Weight::Int8Channel | Weight::Int4(_) => {
                !matches!(d.input, Input::HeadStatic | Input::ChannelAsymmetric)
            }
        };
        if let Some((module, _)) = self.plan.iter().find(|(_, d)| !possible(d)) {
            return Err(Error::corrupt("plan quantizes an input whose weight cannot take it")
                .at(NAME)
                .found(module));
        }
        let is_static = self.is_static();
        let coded = |module: &String| {
            self.plan.get(module).is_some_and(|d| d.weight.is_coded() && d.input != Input::Float)
        };
        if let Some(module) = self.smooth.keys().find(|m| !coded(m)) {
            return Err(Error::corrupt("smoothing is recorded for a module whose input is not quantized")
                .at(NAME)
                .found(module));
        }
        if self.fitted == Some(FitRecord { bias_correction: false, rounding: Rounding::Nearest }) {
            return Err(Error::corrupt("weights are recorded as fitted, in no way").at(NAME));
        }
        match (&self.calibration, is_static || self.fitted.is_some() || !self.smooth.is_empty()) {
            (Some(c), true) if c.observer.is_some() != is_static => {
                Err(Error::corrupt("calibration names an observer exactly if an input is static").at(NAME))
            }
            (Some(c), true) if c.sequences > 0 && c.tokens > 0 => Ok(()),
            (None, false) => Ok(()),
            (Some(_), true) => Err(Error::corrupt("model was calibrated on nothing").at(NAME)),
            (None, true) if !is_static => {
                Err(Error::corrupt("weights are fitted or smoothed, but no calibration is recorded").at(NAME))
            }
            (Some(_), false) => {
                Err(Error::corrupt("calibration is recorded, but no input of the plan is static").at(NAME))
            }
            (None, true) => {
                let module = self.plan.iter().find(|(_, d)| d.input.is_static());
                Err(Error::corrupt("input is static, but no calibration is recorded")
                    .at(NAME)
                    .found(module.map_or("", |(name, _)| name)))
            }
        }
    }

    /// The lowest format version that can say what this manifest says.
    fn version(&self) -> u32 {
        if self.plan.values().any(|d| *d == Decision::INT8_CONTEXT) {
            return 6;
        }
        if self.plan.values().any(|d| d.input == Input::HeadStatic || d.weight == Weight::Bf16) {
            return 5;
        }
        let scores = self.plan.values().any(|d| *d == Decision::INT8_SCORES);
        let descended = self.fitted.is_some_and(|f| f.rounding == Rounding::Quantease);
        if scores || descended || !self.smooth.is_empty() {
            return 4;
        }
        if self.fitted.is_some() || self.plan.values().any(|d| matches!(d.weight, Weight::Int4(_))) {
            return 3;
        }
        let plain = self.gates.is_empty() && self.recipe.toml.is_none() && !self.is_static();
        if plain && self.calibration.is_none() { 1 } else { 2 }
    }

    /// Sets the version and the digest and gives the bytes of the file.
    pub fn seal(&mut self) -> Vec<u8> {
        self.format_version = self.version();
        self.digest = String::new();
        self.digest = digest::of_bytes(&self.canonical());
        self.canonical()
    }

    fn canonical(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("a manifest has string keys and finite numbers only");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest and checks its version. With `strict`, also its canonical form and digest.
    ///
    /// Errors: malformed JSON, unknown fields, another version; with `strict`, any changed byte.
    pub fn parse(bytes: &[u8], strict: bool) -> Result<Manifest> {
        const MOST: usize = 256 << 20;
        if bytes.len() > MOST {
            return Err(Error::corrupt("manifest is too large")
                .at(NAME)
                .expected(format!("at most {MOST} bytes")));
        }
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let malformed = |e: serde_json::Error| Error::corrupt("manifest is malformed").at(NAME).found(e);
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if !(1..=FORMAT_VERSION).contains(&version.format_version) {
            return Err(Error::unsupported("artefact has another format version")
                .at(NAME)
                .expected(format!("1 to {FORMAT_VERSION}"))
                .found(version.format_version)
                .hint("use the qberta that wrote it, or quantize the model again"));
        }
        let mut manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
        if manifest.format_version != manifest.version() {
            return Err(Error::corrupt("format version does not belong to the keys of the manifest")
                .at(NAME)
                .expected(manifest.version())
                .found(manifest.format_version));
        }
        manifest.consistent()?;
        if strict {
            let (recorded, found) = (manifest.digest.clone(), bytes);
            let sealed = manifest.seal();
            if sealed != found || manifest.digest != recorded {
                let at = sealed
                    .iter()
                    .zip(found)
                    .position(|(a, b)| a != b)
                    .unwrap_or(sealed.len().min(found.len()));
                return Err(Error::mismatch("manifest was changed after it was written")
                    .at(NAME)
                    .found(format!("first difference at or before byte {at}")));
            }
        }
        Ok(manifest)
    }
}
