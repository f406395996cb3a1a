"""How far int8 moves the logits of a real model: qberta's recipes beside ONNX Runtime's, on the same weights and rows.

    python accuracy.py CHECKPOINT --work DIR [--qberta target/release/qberta] [--recipe NAME_OR_FILE ...]

CHECKPOINT is a float sequence classifier of the DeBERTa v2/v3 family. Evaluation rows are 500 pairs and calibration rows
256 other pairs, made of the gloss data: half of them two glosses, half one gloss split at its middle word. Everybody gets the same token ids.
Every figure is against the float logits of the program itself, which must agree to 1e-4. Speed is not measured here.
"""
import argparse
import json
import os
import pathlib
import subprocess

import prepare

HERE = pathlib.Path(__file__).parent
GLOSS = HERE.parent.parent / "testdata" / "gloss"
AGREE = 1e-4


def pairs(files, count, step):
    texts = [json.loads(line)["text"] for name in files for line in open(GLOSS / name, encoding="utf-8")]
    for i in range(count):
        text = texts[i * step % len(texts)]
        words = text.split(" ")
        half = len(words) // 2
        yield (text, texts[(i * 7 + 11) % len(texts)]) if i % 2 == 0 else (" ".join(words[:half]), " ".join(words[half:]))


def encode(checkpoint, rows):
    """Token ids and segment ids, as Hugging Face transformers makes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return [tokenizer(*row)["input_ids"] for row in rows]


def feed(ids):
    import numpy as np

    return {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}


def onnx_logits(path, rows):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed(ids))[0][0].tolist() for ids in rows]


def make_onnx(files, calibration):
    """The int8 models of ONNX Runtime: name to path."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(calibration)

        def get_next(self):
            ids = next(self.rows, None)
            return None if ids is None else feed(ids)

    source = files / "fp32.onnx"
    static = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "per_channel": True,
    }
    # Without VNNI its products of u8 and s8 saturate; its documentation then advises u8 weights, or s8 of 7 bits.
    s8, u8 = {"weight_type": QuantType.QInt8}, {"weight_type": QuantType.QUInt8}
    s7 = {**s8, "reduce_range": True}
    ways = {
        "dynamic, s8": lambda to: quantize_dynamic(source, to, **s8),
        "dynamic, u8": lambda to: quantize_dynamic(source, to, **u8),
        "dynamic, 7 bits": lambda to: quantize_dynamic(source, to, **s7),
        "dynamic, 7 bits per channel": lambda to: quantize_dynamic(source, to, per_channel=True, **s7),
        "static, s8 per channel": lambda to: quantize_static(source, to, Reader(), **static, **s8),
        "static, u8": lambda to: quantize_static(source, to, Reader(), **{**static, "per_channel": False}, **u8),
        "static, 7 bits per channel": lambda to: quantize_static(source, to, Reader(), **static, **s7),
        "static, 7 bits per channel, MatMul only": lambda to: quantize_static(
            source, to, Reader(), op_types_to_quantize=["MatMul"], **static, **s7
        ),
    }
    ways = {f"ONNX Runtime {name}": make for name, make in ways.items()}
    made = {}
    for name, make in ways.items():
        to = files / (name.lower().replace(" ", "-").replace(",", "") + ".onnx")
        if not to.exists():
            print(f"making {name}", flush=True)
            make(to)
        made[name] = to
    return made


def qberta_logits(program, model, rows_file):
    command = [program, "predict", str(model), "--input", str(rows_file), "--raw"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line)["logits"] for line in lines]


def compare(name, size_mb, found, expected):
    """One line of the table: mean and worst over rows of the largest difference of a row, and agreement."""
    far = [max(abs(a - b) for a, b in zip(f, e, strict=True)) for f, e in zip(found, expected, strict=True)]
    same = sum(f.index(max(f)) == e.index(max(e)) for f, e in zip(found, expected, strict=True))
    mean = sum(far) / len(far)
    print(f"| {name} | {size_mb:.1f} | {mean:.4f} | {max(far):.3f} | {100 * same / len(far):.1f} % |", flush=True)
    return mean


def megabytes(path):
    files = [path, *path.parent.glob(path.name + "*.data")] if path.is_file() else list(path.glob("*.safetensors"))
    return sum(f.stat().st_size for f in files) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where models go")
    parser.add_argument("--qberta", default="target/release/qberta")
    parser.add_argument("--recipe", action="append", help="recipes to compare (default: dynamic, static)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    program = str(pathlib.Path(options.qberta).resolve())

    rows = list(pairs(["validation.jsonl"], 500, 3))
    calibration = list(pairs(["calibration.jsonl"], 256, 2))
    ids, calibration_ids = encode(options.checkpoint, rows), encode(options.checkpoint, calibration)
    rows_file, texts_file = options.work / "rows.jsonl", options.work / "calibration.jsonl"
    rows_file.write_text("".join(json.dumps({"input_ids": i}) + "\n" for i in ids))
    texts_file.write_text("".join(json.dumps({"text": a, "text_pair": b}) + "\n" for a, b in calibration))

    files = options.work / "files"
    files.mkdir(exist_ok=True)
    if not (files / "fp32.onnx").exists():
        prepare.export(options.checkpoint, files)
    onnx = make_onnx(files, calibration_ids)

    float_onnx = onnx_logits(files / "fp32.onnx", ids)
    float_qberta = qberta_logits(program, options.checkpoint, rows_file)
    apart = max(abs(a - b) for f, e in zip(float_qberta, float_onnx, strict=True) for a, b in zip(f, e, strict=True))
    print(f"float logits of qberta and ONNX Runtime differ by at most {apart:.1e}", flush=True)
    if apart > AGREE:
        raise SystemExit(f"more than {AGREE}: not the same model")

    print("\n| int8 model | MB | logit difference, mean | worst | same answer |\n|---|---|---|---|---|")
    ours, theirs = [], []
    for recipe in options.recipe or ["dynamic", "static"]:
        out = options.work / f"qberta-{pathlib.Path(recipe).stem}"
        if not out.exists():
            command = [program, "quantize", str(options.checkpoint), "-o", str(out), "--recipe", recipe]
            if recipe == "static":
                command += ["--calibration", str(texts_file)]
            subprocess.run(command, check=True, capture_output=True)
        ours.append(compare(f"qberta {recipe}", megabytes(out), qberta_logits(program, out, rows_file), float_qberta))
    for name, path in onnx.items():
        theirs.append(compare(name, megabytes(path), onnx_logits(path, ids), float_onnx))
    print(f"\nbest of theirs / best of ours, mean: {min(theirs) / min(ours):.1f}x")


if __name__ == "__main__":
    main()
