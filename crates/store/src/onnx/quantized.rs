//! Weights of a graph with their scales, and the products and tables that read them.
//!
//! Int8 reaches a graph in four forms: `MatMulInteger` on inputs that are quantized while running (dynamic),
//! `QLinear*` with stored grids (static), `DequantizeLinear` around float operators (QDQ, static or for
//! weights only), and blocks of four bits (`MatMulNBits`). Codes and scales are joined by what the nodes
//! read; only for `MatMulInteger`, whose scale is a factor further on, by that factor or by name.

use super::graph::{Graph, Held, Node};
use crate::tensor::Tensor;
use crate::torch::entry::{Quantized, numbers};
use crate::torch::globals::{QDtype, QScheme};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most nodes between a weight and what reads it: Transpose, Identity, Reshape, Cast; and most readers of one
/// value that are followed.
const MAX_HOPS: usize = 8;
/// Values from which a float table counts as one.
const LEAST_TABLE: usize = 4096;

/// How int8 runs in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runs {
    /// Int8 weights, inputs quantized while running.
    Dynamic,
    /// Int8 weights, inputs quantized with stored grids.
    Static,
    /// Int8 weights that become floats before the product.
    WeightOnly,
    /// Four bits in blocks, for weights only.
    Blocks,
}

impl Runs {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Runs::Dynamic => "int8, inputs quantized while running",
            Runs::Static => "int8, inputs on stored grids",
            Runs::WeightOnly => "int8 weights, float arithmetic",
            Runs::Blocks => "weights in blocks of few bits, float arithmetic",
        }
    }
}

/// A product with a stored matrix, or a look-up in a stored table.
#[derive(Debug)]
pub struct Product {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The tensor it reads.
    pub weight: String,
    /// Whether it looks rows up instead of multiplying.
    pub table: bool,
    /// How int8 runs; absent where it is float.
    pub runs: Option<Runs>,
    /// Whether the inputs are unsigned bytes.
    pub unsigned: bool,
}

/// A stored grid of activations.
#[derive(Debug)]
pub struct Activation {
    /// The node that quantizes with it.
    pub node: String,
    /// Value of one step; the first, where there are several.
    pub scale: f64,
    /// The code of 0.
    pub zero_point: f64,
}

/// What of a graph is quantized.
#[derive(Debug, Default)]
pub struct Quantization {
    /// Weights by the name of their codes.
    pub weights: BTreeMap<String, Quantized>,
    /// Everything that reads a stored matrix.
    pub products: Vec<Product>,
    /// Stored grids of activations.
    pub activations: Vec<Activation>,
    /// Names of tensors that are scales or zero points.
    pub parameters: BTreeSet<String>,
    /// What does not fit: scales that are not there or of another number than channels.
    pub misfits: Vec<String>,
}

/// The argument `i` of a node.
fn input(node: &Node, i: usize) -> &str {
    node.inputs.get(i).map_or("", String::as_str)
}

/// The first number of a tensor.
fn first(tensor: &Tensor) -> Option<f64> {
    let bytes = tensor.bytes().slice(0..tensor.dtype().bytes())?;
    numbers(&Tensor::new(tensor.dtype(), vec![1], bytes).ok()?).first().copied()
}

/// A graph with who makes and who reads what.
struct Wires<'g> {
    graph: &'g Graph,
    makers: HashMap<&'g str, &'g Node>,
    readers: HashMap<&'g str, Vec<&'g Node>>,
}

/// A weight as a node names it: codes, scale, zero point, axis of the scales.
struct Named<'g> {
    codes: &'g str,
    scale: &'g str,
    zero: &'g str,
    axis: Option<i64>,
}

impl<'g> Wires<'g> {
    fn of(graph: &'g Graph) -> Wires<'g> {
        let (mut makers, mut readers) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for node in &graph.nodes {
            for name in &node.outputs {
                makers.insert(name.as_str(), node);
            }
            for name in &node.inputs {
                readers.entry(name.as_str()).or_default().push(node);
            }
        }
        Wires { graph, makers, readers }
    }

    fn tensor(&self, name: &str) -> Option<&'g Tensor> {
        match self.graph.tensors.get(name)? {
            Held::Tensor(t) => Some(t),
            Held::Other(..) => None,
        }
    }

    /// The name behind operators that only move or rename.
    fn behind(&self, mut name: &'g str) -> &'g str {
        for _ in 0..MAX_HOPS {
            match self.makers.get(name) {
                Some(n) if ["Identity", "Transpose", "Reshape", "Cast"].contains(&&n.op[..]) => {
                    name = input(n, 0)
                }
                _ => break,
            }
        }
        name
    }

    /// The `DequantizeLinear` of a stored tensor behind `name`.
    fn dequantized(&self, name: &'g str) -> Option<Named<'g>> {
        let node = self.makers.get(self.behind(name)).filter(|n| n.op == "DequantizeLinear")?;
        let codes = self.behind(input(node, 0));
        self.graph.tensors.contains_key(codes).then(|| Named {
            codes,
            scale: input(node, 1),
            zero: input(node, 2),
            axis: Some(node.axis.unwrap_or(1)),
        })
    }

    /// The scale of the weight of a `MatMulInteger`: a factor of its output, or by the usual name.
    fn factor(&self, node: &'g Node, codes: &str) -> &'g str {
        let next = |name: &str| self.readers.get(name).into_iter().flatten().copied().take(MAX_HOPS);
        let stored = |n: &'g Node| {
            let other = |i: &&'g String| self.tensor(i).is_some_and(|t| t.dtype().is_float());
            n.inputs.iter().take(2).find(other).map(String::as_str)
        };
        let cast = node.outputs.first().into_iter().flat_map(|o| next(o)).filter(|n| n.op == "Cast");
        let after = cast.filter_map(|c| c.outputs.first()).flat_map(|o| next(o));
        for multiply in after.filter(|n| n.op == "Mul").take(MAX_HOPS) {
            let made = multiply.inputs.iter().take(2).filter_map(|i| self.makers.get(i.as_str()).copied());
            let found = stored(multiply).or_else(|| made.filter(|m| m.op == "Mul").find_map(stored));
            if let Some(scale) = found {
                return scale;
            }
        }
        let by_name = codes.strip_suffix("_quantized").map(|stem| format!("{stem}_scale"));
        by_name.and_then(|n| self.graph.tensors.get_key_value(&n)).map_or("", |(n, _)| n)
    }

    /// Whether a value is made of unsigned bytes, as far as its maker tells.
    fn unsigned(&self, name: &str) -> bool {
        let Some(maker) = self.makers.get(name) else { return false };
        match &maker.op[..] {
            "DynamicQuantizeLinear" => true,
            // Unsigned without a zero point.
            "QuantizeLinear" | "DequantizeLinear" => {
                self.tensor(input(maker, 2)).is_none_or(|t| t.dtype() == crate::Dtype::U8)
            }
            _ => false,
        }
    }
}

impl Quantization {
    /// Finds what of `graph` is quantized.
    pub fn of(graph: &Graph) -> Quantization {
        let wires = Wires::of(graph);
        let mut found = Quantization::default();
        for node in &graph.nodes {
            found.weight(&wires, node);
            found.activation(&wires, node);
        }
        found
    }

    fn activation(&mut self, wires: &Wires<'_>, node: &Node) {
        let at = match &node.op[..] {
            "QuantizeLinear" => (1, 2),
            "QLinearMatMul" | "QLinearConv" => (6, 7),
            "QGemm" => (7, 8),
            _ => return,
        };
        let value = |i: usize| wires.tensor(input(node, i)).and_then(first);
        if let Some(scale) = value(at.0) {
            let zero_point = value(at.1).unwrap_or(0.0);
            self.activations.push(Activation { node: node.name.clone(), scale, zero_point });
        }
        for i in [at.0, at.1] {
            self.parameters.insert(input(node, i).to_owned());
        }
    }

    /// Notes the stored matrix that `node` reads, and how.
    fn weight<'g>(&mut self, wires: &Wires<'g>, node: &'g Node) {
        let direct = |codes: usize, scale: usize, zero: usize| Named {
            codes: wires.behind(input(node, codes)),
            scale: input(node, scale),
            zero: input(node, zero),
            axis: None,
        };
        let (named, runs) = match &node.op[..] {
            "MatMulInteger" | "ConvInteger" => {
                let codes = wires.behind(input(node, 1));
                let scale = wires.factor(node, codes);
                (Named { codes, scale, zero: input(node, 3), axis: None }, Runs::Dynamic)
            }
            "DynamicQuantizeMatMul" => (direct(1, 2, 3), Runs::Dynamic),
            "MatMulIntegerToFloat" => (direct(1, 3, 5), Runs::Dynamic),
            "QAttention" => (direct(1, 4, 7), Runs::Dynamic),
            "QLinearMatMul" | "QLinearConv" | "QGemm" => (direct(3, 4, 5), Runs::Static),
            "MatMulNBits" => {
                return self.product(node, input(node, 1), Some(Runs::Blocks), false);
            }
            "MatMul" | "Gemm" | "Conv" => return self.float_operator(wires, node),
            "Gather" => return self.table(wires, node),
            _ => return,
        };
        if !wires.graph.tensors.contains_key(named.codes) {
            return; // a product of two activations
        }
        let unsigned = runs == Runs::Dynamic || wires.unsigned(input(node, 0));
        self.product(node, named.codes, Some(runs), unsigned);
        self.keep(wires, node, &named);
    }

    /// A float operator: on weights that were dequantized, or on float ones.
    fn float_operator<'g>(&mut self, wires: &Wires<'g>, node: &'g Node) {
        for side in [1, 0] {
            let name = input(node, side);
            if let Some(named) = wires.dequantized(name) {
                // An input that was quantized just before makes the pair an int8 product.
                let other = input(node, 1 - side);
                let grid = wires.makers.get(other).filter(|n| n.op == "DequantizeLinear");
                let runs = if grid.is_some() { Runs::Static } else { Runs::WeightOnly };
                self.product(node, named.codes, Some(runs), wires.unsigned(other));
                return self.keep(wires, node, &named);
            }
            let behind = wires.behind(name);
            if wires.tensor(behind).is_some_and(|t| t.dtype().is_float() && t.shape().len() >= 2) {
                return self.product(node, behind, None, false);
            }
        }
    }

    fn table<'g>(&mut self, wires: &Wires<'g>, node: &'g Node) {
        let name = input(node, 0);
        if let Some(named) = wires.dequantized(name) {
            self.product(node, named.codes, Some(Runs::WeightOnly), false);
            return self.keep(wires, node, &named);
        }
        let behind = wires.behind(name);
        let Some(tensor) = wires.tensor(behind).filter(|t| t.shape().len() == 2) else { return };
        if tensor.dtype().is_float() && tensor.elements() >= LEAST_TABLE {
            return self.product(node, behind, None, false);
        }
        // Rows are looked up as codes and dequantized after.
        let after = node.outputs.first().and_then(|o| wires.readers.get(o.as_str())).into_iter().flatten();
        if let Some(after) = after.take(MAX_HOPS).find(|n| n.op == "DequantizeLinear") {
            self.product(node, behind, Some(Runs::WeightOnly), false);
            let named = Named { codes: behind, scale: input(after, 1), zero: input(after, 2), axis: None };
            self.keep(wires, node, &named);
        }
    }

    fn product(&mut self, node: &Node, weight: &str, runs: Option<Runs>, unsigned: bool) {
        self.products.push(Product {
            node: node.name.clone(),
            op: node.op.clone(),
            weight: weight.to_owned(),
            table: node.op == "Gather",
            runs,
            unsigned,
        });
    }

    /// Joins codes and scales.
    fn keep(&mut self, wires: &Wires<'_>, node: &Node, named: &Named<'_>) {
        for name in [named.scale, named.zero] {
            self.parameters.insert(name.to_owned());
        }
        if self.weights.contains_key(named.codes) {
            return;
        }
        let Some(codes) = wires.tensor(named.codes) else { return };
        let Some(dtype) = QDtype::of_codes(codes.dtype()) else { return };
        let Some(scale) = wires.tensor(named.scale) else {
            self.misfits.push(format!("{}: no scale for {}", node.name, named.codes));
            return;
        };
        let zero = wires.tensor(named.zero);
        let (many, zeros) = (scale.elements(), zero.map_or(1, Tensor::elements));
        if scale.shape().len() > 1 && many > 1 {
            return; // blocks
        }
        let rank = codes.shape().len();
        let axis = match named.axis {
            _ if many == 1 => Some(0),
            Some(axis) => usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok(),
            // Products have a scale for each column.
            None => rank.checked_sub(1),
        };
        let channels = axis.and_then(|a| codes.shape().get(a)).copied();
        if (many != 1 && channels != Some(many)) || (zeros != many && zeros != 1) {
            let shape = codes.shape();
            self.misfits.push(format!(
                "{}: {} {shape:?} has {many} scales and {zeros} zero points",
                node.name, named.codes
            ));
            return;
        }
        let scales = numbers(scale);
        let zero = zero.map_or_else(|| vec![0.0], numbers);
        let one = many == 1;
        let zero_points = if zeros == many { zero } else { vec![zero[0]; many] };
        let scheme = if one { QScheme::PerTensorAffine } else { QScheme::PerChannelAffine };
        let axis = axis.unwrap_or(0);
        let kept = Quantized { dtype, scheme, scales, zero_points, axis, codes: codes.clone() };
        self.weights.insert(named.codes.to_owned(), kept);
    }
}
