//! An ONNX graph as a subject: its weights as entries, and what there is to say about how they are used.

use super::subject::{Form, Subject};
use qberta_model::Result;
use qberta_store::onnx::graph::Held;
use qberta_store::onnx::{self, Graph, Quantization, Runs};
use qberta_store::torch::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Tensors of fewer values are shapes, indices and factors of the graph, not weights.
const LEAST_VALUES: usize = 2;

/// A graph and what of it is quantized.
#[derive(Debug)]
pub struct Quantized {
    /// The graph.
    pub graph: Graph,
    /// Its quantized weights and who reads them.
    pub found: Quantization,
}

impl Quantized {
    /// How int8 runs, each with the number of products and tables that run so.
    pub fn runs(&self) -> BTreeMap<Runs, usize> {
        let mut runs = BTreeMap::new();
        for how in self.found.products.iter().filter_map(|p| p.runs) {
            *runs.entry(how).or_default() += 1;
        }
        runs
    }

    /// The recipe in words.
    pub fn recipe(&self) -> String {
        let runs = self.runs();
        let tables_alone = self.found.products.iter().all(|p| p.runs.is_none() || p.table);
        let what = if runs.contains_key(&Runs::Static) {
            "static quantization"
        } else if runs.contains_key(&Runs::Dynamic) {
            "dynamic quantization"
        } else if runs.contains_key(&Runs::Blocks) {
            "quantization of weights in blocks"
        } else if !runs.is_empty() && tables_alone {
            "quantized tables"
        } else if !runs.is_empty() {
            "quantization of weights alone"
        } else if !self.found.activations.is_empty() {
            "quantized activations, float weights"
        } else {
            return "float ONNX graph: nothing is quantized".into();
        };
        let types: BTreeSet<String> = self
            .found
            .weights
            .values()
            .map(|q| {
                let steps = if q.scales.len() > 1 { "per channel" } else { "per tensor" };
                format!("{} {steps}", q.dtype.name())
            })
            .collect();
        let types: Vec<String> = types.into_iter().collect();
        let weights =
            if types.is_empty() { String::new() } else { format!(", weights {}", types.join(" and ")) };
        format!("{what} of an ONNX graph{weights}")
    }

    /// Names that some node reads and nothing makes.
    pub fn dangling(&self) -> BTreeSet<&str> {
        let graph = &self.graph;
        let made: BTreeSet<&str> = graph.nodes.iter().flat_map(|n| &n.outputs).map(String::as_str).collect();
        let there = |n: &str| {
            n.is_empty() || made.contains(n) || graph.inputs.contains(n) || graph.tensors.contains_key(n)
        };
        let read = graph.nodes.iter().flat_map(|n| &n.inputs).chain(&graph.outputs).map(String::as_str);
        read.filter(|n| !there(n)).collect()
    }

    /// Matrices that are there as floats and, under the usual name, as codes of the same shape.
    pub fn twins(&self) -> Vec<(&str, usize)> {
        let twin = |(codes, q): (&String, &qberta_store::torch::Quantized)| {
            let (name, held) = self.graph.tensors.get_key_value(codes.strip_suffix("_quantized")?)?;
            match held {
                Held::Tensor(t) if t.dtype().is_float() && t.shape() == q.codes.shape() => {
                    Some((name.as_str(), t.bytes().len()))
                }
                _ => None,
            }
        };
        self.found.weights.iter().filter_map(twin).collect()
    }

    /// Name and size in bytes of the matrices of each product and table that is still float.
    pub fn float(&self) -> Vec<(&onnx::Product, usize)> {
        let size = |name: &str| match self.graph.tensors.get(name) {
            Some(Held::Tensor(t)) => t.bytes().len(),
            _ => 0,
        };
        let float = self.found.products.iter().filter(|p| p.runs.is_none());
        float.map(|p| (p, size(&p.weight))).collect()
    }
}

/// Reads the graph at `path`, of `bytes` bytes.
pub(super) fn read(path: &Path, bytes: u64) -> Result<Subject> {
    let graph = onnx::read(path)?;
    let found = Quantization::of(&graph);
    let mut subject = Subject::new(path, Form::Onnx, bytes);
    for (name, held) in &graph.tensors {
        if found.parameters.contains(name) {
            continue;
        }
        let entry = match (found.weights.get(name), held) {
            (Some(q), _) => Entry::Quantized(q.clone()),
            (None, Held::Tensor(t)) if t.elements() >= LEAST_VALUES => {
                Entry::Tensor { tensor: t.clone(), storage: name.clone() }
            }
            (None, Held::Tensor(_)) => continue,
            (None, Held::Other(kind, shape)) => Entry::Other(format!("{kind} {shape:?}")),
        };
        subject.entries.insert(name.clone(), entry);
    }
    let outside = |location: &String| path.parent().map(|d| d.join(location));
    subject.files.extend(graph.files.keys().filter_map(outside));
    subject.bytes += graph.files.values().map(|&n| n as u64).sum::<u64>();
    subject.graph = Some(Quantized { graph, found });
    Ok(subject)
}
