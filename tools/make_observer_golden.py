"""Ranges that other implementations choose, for the tests of crates/toolkit/src/observe.

    python3 -m venv .venv-obs && .venv-obs/bin/pip install torch==2.8.0 numpy scipy onnxruntime==1.32.0 onnx
    .venv-obs/bin/python tools/make_observer_golden.py testdata/observers/golden.json

The data are not stored: `values` below and the test make the same f32 numbers from the same integers, with
IEEE operations that every language rounds alike. PyTorch's classes run in float64 (their sums are otherwise f32).
"""

import json
import sys

import numpy as np
import torch
from onnxruntime.quantization.calibrate import HistogramCollector
from torch.ao.quantization import observer as tq

CALLS, CALL = 5, 4000


def uniforms(seed, n):
    """Numerical Recipes' generator: the upper 24 bits as fractions of one."""
    x, out = np.uint32(seed), np.empty(n)
    for i in range(n):
        x = np.uint32((int(x) * 1664525 + 1013904223) & 0xFFFFFFFF)
        out[i] = (int(x) >> 8) / 16777216.0
    return out


def values(kind):
    n = CALLS * CALL
    u = uniforms({"uniform": 1, "bell": 2, "heavy": 3, "gelu": 4, "outlier": 5, "positive": 6, "tiny": 7}[kind], 4 * n)
    a, b, c, d = u[0::4], u[1::4], u[2::4], u[3::4]
    bell = ((a + b) + c) - 1.5
    if kind == "uniform":
        x = a * 4.0 - 1.0
    elif kind == "bell":
        x = bell * 3.0
    elif kind == "heavy":
        x = ((bell * bell) * bell) * (d * 40.0)
    elif kind == "gelu":
        x = np.maximum(bell * (d * 6.0), -0.17)
    elif kind == "outlier":
        x = np.where(d > 0.998, bell * 100.0, bell)
    elif kind == "positive":
        x = (a * b) * 7.0
    else:
        x = bell * 1e-20
    # Later calls reach further, so that running observers have to grow.
    x = x * np.repeat(1.0 + np.arange(CALLS) * 0.25, CALL)
    return x.astype(np.float32)


def one(kind):
    x = values(kind)
    calls = [torch.from_numpy(x[i * CALL:(i + 1) * CALL].copy()) for i in range(CALLS)]
    out = {"kind": kind, "first": [float(v) for v in x[:4]]}

    minmax, moving = tq.MinMaxObserver(dtype=torch.quint8), tq.MovingAverageMinMaxObserver(dtype=torch.quint8)
    channel = tq.PerChannelMinMaxObserver(ch_axis=1)
    for call in calls:
        minmax(call), moving(call), channel(call.reshape(-1, 40))
    pair = lambda o: [float(o.min_val), float(o.max_val)]
    out["minmax"], out["moving"] = pair(minmax), pair(moving)
    out["channels"] = [channel.min_val.tolist(), channel.max_val.tolist()]
    # eps keeps PyTorch from ranges that it takes for zero.
    affine = tq.MinMaxObserver(dtype=torch.quint8, eps=1e-45)
    affine(torch.from_numpy(x))
    scale, zero = affine.calculate_qparams()
    out["grid"] = [float(scale.to(torch.float32)), int(zero)]

    torch.set_default_dtype(torch.float64)
    histogram = tq.HistogramObserver(dtype=torch.quint8)
    histogram(torch.from_numpy(x.astype(np.float64)))
    lo, hi = histogram._non_linear_param_search()
    out["torch_histogram"] = {"counts": [int(c) for c in histogram.histogram], "range": [float(lo), float(hi)]}
    running = tq.HistogramObserver(dtype=torch.quint8)
    for call in calls:
        running(call.double())
    out["torch_running"] = [float(v) for v in running._non_linear_param_search()]
    torch.set_default_dtype(torch.float32)

    x64 = x.astype(np.float64)
    counts = histogram.histogram.numpy()
    edges = np.linspace(x64.min(), x64.max(), counts.size + 1)
    out["percentile"] = {}
    for share in (99.0, 99.9, 99.999):
        collector = HistogramCollector("percentile", symmetric=False, num_bins=2048, num_quantized_bins=128,
                                       percentile=share, scenario="same")
        collector.histogram_dict = {"x": (counts, edges, x64.min(), x64.max())}
        low, high = collector.compute_percentile()["x"][:2]
        out["percentile"][str(share)] = [float(low), float(high)]
    half = float(np.abs(x64).max())
    counts, edges = np.histogram(x64, bins=512, range=(-half, half))
    low, high = collector.get_entropy_threshold((counts, edges, -half, half), 128)
    out["entropy"] = {"half": half, "counts": counts.tolist(), "range": [float(low), float(high)]}

    errors = []
    for k in range(80):
        left = np.float32(1 - k / 100)
        o = tq.MinMaxObserver(dtype=torch.quint8, eps=1e-45)
        o(torch.tensor([float(x.min() * left), float(x.max() * left)]))
        scale, zero = o.calculate_qparams()
        y = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), float(scale), int(zero), 0, 255)
        errors.append(float(((y.double() - torch.from_numpy(x64)) ** 2).mean()))
    out["mse"] = errors
    return out


def main():
    kinds = ["uniform", "bell", "heavy", "gelu", "outlier", "positive", "tiny"]
    import onnxruntime
    with open(sys.argv[1], "w") as f:
        json.dump({"torch": torch.__version__.split("+")[0], "onnxruntime": onnxruntime.__version__,
                   "calls": CALLS, "call": CALL, "cases": [one(k) for k in kinds]}, f, separators=(",", ":"))
        f.write("\n")


main()
