#!/usr/bin/env python3
"""Write the files that PyTorch's quantization recipes leave on disk, sound and broken.

    python tools/make_doctor_fixtures.py STAGE                 # once with each torch
    python tools/make_doctor_fixtures.py --merge STAGE28 STAGE215 [OUT]

OUT defaults to testdata/doctor. See testdata/doctor/README.md for the format.
A file whose structure is the same under both versions of torch is kept once,
otherwise the case is kept twice with the suffixes -pt28 and -pt215. Nothing
outside the repository is read and nothing is downloaded.

Install the pinned versions with `pip install -r tools/requirements-doctor.txt`.
"""

import argparse
import copy
import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

if os.environ.get("PYTHONHASHSEED") != "0":  # whole-module pickles hold sets of strings
    os.execve(sys.executable, [sys.executable, *sys.argv], dict(os.environ, PYTHONHASHSEED="0"))

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.ao.quantization as tq
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.ao.nn.quantized import LayerNorm as QuantizedLayerNorm

VOCAB = 97
FINDINGS = [
    "nothing-quantized", "observers-left", "never-calibrated", "infinite-range", "fake-quant-left",
    "observer-disabled", "packed-params", "embeddings-float", "quantized-layernorm",
    "unquantized-input", "pickled-module",
    "torchscript", "missing-head", "wrong-head", "non-finite-scale", "zero-scale", "saturated-channels",
    "tied-twice", "tied-missing", "oversized-storage", "reduce-range", "engine-dependent", "sound",
]
# Cases with int8 linears that choose the grid of their inputs while running.
ENGINE_DEPENDENT = set("""
    missing-head-quantized tied-dynamic dynamic dynamic-legacy module dynamic-v1 dynamic-per-channel
    dynamic-embedding dynamic-embedding-all dynamic-embedding-4bit reduce-range nan-scale zero-scale
    bad-channel-scales saturated-channels code-minus-128 module-legacy torchscript-script torchscript-trace
""".split())
IDS = np.random.RandomState(7).randint(5, VOCAB, size=(3, 9)).tolist()
MASK = [[1] * 9, [1] * 6 + [0] * 3, [1] * 9]
IDS[1][6:] = [0] * 3

# ---------------------------------------------------------------------------
# models


COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
    max_position_embeddings=64, relative_attention=True, position_biased_input=False, layer_norm_eps=1e-7,
    type_vocab_size=0,
)


def v3_config(**kw):
    base = dict(
        COMMON, pos_att_type="p2c|c2p", position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True,
        num_labels=3,
    )
    return transformers.DebertaV2Config(**dict(base, **kw))


def v1_config(**kw):
    return transformers.DebertaConfig(**dict(COMMON, pos_att_type="c2p|p2c", num_labels=3, **kw))


def randomize(model, seed):
    """Non-zero weights from numpy's frozen generator: equal under every torch."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(tuple(p.shape))
            r = torch.from_numpy(r.astype(np.float32))
            if re.search(r"LayerNorm\.weight$", name):
                p.copy_(1.0 + 0.2 * r)
            elif p.dim() == 1:
                p.copy_(0.2 * r)
            elif name.endswith("rel_embeddings.weight"):
                p.copy_(0.8 * r)
            elif "embeddings" in name:
                p.copy_(0.3 * r)
            elif name.startswith("classifier."):
                p.copy_(1.2 / p.shape[1] ** 0.5 * r)
            else:
                p.copy_(0.22 * r)
    return model.float().eval()


def v3(layers=2, cls=transformers.DebertaV2ForSequenceClassification, seed="v3", **kw):
    torch.manual_seed(0)
    return randomize(cls(v3_config(num_hidden_layers=layers, **kw)), seed)


def v1():
    torch.manual_seed(0)
    return randomize(transformers.DebertaForSequenceClassification(v1_config()), "v1")


SMALL = dict(layers=1, hidden_size=16, intermediate_size=24)


def one():
    """The one-layer v3 classifier that most cases use, to keep them small."""
    return v3(**SMALL)


def mlm():
    m = v3(cls=transformers.DebertaV2ForMaskedLM, seed="mlm", **SMALL)
    m.tie_weights()
    assert m.cls.predictions.decoder.weight is m.deberta.embeddings.word_embeddings.weight
    return m


def conv():
    """DeBERTa-v2 with the convolution beside its first layer."""
    return v3(seed="conv", conv_kernel_size=3, conv_act="gelu", **SMALL)


BASES = {"base-v3": v3, "base-v1": v1, "base-v3-one": one, "base-v3-mlm": mlm, "base-v2": conv}


class FeedForward(nn.Module):
    """The feed-forward part of a layer: what torch.jit.script and FX can take."""

    def __init__(self, layer):
        super().__init__()
        self.dense, self.out, self.LayerNorm = layer.intermediate.dense, layer.output.dense, nn.LayerNorm(16)
        self.LayerNorm.load_state_dict(layer.output.LayerNorm.state_dict())

    def forward(self, x):
        return self.LayerNorm(self.out(torch.relu(self.dense(x))) + x)


def feed_forward():
    return FeedForward(one().deberta.encoder.layer[0]).eval()


class Wrapped(nn.Module):
    """QuantStub and DeQuantStub around a model, as the tutorials do it."""

    def __init__(self, model, quantize_ids):
        super().__init__()
        self.quant, self.model, self.dequant = tq.QuantStub(), model, tq.DeQuantStub()
        self.quantize_ids = quantize_ids

    def forward(self, input_ids, attention_mask):
        if self.quantize_ids:
            input_ids = self.quant(input_ids)
        o = self.model(input_ids=input_ids, attention_mask=attention_mask)
        o.logits = self.dequant(o.logits)
        return o


# ---------------------------------------------------------------------------
# recipes


def run(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits


def f32s(t):
    return [[float(str(np.float32(x))) for x in row] for row in t.tolist()]


def no_embeddings(m):
    for x in m.modules():
        if isinstance(x, nn.Embedding):
            x.qconfig = None


def error_of(f):
    """The first sentence of the error that stops a script at this step."""
    try:
        f()
    except Exception as e:
        return f"{type(e).__name__}: {e}".split("\n")[0].split(". ")[0][:160]
    return None


def prepared(m, qconfig, embeddings=False):
    m.qconfig = qconfig
    if not embeddings:
        no_embeddings(m)
    return tq.prepare(m, inplace=True)


def qat(m, backend, embeddings=False):
    m = m.train()
    m.qconfig = tq.get_default_qat_qconfig(backend)
    if not embeddings:
        no_embeddings(m)
    return tq.prepare_qat(m, inplace=True)


def train(m, steps=2):
    torch.manual_seed(3)
    opt = torch.optim.SGD(m.parameters(), 1e-3)
    for _ in range(steps):
        loss = m(torch.tensor(IDS), torch.tensor(MASK)).logits.float().pow(2).mean()
        loss.backward()
        opt.step()
        opt.zero_grad()


def dynamic(m, qconfig=None, **kw):
    if qconfig is not None:
        return tq.quantize_dynamic(m, {nn.Linear: qconfig, **kw})
    return tq.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8)


def repack(sd, f):
    """A quantized state dict with every packed weight replaced by f(name, weight)."""
    out = copy.copy(sd)
    for k, v in sd.items():
        if isinstance(v, tuple):
            out[k] = (f(k, v[0]), v[1])
    out._metadata = sd._metadata
    return out


def per_channel(codes, scale):
    return torch._make_per_channel_quantized_tensor(
        codes, scale.double(), torch.zeros(codes.shape[0], dtype=torch.long), 0
    )


def rounded(w, scale):
    return torch.clamp(torch.round(w / scale[:, None].float()), -128, 127).to(torch.int8)


# ---------------------------------------------------------------------------
# files


def save(obj, path, legacy=False):
    if not legacy:
        torch.save(obj, path)
        return
    # The legacy format names storages by address and embeds the source path of
    # pickled classes. Number the one and shorten the other.
    numbers, cls = {}, torch.UntypedStorage
    native = torch._C.StorageBase.__dict__["_cdata"]
    serialization = torch.serialization
    sources = serialization.get_source_lines_and_file

    def shortened(obj, *a):
        lines, at, file = sources(obj, *a)
        return lines, at, file.split("site-packages/")[-1]

    try:
        cls._cdata = property(lambda s: 94000000000000 + 64 * numbers.setdefault(native.__get__(s), len(numbers)))
        serialization.get_source_lines_and_file = shortened
        torch.save(obj, path, _use_new_zipfile_serialization=False)
    finally:
        del cls._cdata
        serialization.get_source_lines_and_file = sources


def shorten(x):
    """Source paths in TorchScript debug records, made relative."""
    if isinstance(x, tuple):
        return tuple(shorten(y) for y in x)
    if isinstance(x, str):
        return re.sub(r"/[^\s\"'(]*?(site-packages/|lib/python3\.\d+/(?!site-packages)|(?=tools/make_doctor_fixtures\.py))", "", x)
    return x


def save_script(module, path):
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    writer = torch._C.PyTorchFileWriter(str(path))
    with zipfile.ZipFile(buffer) as z:
        for name in z.namelist():
            data, record = z.read(name), name.split("/", 1)[1]
            if record.endswith(".debug_pkl"):
                data = pickle.dumps(shorten(pickle.loads(data)), 2)
            if record not in ("version", ".data/serialization_id", "byteorder"):
                writer.write_record(record, data, len(data))
    writer.write_end_of_file()
    torch.jit.load(str(path))


def pickles(path):
    """The pickle streams of a file as (record name, bytes)."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            return [(n.split("/", 1)[1], z.read(n)) for n in z.namelist() if n.endswith(".pkl")]
    data, out = Path(path).read_bytes(), []
    if data[:1] != b"\x80":
        return []
    f = io.BytesIO(data)
    for _ in range(5):  # magic, protocol, system, object, storage keys
        start = f.tell()
        for _ in pickletools.genops(f):
            pass
        out.append((f"pickle {len(out)}", data[start : f.tell()]))
    return out


def globals_of(path):
    found = set()
    for _, data in pickles(path):
        strings = []
        for op, arg, _ in pickletools.genops(data):
            if op.name == "GLOBAL":
                found.add(arg.replace(" ", "."))
            elif op.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif isinstance(arg, str):
                strings.append(arg)
    return sorted(found)


def structure(path):
    """What must be equal for two files to count as one: everything but the numbers in tensors and scales."""
    h = hashlib.sha256()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            for i in sorted(z.infolist(), key=lambda i: i.filename):
                name = i.filename.split("/", 1)[1]
                if name.endswith((".debug_pkl", "serialization_id")) or name.startswith("."):
                    continue
                h.update(f"{name} {i.file_size if '/' in name else ''}\n".encode())
                if name.endswith(".py"):
                    h.update(z.read(i))
    for _, data in pickles(path):
        for op, arg, _ in pickletools.genops(data):
            h.update(f"{op.name} {'' if isinstance(arg, float) else arg!r}\n".encode())
    return h.hexdigest()


class Cases:
    def __init__(self, out):
        self.out, self.index = out, []

    def add(self, case, file, base, obj, made_by, recipe, findings, rescue, note="", writer=None, legacy=False):
        """One file. findings are sorted as in FINDINGS; rescue is all, some or none of base's tensors."""
        if case in ENGINE_DEPENDENT:
            findings = [*findings, "engine-dependent"]
        assert set(findings) <= set(FINDINGS), findings
        folder = self.out / case
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file
        if writer:
            writer(obj, path)
        elif file.endswith(".safetensors"):
            save_file(obj, path, metadata={"format": "pt"})
        else:
            save(obj, path, legacy)
        safe = None
        if not file.endswith(".safetensors"):
            safe = error_of(lambda: torch.load(path, weights_only=True)) is None
        self.index.append({
            "case": case, "file": file, "base": base, "made_by": made_by, "recipe": recipe,
            "findings": [f for f in FINDINGS if f in findings], "rescue": rescue, "weights_only": safe, "note": note,
        })
        return folder

    def reference(self, folder, make, quantized, sd):
        """dequantized.safetensors and logits.json beside a sound quantized file."""
        weights = {}
        for k, v in sd.items():
            if isinstance(v, tuple):
                weights[k.replace("_packed_params._packed_params", "weight")] = v[0].dequantize().contiguous()
            elif k.endswith("._packed_weight"):
                weights[k.replace("_packed_params._packed_weight", "weight")] = v.dequantize().contiguous()
            elif isinstance(v, torch.Tensor) and v.is_quantized:
                weights[k] = v.dequantize().contiguous()
        save_file(weights, folder / "dequantized.safetensors", metadata={"format": "pt"})
        restored = make()
        left = restored.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys, left.unexpected_keys
        logits = {
            "torch": torch.__version__.split("+")[0], "engine": torch.backends.quantized.engine,
            "input_ids": IDS, "attention_mask": MASK, "float": f32s(run(make())),
            "dequantized": f32s(run(restored)), "quantized": quantized if quantized is None else f32s(quantized),
        }
        (folder / "logits.json").write_text(json.dumps(logits) + "\n")


# ---------------------------------------------------------------------------
# cases

PACKED = ["packed-params", "embeddings-float"]
DYNAMIC = "quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)"


def float_cases(c):
    m = one()
    for layer in m.deberta.encoder.layer:
        layer = tq.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    c.add("nothing-quantized", "quantized_model.pt", "base-v3-one", m.state_dict(),
          "for layer in model.encoder.layer: layer = quantize_dynamic(layer, {nn.Linear})",
          "selective dynamic loop that rebinds a local name, torch.save(state_dict)", ["nothing-quantized", "sound"],
          "all", "bytes as float-bin: only the file name claims otherwise")
    sd = one().state_dict()
    c.add("float-safetensors", "model.safetensors", "base-v3-one", dict(sd), "save_file(model.state_dict())",
          "float checkpoint", ["nothing-quantized", "sound"], "all")
    c.add("float-bin", "pytorch_model.bin", "base-v3-one", sd, "torch.save(model.state_dict(), path)",
          "float checkpoint", ["nothing-quantized", "sound"], "all")
    c.add("float-legacy", "pytorch_model.bin", "base-v3-one", sd,
          "torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)",
          "float checkpoint in the format from before torch 1.6", ["nothing-quantized", "sound"], "all", legacy=True)

    bare = {k: v for k, v in sd.items() if not k.startswith(("pooler", "classifier"))}
    c.add("missing-head", "model.pt", "base-v3-one", bare,
          "torch.save({k: v for k, v in sd.items() if k.startswith('deberta.')}, path)",
          "float state dict without pooler and classifier", ["nothing-quantized", "missing-head"], "some")
    q = dynamic(one()).deberta.state_dict()
    c.add("missing-head-quantized", "model.pt", "base-v3-one", q, "torch.save(model.deberta.state_dict(), path)",
          "quantize_dynamic, state dict of the encoder only: no prefix", PACKED + ["missing-head"], "some")
    token = v3(cls=transformers.DebertaV2ForTokenClassification, seed="token", num_labels=5, **SMALL)
    c.add("wrong-head", "model.pt", "base-v3-one", token.state_dict(),
          "torch.save(DebertaV2ForTokenClassification(config).state_dict(), path)",
          "token classifier with five labels beside a three-label sequence config",
          ["nothing-quantized", "wrong-head"], "some", "classifier.weight is [5, 16]; no pooler")

    trainer = one()
    opt = torch.optim.SGD(trainer.parameters(), 1e-3, momentum=0.9)
    trainer.classifier(torch.ones(1, 16)).sum().backward()
    opt.step()
    opt.zero_grad()
    c.add("trainer-checkpoint", "checkpoint.pt", "base-v3-one",
          {"epoch": 3, "state_dict": trainer.state_dict(), "optimizer": opt.state_dict(), "best": 0.5, "args": {"lr": 1e-3}},
          "torch.save({'epoch': 3, 'state_dict': model.state_dict(), 'optimizer': opt.state_dict()}, path)",
          "training checkpoint", ["nothing-quantized", "sound"], "all",
          "state dict below a key; classifier trained one step, so not equal to the base")
    q = {"module." + k: v for k, v in dynamic(one()).state_dict().items()}
    c.add("trainer-checkpoint-quantized", "checkpoint.pt", "base-v3-one", {"model": q, "epoch": 3},
          "torch.save({'model': DataParallel(q).state_dict(), 'epoch': 3}, path)",
          "quantized state dict below a key, names prefixed module.", PACKED + ["sound"], "all",
          "no _metadata: versions of the modules are lost")

    sd = one().state_dict()
    big = torch.zeros(50 * 48)
    big[1000 : 1000 + 48] = sd["classifier.weight"].flatten()
    sd["classifier.weight"] = big[1000 : 1000 + 48].view(3, 16)
    c.add("oversized-storage", "model.pt", "base-v3-one", sd, "sd['classifier.weight'] = big[1000:1048].view(3, 16)",
          "a tensor that is a view into a storage fifty times its size", ["nothing-quantized", "oversized-storage"],
          "all", "storage of 2400 numbers, offset 1000")
    sd = one().state_dict()
    sd["pooler.dense.weight"] = one().state_dict()["pooler.dense.weight"].t().contiguous().t()
    c.add("transposed-view", "model.pt", "base-v3-one", sd, "sd['pooler.dense.weight'] = w.t().contiguous().t()",
          "a tensor with strides (1, 16)", ["nothing-quantized", "sound"], "all", "strides must be honoured")


def mlm_cases(c):
    decoder = "cls.predictions.decoder.weight"
    sd = mlm().state_dict()
    c.add("tied-shared", "model.pt", "base-v3-mlm", sd, "torch.save(model.state_dict(), path)",
          "masked LM, tied: two names, one storage", ["nothing-quantized", "sound"], "all", "as torch.save writes it")
    twice = mlm().state_dict()
    twice[decoder] = twice[decoder].clone()
    c.add("tied-twice", "model.pt", "base-v3-mlm", twice, "sd = {k: v.clone() for k, v in model.state_dict().items()}",
          "masked LM, tied weight stored twice, equal", ["nothing-quantized", "tied-twice"], "all")
    differ = mlm().state_dict()
    differ[decoder] = differ[decoder] * 1.5
    c.add("tied-differ", "model.pt", "base-v3-mlm", differ, "sd[decoder] = trained_decoder",
          "masked LM, config ties but the two stored weights differ", ["nothing-quantized", "tied-twice"], "some",
          "the decoder is 1.5 times the embedding: tying loses it")
    gone = mlm().state_dict()
    del gone[decoder], gone["cls.predictions.decoder.bias"]
    c.add("tied-missing", "model.pt", "base-v3-mlm", gone, "del sd['cls.predictions.decoder.weight']",
          "masked LM without the tied decoder, as save_pretrained writes it", ["nothing-quantized", "tied-missing"],
          "all", "legal: the config ties")
    c.add("tied-dynamic", "quantized_model.pt", "base-v3-mlm", dynamic(mlm()).state_dict(), DYNAMIC,
          "masked LM: quantize_dynamic quantizes the decoder and leaves its twin, the embedding, float",
          PACKED + ["tied-twice"], "all", "the tie is broken: an int8 decoder and a float embedding")


def static_cases(c):
    fbgemm = tq.get_default_qconfig("fbgemm")

    def add(case, m, *rest, **kw):
        c.add(case, "quantized_model.pt", "base-v3-one", m.state_dict(), *rest, **kw)

    m = prepared(one(), tq.default_qconfig)
    run(m)
    add("observers-left", m, "prepare(model, inplace=True); calibrate(model)  # no convert",
        "static, embeddings excluded, calibrated, saved without convert", ["observers-left"], "all",
        "MinMaxObserver: min_val, max_val, eps")
    m = prepared(one(), fbgemm, embeddings=True)
    stopped = [error_of(lambda: run(m)), error_of(lambda: tq.convert(m, inplace=True))]
    add("observers-left-convert-failed", m, "prepare(model); calibrate(model); convert(model)  # raises, then saved",
        "static tutorial on the whole model: convert stops at the first embedding and changes nothing",
        ["observers-left", "infinite-range"], "all",
        f"convert: {stopped[1]}. HistogramObserver; rel_embeddings is never called, so its range stays (inf, -inf)")
    assert stopped[0] is None and stopped[1]
    m = prepared(one(), tq.QConfig(tq.default_observer, tq.default_per_channel_weight_observer))
    add("infinite-range", m, "prepare(model, inplace=True)  # neither calibrated nor converted",
        "static, saved right after prepare", ["observers-left", "never-calibrated", "infinite-range"], "all",
        "every min_val is inf and every max_val -inf")

    m = prepared(one(), fbgemm)
    tq.convert(m, inplace=True)
    add("never-calibrated", m, "prepare(model); convert(model)", "static, embeddings excluded, no calibration data",
        PACKED + ["never-calibrated", "quantized-layernorm", "unquantized-input"], "all",
        f"every activation scale 1 and zero point 0; weights are fine. Run: {error_of(lambda: run(m))}")
    w = Wrapped(one(), False)
    w.qconfig = tq.get_default_qconfig("qnnpack")
    for x in w.modules():
        if isinstance(x, (nn.Embedding, nn.LayerNorm)):
            x.qconfig = None
    w = tq.convert(tq.prepare(w))
    add("never-calibrated-per-tensor", w, "QuantStub wrapper, LayerNorm.qconfig = None; prepare(m); convert(m)",
        "static qnnpack without calibration: keys and scales as quantize_dynamic writes them",
        PACKED + ["never-calibrated"], "all",
        "names prefixed model.; tell from dynamic: _metadata version 3, not 4, of each Linear, and quant.scale")
    m = prepared(one(), fbgemm)
    run(m)
    tq.convert(m, inplace=True)
    assert any(isinstance(x, QuantizedLayerNorm) for x in m.modules())
    add("quantized-layernorm", m, "model.qconfig = get_default_qconfig('fbgemm'); prepare; calibrate; convert",
        "static, embeddings excluded, calibrated and converted",
        PACKED + ["quantized-layernorm", "unquantized-input"], "all",
        f"the file is whole but the model cannot run: {error_of(lambda: run(m))}")
    # DeBERTa v1 has a LayerNorm of its own that convert leaves alone, so the linears are what fails.
    m = prepared(v1(), fbgemm)
    run(m)
    tq.convert(m, inplace=True)
    c.add("unquantized-input", "quantized_model.pt", "base-v1", m.state_dict(),
          "model.qconfig = get_default_qconfig('fbgemm'); prepare; calibrate; convert", "static on v1, embeddings excluded",
          PACKED + ["unquantized-input"], "all", f"the model cannot run: {error_of(lambda: run(m))}")
    # The convolution becomes a quantized one, which pickles itself as a tuple where others have a dict.
    m = prepared(conv(), fbgemm)
    run(m)
    tq.convert(m, inplace=True)
    whole, sd = "torch.save(model, path)", m.state_dict()
    for case, obj, made_by, more in (("static-conv", sd, "torch.save(model.state_dict(), path)", []),
                                     ("module-conv", m, whole, ["pickled-module"])):
        folder = c.add(case, "quantized_model.pt", "base-v2", obj, "prepare; calibrate; convert; " + made_by,
                       "static on v2, embeddings excluded: encoder.conv.conv is a quantized Conv1d",
                       PACKED + ["quantized-layernorm", "unquantized-input"] + more, "all",
                       f"the model cannot run: {error_of(lambda: run(m))}")
        c.reference(folder, conv, None, sd)
    # The right way: each linear with a stub of its own, everything else in float.
    m = one()
    for parent in list(m.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                wrapped = tq.QuantWrapper(child)
                wrapped.qconfig = fbgemm
                setattr(parent, name, wrapped)
    tq.prepare(m, inplace=True)
    run(m)
    tq.convert(m, inplace=True)
    assert error_of(lambda: run(m)) is None
    add("static-wrapped", m, "w = QuantWrapper(linear); w.qconfig = get_default_qconfig('fbgemm'); prepare; calibrate; convert",
        "static, every linear in a QuantWrapper", PACKED + ["sound"], "all", "names *.module._packed_params and *.quant.scale")


def qat_cases(c):
    def add(case, m, *rest, **kw):
        c.add(case, "qat_model.pt", "base-v3-one", m.state_dict(), *rest, **kw)

    m = qat(Wrapped(one(), False), "fbgemm")
    train(m)
    m.eval()
    add("fake-quant-left", m, "prepare_qat(model); train(model); torch.save(model.state_dict())  # no convert",
        "QAT fbgemm with stubs, two steps", ["fake-quant-left", "infinite-range", "reduce-range"], "all",
        "quant is never called, so its range is infinite; activation scale is range/127: reduce_range. "
        "Names prefixed model.; weights trained two steps")
    frozen = copy.deepcopy(m)
    frozen.apply(tq.disable_observer)
    add("observer-disabled", frozen, "model.apply(disable_observer); torch.save(model.state_dict())",
        "QAT, observers frozen as at the end of training", ["fake-quant-left", "infinite-range", "observer-disabled", "reduce-range"],
        "all", "observer_enabled 0, fake_quant_enabled 1 everywhere")
    c_ = tq.convert(frozen)
    add("qat-converted", c_, "convert(model.eval())", "QAT fbgemm, converted",
        PACKED + ["quantized-layernorm", "unquantized-input"], "all",
        f"quant.scale 1: the stub is never called. Run: {error_of(lambda: run(c_))}")
    m = qat(one(), "qnnpack")
    train(m)
    m.eval()
    m.deberta.encoder.apply(tq.disable_fake_quant)
    m.pooler.apply(tq.disable_observer)
    m.classifier.apply(tq.disable_observer)
    add("observer-half-on", m, "model.deberta.encoder.apply(disable_fake_quant); head.apply(disable_observer)",
        "QAT qnnpack, fake quantization off in the encoder while its observers still move",
        ["fake-quant-left", "observer-disabled"], "all", "activation scale is range/255: full range")
    m = qat(Wrapped(one(), True), "fbgemm", embeddings=True)
    stopped = [error_of(lambda: train(m, 1)), error_of(lambda: tq.convert(m.eval(), inplace=True))]
    assert all(stopped)
    add("fake-quant-never-trained", m, "input_ids = self.quant(input_ids)  # training stops, then saved",
        "QAT tutorial: QuantStub on token ids", ["never-calibrated", "fake-quant-left", "infinite-range"], "all",
        f"train: {stopped[0]}. convert: {stopped[1]}. On disk: fake quantization, every range infinite, every scale 1")


def dynamic_cases(c):
    for case, base, make in (("dynamic", "base-v3", v3), ("dynamic-v1", "base-v1", v1)):
        q = dynamic(make())
        sd = q.state_dict()
        codes = [v[0].int_repr() for v in sd.values() if isinstance(v, tuple)]
        low = sum(int((x == -128).sum()) for x in codes)
        folder = c.add(case, "quantized_model.pt", base, sd, DYNAMIC, "torch.save(state_dict), per tensor",
                       PACKED + ["sound"], "all", f"{low} codes are -128: the scale is max|w| / 127.5")
        c.reference(folder, make, run(q), sd)
        if case == "dynamic":
            c.add("dynamic-legacy", "quantized_model.pt", base, sd,
                  "torch.save(q.state_dict(), path, _use_new_zipfile_serialization=False)",
                  "the case dynamic in the format from before torch 1.6", PACKED + ["sound"], "all", legacy=True)
            c.add("module", "quantized_model.pt", base, q, "torch.save(q, path)", "whole module, quantize_dynamic",
                  ["pickled-module", "packed-params", "embeddings-float"], "all",
                  "weights are in __getstate__ tuples of LinearPackedParams; needs transformers and torch to load")
    q = dynamic(one(), tq.per_channel_dynamic_qconfig)
    folder = c.add("dynamic-per-channel", "quantized_model.pt", "base-v3-one", q.state_dict(),
                   "quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig})", "torch.save(state_dict)",
                   PACKED + ["sound"], "all", "axis 0, scales float64")
    c.reference(folder, one, run(q), q.state_dict())

    word = "deberta.embeddings.word_embeddings"
    q = dynamic(one(), tq.default_dynamic_qconfig, **{word: tq.float_qparams_weight_only_qconfig})
    folder = c.add("dynamic-embedding", "quantized_model.pt", "base-v3-one", q.state_dict(),
                   f"quantize_dynamic(model, {{nn.Linear: ..., '{word}': float_qparams_weight_only_qconfig}})",
                   "Linear and word embeddings", ["packed-params", "sound"], "all",
                   "quint8 per row with float32 scales and float32 zero points (per_channel_affine_float_qparams); the pickle says "
                   "per_channel_affine, so only the type of the zero points tells")
    c.reference(folder, one, run(q), q.state_dict())
    q = tq.quantize_dynamic(one(), {nn.Linear: tq.default_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig})
    folder = c.add("dynamic-embedding-all", "quantized_model.pt", "base-v3-one", q.state_dict(),
                   "quantize_dynamic(model, {nn.Linear: ..., nn.Embedding: float_qparams_weight_only_qconfig})",
                   "Linear and every embedding, rel_embeddings too", ["packed-params", "sound"], "all",
                   f"torch cannot run it: {error_of(lambda: run(q))}. The file is whole")
    c.reference(folder, one, None, q.state_dict())
    q = dynamic(one(), tq.default_dynamic_qconfig, **{word: tq.float_qparams_weight_only_qconfig_4bit})
    packed = q.state_dict()[word + "._packed_params._packed_weight"]
    folder = c.add("dynamic-embedding-4bit", "quantized_model.pt", "base-v3-one", q.state_dict(),
                   f"quantize_dynamic(model, {{nn.Linear: ..., '{word}': float_qparams_weight_only_qconfig_4bit}})",
                   "Linear and word embeddings in four bits", ["packed-params", "sound"], "all",
                   f"quint4x2, two codes a byte, low nibble first, storage length in bytes; _packed_params.dtype says quint8. "
                   f"Torch cannot run it: {error_of(lambda: run(q))}")
    scales, zeros = packed.q_per_channel_scales(), packed.q_per_channel_zero_points()
    raw = torch.tensor(packed.untyped_storage().tolist()[: 97 * 8], dtype=torch.uint8).view(97, 8)
    codes = torch.stack([raw & 15, raw >> 4], 2).view(97, 16)
    values = (codes.float() - zeros[:, None].float()) * scales[:, None].float()
    original = one().state_dict()[word + ".weight"]
    assert (values - original).abs().max() < scales.max() * 0.51, "nibble order"
    save_file({word + ".weight": values.contiguous()}, folder / "dequantized.safetensors", metadata={"format": "pt"})
    q = tq.quantize_dynamic(one(), {nn.Linear}, dtype=torch.float16)
    c.add("dynamic-fp16", "quantized_model.pt", "base-v3-one", q.state_dict(),
          "quantize_dynamic(model, {nn.Linear}, dtype=torch.float16)", "half-precision weights",
          ["nothing-quantized", "packed-params", "embeddings-float"], "all",
          "packed params of dtype float16 hold plain float32 tensors: the file is not smaller")

    less = tq.QConfig(tq.default_dynamic_quant_observer, tq.default_per_channel_weight_observer.with_args(reduce_range=True))
    q = dynamic(one(), less)
    codes = torch.cat([v[0].int_repr().flatten() for v in q.state_dict().values() if isinstance(v, tuple)])
    assert codes.min() >= -64 and codes.max() <= 63
    c.add("reduce-range", "quantized_model.pt", "base-v3-one", q.state_dict(),
          "QConfig(..., weight=PerChannelMinMaxObserver.with_args(..., reduce_range=True))",
          "seven-bit weights", PACKED + ["reduce-range", "sound"], "all", "every code in -64..63")

    sd = dynamic(one()).state_dict()
    old = type(sd)()
    for k, v in sd.items():
        if isinstance(v, tuple):
            old[k.replace("_packed_params._packed_params", "weight")] = v[0]
            old[k.replace("_packed_params._packed_params", "bias")] = v[1].detach()
        elif not k.endswith("_packed_params.dtype"):
            old[k] = v
    old._metadata = {k: {"version": 1} for k in sd._metadata if not k.endswith("_packed_params")}
    c.add("dynamic-version-1", "quantized_model.pt", "base-v3-one", old, DYNAMIC, "rebuilt: the layout of torch 1.3, quantized tensors under weight",
          ["embeddings-float", "sound"], "all", "version 1: weight, bias, scale, zero_point; no _packed_params")


def crafted_cases(c):
    skeleton = lambda: dynamic(one())
    clean = dynamic(one(), tq.per_channel_dynamic_qconfig).state_dict()
    tensor = dynamic(one()).state_dict()
    float_weights = one().state_dict()

    def weight_of(name):
        return float_weights[name.replace("_packed_params._packed_params", "weight")]

    def logits(sd):
        q = skeleton()
        q.load_state_dict(sd)
        return run(q)

    def set_scale(value):
        def f(name, w):
            if "query_proj" not in name:
                return w
            return torch._make_per_tensor_quantized_tensor(w.int_repr(), value, 0)

        return f

    for case, value, finding in (("nan-scale", float("nan"), "non-finite-scale"), ("zero-scale", 0.0, "zero-scale")):
        sd = repack(tensor, set_scale(value))
        c.add(case, "quantized_model.pt", "base-v3-one", sd, f"torch._make_per_tensor_quantized_tensor(codes, {value}, 0)",
              "rebuilt: query_proj of layer 0", PACKED + [finding], "some",
              f"torch loads it without a word. Run: {error_of(lambda: logits(sd)) or 'finite logits'}")

    def bad_channels(name, w):
        if "intermediate" not in name:
            return w
        scales = w.q_per_channel_scales().clone()
        scales[3], scales[5], scales[7], scales[9] = float("nan"), 0.0, float("inf"), -scales[9]
        return per_channel(w.int_repr(), scales)

    c.add("bad-channel-scales", "quantized_model.pt", "base-v3-one", repack(clean, bad_channels), "scales[3] = float('nan')",
          "rebuilt: intermediate.dense, channel 3 NaN, 5 zero, 7 infinite, 9 negative",
          PACKED + ["non-finite-scale", "zero-scale"], "some", "a negative scale is usable arithmetic but no observer writes it")

    def saturated(name, w):
        x, scale = weight_of(name), w.q_per_channel_scales()
        bad = scale.clone()
        if "output.dense" in name and "attention" not in name:
            bad = scale / 40
        elif "key_proj" in name:
            bad[::2] = scale[::2] / 4
        return per_channel(rounded(x, bad), bad)

    sd = repack(clean, saturated)
    share = {}
    for k, v in sd.items():
        if isinstance(v, tuple):
            codes = v[0].int_repr()
            share[k] = ((codes == 127) | (codes == -128)).float().mean().item()
    worst = {k.split(".layer.0.")[-1].split("._packed")[0]: round(v, 3) for k, v in share.items() if v > 0.1}
    c.add("saturated-channels", "quantized_model.pt", "base-v3-one", sd, "quantize with a stale scale",
          "rebuilt: output.dense scales 40 times too small, every second channel of key_proj 4 times",
          PACKED + ["saturated-channels"], "some", f"share of codes at the ends: {worst}")

    low = repack(clean, lambda name, w: per_channel(
        rounded(weight_of(name), weight_of(name).abs().amax(1) / 128), weight_of(name).abs().amax(1) / 128))
    codes = [v[0].int_repr() for v in low.values() if isinstance(v, tuple)]
    n = sum(int((x == -128).sum()) for x in codes)
    folder = c.add("code-minus-128", "quantized_model.pt", "base-v3-one", low, "scale = w.abs().amax(1) / 128",
                   "rebuilt: per channel with the full signed range", PACKED + ["sound"], "all", f"{n} codes are -128")
    c.reference(folder, one, logits(low), low)

    plain = type(clean)(one().state_dict())
    for k, v in list(plain.items()):
        if v.dim() == 2 and "rel_embeddings" not in k and not k.startswith("deberta.embeddings"):
            if "attention" in k:
                s = float(v.max() - v.min()) / 255
                plain[k] = torch.quantize_per_tensor(v, s, int(round(-float(v.min()) / s)), torch.quint8)
            elif "intermediate" in k:
                plain[k] = torch.quantize_per_channel(v, (v.abs().amax(0) / 127.5).double(), torch.zeros(16, dtype=torch.long), 1, torch.qint8)
            elif "pooler" in k:
                plain[k] = torch.quantize_per_tensor(v, float(v.abs().max()) / 2**31 * 1.001, 0, torch.qint32)
            else:
                plain[k] = torch.quantize_per_tensor(v, float(v.abs().max()) / 127, 0, torch.qint8)
    folder = c.add("plain-quantized-tensors", "model.pt", "base-v3-one", plain,
                   "sd[k] = torch.quantize_per_tensor(w, scale, zero_point, torch.quint8)",
                   "quantized tensors under their float names: quint8 with a zero point (attention), qint8 per channel on "
                   "axis 1 (intermediate), qint32 (pooler), qint8 (rest)", ["embeddings-float", "sound"], "all", "not packed")
    c.reference(folder, one, None, plain)


def module_cases(c):
    tiny = tq.quantize_dynamic(nn.Sequential(one().deberta.encoder.layer[0].intermediate.dense), {nn.Linear}, dtype=torch.qint8)
    c.add("module-legacy", "quantized_model.pt", None, tiny, "torch.save(q, path, _use_new_zipfile_serialization=False)",
          "whole module in the format from before torch 1.6", ["pickled-module", "packed-params"], "all",
          "one Linear; persistent ids ('module', class, file, source) hold source text", legacy=True)
    m = feed_forward()
    m.qconfig = tq.QConfig(tq.default_observer, tq.default_per_channel_weight_observer)
    m = tq.prepare(m)
    with torch.no_grad():
        m(torch.ones(1, 16))
    observers = {n: x for n, x in m.named_modules() if n.endswith("activation_post_process")}
    c.add("module-observers", "observers.pt", None, observers, "torch.save({name: observer}, path)",
          "observers pickled as modules", ["pickled-module", "observers-left", "reduce-range"], "none",
          "quant_min, quant_max, dtype and qscheme: the only place where reduce_range is written down")
    whole = nn.ModuleDict(dict(m.named_children()))
    stopped = error_of(lambda: torch.save(whole, io.BytesIO()))
    assert stopped

    def save_failed(obj, path):
        try:
            torch.save(obj, path)
        except Exception:
            pass

    c.add("module-save-failed", "model.pt", None, whole, "torch.save(prepared_model, path)  # raises",
          "whole module with observers: torch.save stops and leaves a file", [], "none",
          f"{stopped}. The file is a zip archive without records of tensors or a pickle", writer=save_failed)
    q = tq.quantize_dynamic(feed_forward(), {nn.Linear}, dtype=torch.qint8)
    x = torch.ones(2, 16)
    c.add("torchscript-script", "model.pt", None, torch.jit.script(q), "torch.jit.save(torch.jit.script(q), path)",
          "feed-forward block, quantize_dynamic", ["torchscript", "packed-params"], "all",
          "source paths in debug_pkl records shortened", writer=save_script)
    c.add("torchscript-trace", "model.pt", None, torch.jit.trace(q, x), "torch.jit.save(torch.jit.trace(q, x), path)",
          "feed-forward block, quantize_dynamic", ["torchscript", "packed-params"], "all",
          "source paths in debug_pkl records shortened", writer=save_script)

    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    p = prepare_fx(feed_forward(), tq.get_default_qconfig_mapping("fbgemm"), (x,))
    with torch.no_grad():
        p(torch.from_numpy(np.random.RandomState(1).standard_normal((8, 16)).astype(np.float32)))
    c.add("fx", "quantized_model.pt", None, convert_fx(p).state_dict(), "convert_fx(prepare_fx(model, mapping, x)).state_dict()",
          "feed-forward block, FX graph mode", ["packed-params", "quantized-layernorm"], "all",
          "extra names of the graph: dense_input_scale_0, _scale_0, _zero_point_0")
    try:
        from torch.ao.quantization.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torch.ao.quantization.quantizer import xnnpack_quantizer as xnn
    except ImportError:  # moved to torchao
        return
    quantizer = xnn.XNNPACKQuantizer().set_global(xnn.get_symmetric_quantization_config(is_per_channel=True))
    p = prepare_pt2e(torch.export.export(feed_forward(), (x,)).module(), quantizer)
    p(torch.from_numpy(np.random.RandomState(1).standard_normal((2, 16)).astype(np.float32)))
    sd = {k: v.detach() for k, v in convert_pt2e(p).state_dict().items()}
    c.add("pt2e", "quantized_model.pt", None, sd, "convert_pt2e(prepare_pt2e(exported, XNNPACKQuantizer())).state_dict()",
          "feed-forward block, PT2E", [], "all",
          "int8 weights are _frozen_param0.. with _scale_0, _zero_point_0; which layer they belong to is only in the graph. The float weights are still there: " + ", ".join(sd))


# ---------------------------------------------------------------------------


def build(out):
    assert transformers.__version__ == "4.57.1", transformers.__version__
    torch.set_num_threads(1)
    torch.backends.quantized.engine = "fbgemm"
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    for name, make in BASES.items():
        make().save_pretrained(out / name, safe_serialization=True)
    c = Cases(out)
    for part in (float_cases, mlm_cases, static_cases, qat_cases, dynamic_cases, crafted_cases, module_cases):
        torch.manual_seed(0)
        part(c)
    (out / "index.json").write_text(json.dumps({"torch": torch.__version__.split("+")[0], "cases": c.index}))


def merge(a, b, out):
    """One directory out of two builds."""
    left, right = (json.loads((x / "index.json").read_text()) for x in (a, b))
    assert left["torch"] == "2.8.0" and right["torch"] == "2.15.0", (left["torch"], right["torch"])
    out.mkdir(parents=True, exist_ok=True)
    for x in out.iterdir():
        if x.is_dir():
            shutil.rmtree(x)
    for name in BASES:
        shutil.copytree(a / name, out / name)
        assert (a / name / "model.safetensors").read_bytes() == (b / name / "model.safetensors").read_bytes(), name
    other = {e["case"]: e for e in right["cases"]}
    index = []
    for e in left["cases"]:
        case, o = e["case"], other.pop(e["case"], None)
        if o is None:
            shutil.copytree(a / case, out / case)
            index.append(dict(e, torch=["2.8.0"]))
            continue
        pa, pb = a / case / e["file"], b / case / o["file"]
        equal = structure(pa) == structure(pb) and globals_of(pa) == globals_of(pb)
        facts = {k: (e[k], o[k]) for k in ("findings", "rescue", "weights_only", "note") if e[k] != o[k]}
        print(f"{case:32s} {'same structure' if equal else 'DIFFERS'}{', bytes equal' if pa.read_bytes() == pb.read_bytes() else ''} {facts or ''}")
        if (a / case / "logits.json").exists():
            la, lb = (json.loads((x / case / "logits.json").read_text()) for x in (a, b))
            for key in ("float", "dequantized", "quantized"):
                if la[key]:
                    print(f"  {key}: largest difference of the versions {np.abs(np.array(la[key]) - np.array(lb[key])).max():.2e}")
        if equal:
            shutil.copytree(a / case, out / case)
            index.append(dict(e, torch=["2.8.0", "2.15.0"]))
            continue
        for side, entry, suffix, version in ((a, e, "-pt28", "2.8.0"), (b, o, "-pt215", "2.15.0")):
            shutil.copytree(side / case, out / (case + suffix))
            index.append(dict(entry, case=case + suffix, torch=[version]))
    assert not other, other.keys()
    (out / "index.json").write_text("[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in index) + "\n]\n")
    table = {}
    for e in index:
        if not e["file"].endswith(".safetensors"):
            name = f"{e['case']}/{e['file']}"
            table[name] = globals_of(out / name)
            print(name, *table[name], sep="\n    ")
    (out / "globals.json").write_text(json.dumps(table, indent=1) + "\n")
    total = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    machine = {sys.prefix, os.getcwd(), str(Path.home()), tempfile.gettempdir() + "/", "site-packages"}
    for p in out.rglob("*"):
        bad = [x for x in machine if p.is_file() and x.encode() in p.read_bytes()]
        assert not bad, f"{p} names a path of this machine: {bad}"
    print(f"{len(index)} files, {total / 1e6:.2f} MB in all")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merge", nargs=2, type=Path, metavar=("STAGE28", "STAGE215"))
    parser.add_argument("out", type=Path, nargs="?")
    args = parser.parse_args()
    if args.merge:
        merge(*args.merge, args.out or Path("testdata/doctor"))
    elif args.out:
        build(args.out)
    else:
        parser.error("give a directory")


main()
