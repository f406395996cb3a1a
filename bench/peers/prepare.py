"""The files each peer needs, made from one float checkpoint.

    python prepare.py CHECKPOINT OUT

CHECKPOINT is a directory that transformers reads (`qberta bench --arch v3-base --float --save CHECKPOINT`). OUT gets
fp32.onnx, int8.onnx (ONNX Runtime dynamic), ov_fp32.xml and ov_int8.xml (NNCF post-training).
"""
import pathlib
import sys
import warnings

import shapes

warnings.filterwarnings("ignore")


def network(checkpoint):
    """The classifier as a function of ids and mask."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    return Logits().eval()


def export(checkpoint, out):
    import torch
    import transformers.models.deberta_v2.modeling_deberta_v2 as deberta

    # The scripted build_rpos becomes `If` nodes that OpenVINO refuses. For self-attention it returns its third
    # argument, so that is what is exported, for every peer.
    deberta.build_rpos = lambda query, key, relative_pos, *rest, **named: relative_pos
    ids, mask = shapes.padded(shapes.sequences("ragged:2x24..48", 1000))
    axes = {0: "batch", 1: "tokens"}
    with torch.no_grad():
        torch.onnx.export(
            network(checkpoint),
            (torch.tensor(ids), torch.tensor(mask)),
            str(out / "fp32.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def quantize_onnx(out):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # u8 activations, s8 weights per tensor: the fastest of its dynamic variants on v3-base with VNNI and with AMX.
    quantize_dynamic(out / "fp32.onnx", out / "int8.onnx", weight_type=QuantType.QInt8)


def quantize_openvino(out, vocabulary):
    import nncf
    import openvino

    model = openvino.convert_model(str(out / "fp32.onnx"))
    openvino.save_model(model, out / "ov_fp32.xml", compress_to_fp16=False)
    texts = ["1x64", "ragged:1x90..128", "1x128", "ragged:1x70..96", "1x192", "1x384"]
    rows = [dict(zip(("input_ids", "attention_mask"), shapes.padded(shapes.sequences(t, vocabulary)))) for t in texts]
    quantized = nncf.quantize(
        openvino.Core().read_model(out / "ov_fp32.xml"),
        nncf.Dataset(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
    )
    openvino.save_model(quantized, out / "ov_int8.xml")


def main():
    import json

    checkpoint, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    for name, step in [
        ("fp32.onnx", lambda: export(checkpoint, out)),
        ("int8.onnx", lambda: quantize_onnx(out)),
        ("ov_int8.xml", lambda: quantize_openvino(out, vocabulary)),
    ]:
        if not (out / name).exists():
            print(f"making {name}", flush=True)
            step()


if __name__ == "__main__":
    main()
