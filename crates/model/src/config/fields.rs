//! Typed access to the fields of a `config.json`, with errors that name them.

use super::{Activation, Reading, Task};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The parsed JSON object. `null` counts as absent, as in Hugging Face configurations.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn value(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn wrong(name: &str, expected: &str, found: &Value) -> Error {
        let mut text = found.to_string();
        if text.len() > 60 {
            text = text.chars().take(57).collect::<String>() + "...";
        }
        Error::unsupported("field cannot be used").at(name).expected(expected).found(text)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(Self::wrong(name, "a string", v)),
        }
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(Self::wrong(name, "true or false", v)),
        }
    }

    pub fn integer(&self, name: &str) -> Result<Option<i64>> {
        match self.value(name) {
            None => Ok(None),
            Some(v) => v.as_i64().map(Some).ok_or_else(|| Self::wrong(name, "an integer", v)),
        }
    }

    /// A size between 1 and `most`; `default` when absent, an error when there is no default.
    pub fn size(&self, name: &str, default: Option<usize>, most: usize) -> Result<usize> {
        let value = match (self.integer(name)?, default) {
            (Some(v), _) => v,
            (None, Some(d)) => return Ok(d),
            (None, None) => return Err(Error::unsupported("field is missing").at(name).expected("a size")),
        };
        usize::try_from(value).ok().filter(|v| (1..=most).contains(v)).ok_or_else(|| {
            Error::unsupported("size is out of range").at(name).expected(format!("1 to {most}")).found(value)
        })
    }

    pub fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.value(name) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| Self::wrong(name, "a number", v)),
        }
    }

    /// LayerNorm epsilon, strictly positive in f32.
    pub fn eps(&self, name: &str, default: f64) -> Result<f32> {
        let eps = self.number(name, default)?;
        if eps.is_finite() && eps as f32 > 0.0 && eps < 1.0 {
            Ok(eps as f32)
        } else {
            Err(Error::unsupported("field cannot be used").at(name).expected("a number in (0, 1)").found(eps))
        }
    }

    /// An activation by its Hugging Face name (`ACT2FN`).
    pub fn activation(&self, name: &str, default: Activation) -> Result<Activation> {
        let Some(text) = self.text(name)? else { return Ok(default) };
        Ok(match text {
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_accurate" => Activation::GeluTanh,
            "gelu_fast" => Activation::GeluFast,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "mish" => Activation::Mish,
            "sigmoid" => Activation::Sigmoid,
            "linear" => Activation::Linear,
            other => {
                return Err(Error::unsupported("activation is not supported").at(name).found(other).expected(
                    "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_python, quick_gelu, relu, silu, swish, tanh, mish, sigmoid or linear",
                ));
            }
        })
    }

    /// A list of words: one string separated by `|`, trimmed and lower-cased, or a JSON list of strings
    /// taken as they are. Hugging Face draws the same line, so `["P2C"]` is not `p2c` there either.
    pub fn words(&self, name: &str) -> Result<Vec<String>> {
        let clean = |s: &str| s.trim().to_lowercase();
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::String(s)) => Ok(s.split('|').map(clean).filter(|s| !s.is_empty()).collect()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|v| {
                    v.as_str().map(str::to_owned).ok_or_else(|| Self::wrong(name, "a list of strings", v))
                })
                .collect(),
            Some(v) => Err(Self::wrong(name, "a string or a list of strings", v)),
        }
    }

    /// The head that `architectures` names.
    pub fn task(&self) -> Result<Option<Task>> {
        let Some(list) = self.value("architectures") else { return Ok(None) };
        let Some(class) = list.as_array().and_then(|l| l.first()).and_then(Value::as_str) else {
            return Ok(None);
        };
        let found = Task::ALL.iter().map(|(t, _)| *t).find(|t| class.ends_with(t.class_suffix()));
        found.map(Some).ok_or_else(|| {
            Error::unsupported("model class has no supported head").at("architectures").found(class).hint(
                "supported heads: sequence and token classification, question answering, multiple choice, masked LM, \
                 and none; pass --task features to use the encoder alone",
            )
        })
    }

    /// Label names by index: `id2label`, else `num_labels`, else two.
    pub fn labels(&self) -> Result<Vec<String>> {
        const MOST: usize = 1 << 16;
        let Some(map) = self.value("id2label") else {
            let n = self.size("num_labels", Some(2), MOST)?;
            return Ok((0..n).map(|i| format!("LABEL_{i}")).collect());
        };
        let map = map.as_object().ok_or_else(|| Self::wrong("id2label", "an object", map))?;
        if map.is_empty() || map.len() > MOST {
            let sizes = format!("1 to {MOST} labels");
            return Err(Error::unsupported("label list is unusable")
                .at("id2label")
                .expected(sizes)
                .found(map.len()));
        }
        let mut labels = vec![None; map.len()];
        for (key, value) in map {
            let name = value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string());
            match key.parse::<usize>().ok().and_then(|i| labels.get_mut(i)) {
                Some(slot @ None) => *slot = Some(name),
                _ => {
                    return Err(Error::unsupported("label index is out of order")
                        .at("id2label")
                        .expected(format!("the indices 0 to {}", map.len() - 1))
                        .found(key));
                }
            }
        }
        Ok(labels.into_iter().flatten().collect())
    }

    /// How a sequence classifier with `labels` outputs is read.
    pub fn reading(&self, labels: usize) -> Result<Reading> {
        match self.text("problem_type")? {
            None if labels == 1 => Ok(Reading::Independent),
            None | Some("single_label_classification") => {
                Ok(if labels == 1 { Reading::Independent } else { Reading::Exclusive })
            }
            Some("multi_label_classification") => Ok(Reading::Independent),
            Some("regression") => Ok(Reading::Regression),
            Some(other) => Err(Error::unsupported("problem type is not supported")
                .at("problem_type")
                .expected("single_label_classification, multi_label_classification or regression")
                .found(other)),
        }
    }

    /// Settings of other networks under the same `model_type`.
    pub fn refuse_unsupported(&self) -> Result<()> {
        for name in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
            if self.flag(name, false)? {
                return Err(Error::unsupported("decoders are not supported")
                    .at(name)
                    .expected("false")
                    .found("true"));
            }
        }
        if let Some(kind) = self.text("position_embedding_type")?
            && kind != "absolute"
        {
            return Err(Error::unsupported("position embeddings are not supported")
                .at("position_embedding_type")
                .expected("absolute")
                .found(kind));
        }
        if self.value("quantization_config").is_some_and(|q| q.get("quant_method").is_none()) {
            return Err(Error::unsupported("field cannot be used")
                .at("quantization_config")
                .expected("a quant_method"));
        }
        if self.value("pruned_heads").and_then(Value::as_object).is_some_and(|p| !p.is_empty()) {
            return Err(Error::unsupported("pruned heads are not supported").at("pruned_heads"));
        }
        Ok(())
    }
}
