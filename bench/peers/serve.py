"""One peer in a process of its own: timing requests in, times and logits out, one JSON object a line.

    python serve.py PEER CHECKPOINT FILES THREADS

The protocol is that of `qberta bench --serve`. Padding is part of the job of a peer without ragged batches, but making
the padded arrays is not timed. `load_s` is the file becoming a model that can run; importing libraries is not in it.
"""
import json
import sys
import time
import warnings

import shapes

warnings.filterwarnings("ignore")


def onnxruntime_(path, threads):
    import onnxruntime

    def load():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return load, onnxruntime.__version__


def openvino_(path, threads):
    import openvino

    def load():
        setting = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        request = openvino.Core().compile_model(path, "CPU", setting).create_infer_request()
        return lambda ids, mask: request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]

    return load, openvino.__version__.split("-")[0]


def torch_(checkpoint, threads, int8):
    import prepare
    import torch

    torch.set_num_threads(threads)

    def load():
        model = prepare.network(checkpoint)
        if int8:
            torch.backends.quantized.engine = "x86"
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

        def call(ids, mask):
            with torch.inference_mode():
                return model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

        return call

    return load, torch.__version__.split("+")[0]


PEERS = {
    "ort-fp32": lambda checkpoint, files, threads: onnxruntime_(f"{files}/fp32.onnx", threads),
    "ort-int8": lambda checkpoint, files, threads: onnxruntime_(f"{files}/int8.onnx", threads),
    "openvino": lambda checkpoint, files, threads: openvino_(f"{files}/ov_fp32.xml", threads),
    "openvino-int8": lambda checkpoint, files, threads: openvino_(f"{files}/ov_int8.xml", threads),
    "torch-fp32": lambda checkpoint, files, threads: torch_(checkpoint, threads, int8=False),
    "torch-int8": lambda checkpoint, files, threads: torch_(checkpoint, threads, int8=True),
}


def memory():
    """Resident and peak megabytes."""
    fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return [int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")]


def main():
    peer, checkpoint, files, threads = sys.argv[1:]
    out, sys.stdout = sys.stdout, sys.stderr  # libraries talk; only answers go to the reader

    def say(value):
        print(json.dumps(value), file=out, flush=True)

    load, version = PEERS[peer](checkpoint, files, int(threads))
    start = time.perf_counter()
    call = load()
    load = time.perf_counter() - start
    rss, peak = memory()
    say({"ready": True, "load_s": load, "rss_mb": rss, "peak_mb": peak, "threads": int(threads), "version": version})
    for line in sys.stdin:
        request = json.loads(line)
        ids, mask = shapes.padded(request["sequences"])
        for _ in range(request.get("warm", 0)):
            call(ids, mask)
        ms, logits = [], None
        for _ in range(request["repeats"]):
            start = time.perf_counter()
            logits = call(ids, mask)
            ms.append(1e3 * (time.perf_counter() - start))
        rss, peak = memory()
        say({"ms": ms, "logits": logits.tolist(), "rss_mb": rss, "peak_mb": peak})


if __name__ == "__main__":
    main()
