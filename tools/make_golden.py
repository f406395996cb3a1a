#!/usr/bin/env python3
"""Write tiny random checkpoints and the outputs Hugging Face computes for them.

    python tools/make_golden.py [OUT] [--only REGEX]

OUT defaults to testdata/golden. Every case is one directory with the
checkpoint (`config.json` and weights) and `expected.jsonl`. See
testdata/golden/README.md for the format. Nothing outside the repository is
read and nothing is downloaded.

Install the pinned versions with `pip install -r tools/requirements-golden.txt`.
"""

import argparse
import collections
import json
import os
import re
import shutil
import sys
import zlib
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta_v2

assert transformers.__version__ == "4.57.1", transformers.__version__
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)

VOCAB = 97
SHORT = [1, 2, 7]
LENS = [1, 2, 7, 33]
BUCKET_SETTINGS = [
    (256, 512), (32, 256), (16, 64), (8, 16), (40, 100), (64, 640), (128, 512),
    (256, 1024), (256, 2048), (320, 512), (-1, 20), (-1, 64), (-1, 512),
]

# ---------------------------------------------------------------------------
# numbers


def f32(value):
    """The shortest decimal text that reads back to the same float32."""
    return float(str(np.float32(value)))


def rows(t):
    """A tensor as nested lists of shortest float32 decimals."""
    if t.dim() == 0:
        return f32(t.item())
    return [rows(x) for x in t]


def seed_of(name):
    return zlib.crc32(name.encode())


# ---------------------------------------------------------------------------
# weights


def is_layer_norm_weight(name):
    return re.search(r"(LayerNorm|layer_norm|sa_layer_norm|output_layer_norm|vocab_layer_norm)\.weight$", name)


def randomize(model, emb_scale=1.0):
    """Non-zero random values everywhere, so that every tensor matters."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape)
            if is_layer_norm_weight(name):
                p.copy_(1.0 + 0.2 * r)
            elif p.dim() == 1:
                p.copy_(0.2 * r)
            elif name.endswith("rel_embeddings.weight"):
                p.copy_(0.8 * r)
            elif "embeddings" in name and "embed_proj" not in name:
                p.copy_(0.3 * emb_scale * r)
            elif re.search(r"^(classifier|qa_outputs)\.|classifier\.out_proj", name):
                p.copy_(1.2 / p.shape[1] ** 0.5 * r)
            elif "head_logits_proj" in name or "head_weights_proj" in name:
                p.copy_(torch.eye(p.shape[0]) + 0.3 * r)
            elif p.dim() == 3:
                p.copy_(0.15 * r)
            else:
                p.copy_(0.22 * r)


# ---------------------------------------------------------------------------
# running


def random_sample(n, types, low=5, vocab=VOCAB):
    s = {"input_ids": torch.randint(low, vocab, (n,)).tolist()}
    if types:
        cut = int(torch.randint(0, n + 1, (1,)))
        s["token_type_ids"] = [0] * cut + [1] * (n - cut)
    return s


def batch(samples, pad):
    n = max(len(s["input_ids"]) for s in samples)
    out = {
        "input_ids": torch.tensor([s["input_ids"] + [pad] * (n - len(s["input_ids"])) for s in samples]),
        "attention_mask": torch.tensor(
            [[1] * len(s["input_ids"]) + [0] * (n - len(s["input_ids"])) for s in samples]
        ),
    }
    if "token_type_ids" in samples[0]:
        out["token_type_ids"] = torch.tensor(
            [s["token_type_ids"] + [0] * (n - len(s["token_type_ids"])) for s in samples]
        )
    return out


def forward(model, head, samples, pad):
    """Outputs of one padded batch, one dict of tensors per sample, padding cut off."""
    with torch.no_grad():
        if head == "multiple-choice":
            b = {k: v.unsqueeze(0) for k, v in batch(samples, pad).items()}
            return {"logits": model(**b).logits[0]}
        o = model(**batch(samples, pad))
    result = []
    for i, s in enumerate(samples):
        n = len(s["input_ids"])
        if head == "sequence":
            r = {"logits": o.logits[i]}
        elif head in ("token", "masked-lm"):
            r = {"logits": o.logits[i, :n]}
        elif head == "question-answering":
            r = {"start_logits": o.start_logits[i, :n], "end_logits": o.end_logits[i, :n]}
        elif head == "features":
            r = {"last_hidden_state": o.last_hidden_state[i, :n]}
        else:
            raise ValueError(head)
        result.append(r)
    return result


def compute(model, head, lens, types, pad, low, samples=None):
    """The lines of expected.jsonl. Checks that padding does not change them."""
    if head == "multiple-choice":
        lines = []
        for group in lens:
            choices = [random_sample(n, types, low) for n in group]
            raw = forward(model, head, choices, pad)
            alone = torch.cat([forward(model, head, [c], pad)["logits"] for c in choices])
            assert (raw["logits"] - alone).abs().max() < 2e-5
            lines.append({"choices": choices, "raw": {"logits": rows(raw["logits"])}})
        return lines
    if samples is None:
        samples = [random_sample(n, types, low) for n in lens]
    raws = forward(model, head, samples, pad)
    lines = []
    for s, raw in zip(samples, raws):
        alone = forward(model, head, [s], pad)[0]
        for key, value in raw.items():
            assert torch.isfinite(value).all()
            err = (value - alone[key]).abs().max().item()
            assert err < 5e-5, (key, len(s["input_ids"]), err)
        lines.append({**s, "raw": {k: rows(v) for k, v in raw.items()}})
    return lines


def write_lines(path, lines):
    with open(path, "w") as f:
        for line in lines:
            f.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")


def same(a, b, tol=2e-6):
    """Largest difference of two structures of numbers is within tol."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], tol) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y, tol) for x, y in zip(a, b))
    return abs(a - b) <= tol * max(1.0, abs(b))


def edit_config(folder, edits):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in edits.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


class Cases:
    def __init__(self, out, only):
        self.out, self.only, self.index = out, re.compile(only or ""), []

    def wanted(self, name):
        return bool(self.only.search(name))

    def folder(self, name):
        path = self.out / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return path

    def add(self, name, family, head, note, lines):
        write_lines(self.out / name / "expected.jsonl", lines)
        n = max(max(len(c["input_ids"]) for c in line.get("choices", [line])) for line in lines)
        self.index.append({"case": name, "family": family, "head": head, "note": note, "max_len": n})
        size = sum(p.stat().st_size for p in (self.out / name).iterdir())
        print(f"{name:32s} {head:18s} {size / 1024:7.1f} KiB  max_len {n}", flush=True)

    def model(self, name, family, head, cls, config, note, lens=LENS, config_edit=None, emb_scale=1.0,
              ids=None, types=None):
        """One ordinary case: build, randomize, save, run, and reload to check the files."""
        if not self.wanted(name):
            return
        torch.manual_seed(seed_of(name))
        model = cls(config).float().eval()
        randomize(model, emb_scale)
        folder = self.folder(name)
        model.save_pretrained(folder, safe_serialization=True)
        if config_edit:
            edit_config(folder, config_edit)
        if types is None:
            types = getattr(config, "type_vocab_size", 0) > 1
        pad = config.pad_token_id or 0
        samples = None
        if ids is not None:
            samples = [{"input_ids": x} for x in ids]
        lines = compute(model, head, lens, types, pad, 5, samples)
        again = cls.from_pretrained(folder).float().eval()
        for line in lines:
            raws = (
                forward(again, head, line["choices"], pad)
                if "choices" in line
                else forward(again, head, [line], pad)[0]
            )
            assert same({k: rows(v) for k, v in raws.items()}, line["raw"], 5e-5), name
        self.add(name, family, head, note, lines)


# ---------------------------------------------------------------------------
# DeBERTa


V1_CLASSES = {
    "features": transformers.DebertaModel,
    "sequence": transformers.DebertaForSequenceClassification,
    "token": transformers.DebertaForTokenClassification,
    "question-answering": transformers.DebertaForQuestionAnswering,
    "masked-lm": transformers.DebertaForMaskedLM,
}
V2_CLASSES = {
    "features": transformers.DebertaV2Model,
    "sequence": transformers.DebertaV2ForSequenceClassification,
    "token": transformers.DebertaV2ForTokenClassification,
    "question-answering": transformers.DebertaV2ForQuestionAnswering,
    "masked-lm": transformers.DebertaV2ForMaskedLM,
    "multiple-choice": transformers.DebertaV2ForMultipleChoice,
}
COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
    max_position_embeddings=64, relative_attention=True, position_biased_input=False, layer_norm_eps=1e-7,
    type_vocab_size=0,
)
ONE = dict(num_hidden_layers=1)
NLI = dict(
    id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
    label2id={"contradiction": 0, "entailment": 1, "neutral": 2},
)


def v1_config(head, **kw):
    base = dict(COMMON, pos_att_type="c2p|p2c")
    if head in ("sequence", "token"):
        base["num_labels"] = 3
    base.update(kw)
    return transformers.DebertaConfig(**base)


def v3_config(head, **kw):
    base = dict(
        COMMON, pos_att_type="p2c|c2p", position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True,
    )
    if head in ("sequence", "token") and "id2label" not in kw:
        base["num_labels"] = 3
    base.update(kw)
    return transformers.DebertaV2Config(**base)


CHOICES = [[7, 12, 3], [5, 1], [2, 20, 9, 33]]


def deberta_v1(c):
    def case(name, head, note, lens=LENS, edit=None, **kw):
        c.model(name, "deberta-v1", head, V1_CLASSES[head], v1_config(head, **kw), note, lens, edit)

    case("v1-features", "features", "plain c2p|p2c", SHORT + [9], edit={"pos_att_type": "c2p|p2c"})
    case("v1-sequence", "sequence", "plain c2p|p2c, pos_att_type as string", edit={"pos_att_type": "c2p|p2c"}, **NLI)
    case("v1-token", "token", "plain c2p|p2c")
    case("v1-qa", "question-answering", "plain c2p|p2c", **ONE)
    case("v1-mlm", "masked-lm", "legacy head cls.predictions, tied decoder absent from the file", SHORT)
    case("v1-mlm-lm-predictions", "masked-lm", "legacy false: head lm_predictions.lm_head, untied", SHORT,
         legacy=False, tie_word_embeddings=False)
    case("v1-c2p", "token", "only c2p", pos_att_type="c2p", **ONE)
    case("v1-p2c", "token", "only p2c, given as a list", pos_att_type=["p2c"], **ONE)
    case("v1-p2p-listed", "token", "p2p is ignored but counts in the scale", pos_att_type="c2p|p2c|p2p", **ONE)
    case("v1-c2p-p2p", "token", "c2p and p2p: scale of three terms, one table", pos_att_type="c2p|p2p", **ONE)
    case("v1-max-relative-20", "token", "max_relative_positions 20, longer inputs clamp", [60, 33, 21, 20, 19, 7, 1],
         max_relative_positions=20)
    case("v1-long", "sequence", "longer than max_position_embeddings 64", [1, 7, 63, 64, 65, 70, 100, 129])
    case("v1-long-token", "token", "longer than max_position_embeddings 64", [65, 70, 3])
    case("v1-long-512", "sequence", "max_position_embeddings 512, as released; inputs to 1024 tokens",
         [1, 2, 129, 130, 511, 512, 513, 1024], max_position_embeddings=512, **ONE)
    case("v1-talking-head", "token", "talking_head, four heads", talking_head=True, num_attention_heads=4)
    case("v1-abs-types-embsize", "token", "absolute positions, token types, embedding_size 24",
         [1, 2, 7, 33, 60, 64], position_biased_input=True, type_vocab_size=2, embedding_size=24)
    case("v1-no-relative", "token", "relative_attention false, pos_att_type none, absolute positions",
         [1, 2, 7, 33, 60], relative_attention=False, position_biased_input=True, pos_att_type=None)
    case("v1-no-relative-scaled", "token", "relative_attention false but two types listed: they still scale",
         relative_attention=False, position_biased_input=True, **ONE)
    case("v1-hidden-48", "sequence", "hidden 48, four heads of 12, pooler tanh", hidden_size=48,
         num_attention_heads=4, pooler_hidden_act="tanh", **ONE)


def deberta_v3(c):
    def case(name, head, note, lens=LENS, edit=None, emb_scale=1.0, **kw):
        c.model(name, "deberta-v2", head, V2_CLASSES[head], v3_config(head, **kw), note, lens, edit, emb_scale)

    # Heads.
    case("v3-features", "features", "bare model: keys without the deberta. prefix", SHORT + [9])
    case("v3-sequence", "sequence", "pos_att_type as string, named labels", edit={"pos_att_type": "p2c|c2p"}, **NLI)
    case("v3-token", "token", "pos_att_type as list, as re-saved")
    case("v3-qa", "question-answering", "", **ONE)
    case("v3-multiple-choice", "multiple-choice", "choices of different length, groups of different size", CHOICES)
    case("v3-mlm-legacy", "masked-lm", "legacy head cls.predictions, tied decoder absent from the file", SHORT)
    case("v3-mlm-legacy-embsize", "masked-lm", "legacy head with embedding_size 24: dense is 24 x 32", SHORT,
         embedding_size=24, **ONE)
    case("v3-mlm-lm-predictions", "masked-lm", "legacy false: head lm_predictions.lm_head, untied", SHORT,
         legacy=False, tie_word_embeddings=False)
    case("v3-one-logit", "sequence", "num_labels 1, as rerankers have", num_labels=1, **ONE)
    case("v3-multi-label", "sequence", "problem_type multi_label_classification, four labels", num_labels=4,
         problem_type="multi_label_classification", **ONE)
    case("v3-pooler-tanh", "sequence", "pooler_hidden_act tanh", pooler_hidden_act="tanh", **ONE)
    case("v3-pooler-relu", "sequence", "pooler_hidden_act relu", pooler_hidden_act="relu", **ONE)
    # Attention.
    case("v3-shared", "token", "share_att_key, hidden 48, four heads of 12", hidden_size=48, num_attention_heads=4,
         **ONE)
    case("v3-not-shared", "token", "share_att_key false: own position projections with bias", share_att_key=False)
    case("v3-not-shared-c2p", "token", "share_att_key false, only c2p: no pos_query_proj in the file",
         share_att_key=False, pos_att_type="c2p", **ONE)
    case("v3-not-shared-p2c", "token", "share_att_key false, only p2c: no pos_key_proj in the file",
         share_att_key=False, pos_att_type=["p2c"], **ONE)
    case("v3-c2p", "token", "only c2p", pos_att_type="c2p", **ONE)
    case("v3-p2c", "token", "only p2c", pos_att_type="p2c", **ONE)
    case("v3-p2p-listed", "token", "p2p is ignored and, unlike v1, does not count in the scale",
         pos_att_type="p2c|c2p|p2p", **ONE)
    case("v3-upper-case-string", "token", "pos_att_type ' P2C | C2P ' as a string in config.json",
         edit={"pos_att_type": " P2C | C2P "}, **ONE)
    case("v3-head-20", "token", "hidden 80, four heads of 20, attention_head_size given", num_hidden_layers=1,
         hidden_size=80, num_attention_heads=4, attention_head_size=20)
    case("v3-no-buckets", "token", "position_buckets -1, norm_rel_ebd none, longer than max_position_embeddings",
         [1, 2, 33, 63, 64, 65, 70], position_buckets=-1, norm_rel_ebd="none")
    case("v3-max-relative-40", "token", "max_relative_positions 40 differs from max_position_embeddings",
         [1, 7, 39, 41, 64, 80], max_relative_positions=40, **ONE)
    case("v3-norm-rel-mixed", "token", "norm_rel_ebd ' None | Layer_Norm ' in config.json",
         norm_rel_ebd=" None | Layer_Norm ", **ONE)
    case("v3-no-relative", "token", "relative_attention false but two types listed: they still scale",
         relative_attention=False, position_biased_input=True, **ONE)
    case("v3-abs-types-embsize", "token", "absolute positions, token types, embedding_size 24",
         [1, 2, 7, 33, 60, 64], position_biased_input=True, type_vocab_size=2, embedding_size=24)
    case("v3-types", "sequence", "token types without absolute positions", type_vocab_size=2, **ONE)
    case("v3-long", "sequence", "position_buckets 16, max_position_embeddings 64",
         [1, 2, 129, 130, 511, 512, 513, 700])
    case("v3-long-256", "sequence", "position_buckets 256, max_position_embeddings 512, as released",
         [1, 2, 129, 130, 511, 512, 513, 700], position_buckets=256, max_position_embeddings=512,
         num_attention_heads=4)
    case("v3-long-token", "token", "position_buckets 16, max_position_embeddings 64, every row",
         [64, 65, 150], num_attention_heads=4)
    case("v3-long-1024", "sequence", "position_buckets 256, max_position_embeddings 512, twice that many tokens",
         [1024, 600, 1], position_buckets=256, max_position_embeddings=512, **ONE)
    # Convolution.
    case("v3-conv3", "token", "conv_kernel_size 3, gelu", conv_kernel_size=3, conv_act="gelu")
    case("v3-conv5-groups2", "token", "conv_kernel_size 5, two groups, default activation tanh",
         conv_kernel_size=5, conv_groups=2)
    # Activations and epsilon.
    case("v3-act-gelu-new", "token", "hidden_act gelu_new", hidden_act="gelu_new", **ONE)
    case("v3-act-relu", "token", "hidden_act relu", hidden_act="relu", **ONE)
    for act in ("gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "silu", "tanh", "mish", "gelu_python", "swish",
                "sigmoid", "linear"):
        case(f"v3-act-{act.replace('_', '-')}", "token", f"hidden_act {act}, one layer", hidden_act=act,
             num_hidden_layers=1, intermediate_size=40)
    case("v3-eps-1e-5", "token", "layer_norm_eps 1e-5 and word embeddings of size 3e-4: eps decides",
         layer_norm_eps=1e-5, emb_scale=1e-3, num_hidden_layers=1)
    case("v3-eps-1e-7", "token", "layer_norm_eps 1e-7 and word embeddings of size 3e-4: eps decides",
         emb_scale=1e-3, num_hidden_layers=1)


# ---------------------------------------------------------------------------
# Old key names


def old_names(c):
    small = dict(num_hidden_layers=1, intermediate_size=40, num_attention_heads=2)

    def old_norms(state):
        rename = lambda k: k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        return {rename(k): v.clone() for k, v in state.items()}

    def extras(state, hidden=32):
        r = torch.randn
        state["embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
        state["lm_predictions.lm_head.dense.weight"] = r(hidden, hidden)
        state["lm_predictions.lm_head.dense.bias"] = r(hidden)
        state["lm_predictions.lm_head.LayerNorm.weight"] = r(hidden)
        state["lm_predictions.lm_head.LayerNorm.bias"] = r(hidden)
        state["lm_predictions.lm_head.bias"] = r(VOCAB)
        state["mask_predictions.dense.weight"] = r(hidden, hidden)
        state["mask_predictions.dense.bias"] = r(hidden)
        state["mask_predictions.LayerNorm.weight"] = r(hidden)
        state["mask_predictions.LayerNorm.bias"] = r(hidden)
        state["mask_predictions.classifier.weight"] = r(1, hidden)
        state["mask_predictions.classifier.bias"] = r(1)
        return state

    def run(name, head, note, change, reload=True, edit=None, lens=LENS):
        if not c.wanted(name):
            return
        torch.manual_seed(seed_of(name))
        config = v3_config(head, **small)
        model = V2_CLASSES[head](config).eval()
        randomize(model)
        folder = c.folder(name)
        model.save_pretrained(folder)
        state = change(load_file(folder / "model.safetensors"))
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
        if edit:
            edit_config(folder, edit)
        lines = compute(model, head, lens, False, 0, 5)
        if reload:
            again = V2_CLASSES[head].from_pretrained(folder).eval()
            for line in lines:
                got = forward(again, head, [line], 0)[0]
                assert same({k: rows(v) for k, v in got.items()}, line["raw"], 5e-5), name
        c.add(name, "deberta-v2", head, note, lines)

    strip = lambda s: {k.removeprefix("deberta."): v for k, v in s.items()}
    run("old-v3-gamma-beta", "sequence", "LayerNorm.gamma/beta, position_ids buffer, extra lm_/mask_predictions",
        lambda s: {("deberta." + k if k.startswith("embeddings.") else k): v
                   for k, v in extras(old_norms(s)).items()})
    run("old-v3-bare", "features",
        "gamma/beta, no deberta. prefix, position_ids buffer, extra lm_/mask_predictions",
        lambda s: extras(old_norms(s)), lens=SHORT)
    run("old-v3-no-prefix", "sequence",
        "sequence head without the deberta. prefix, gamma/beta, extras (transformers refuses this file)",
        lambda s: extras(old_norms(strip(s))), reload=False)
    run("old-v3-module-prefix", "sequence",
        "every key starts with module. (transformers finds no weights in it and keeps random ones)",
        lambda s: {"module." + k: v for k, v in s.items()}, reload=False)
    run("old-v3-unused-positions", "sequence",
        "position_embeddings stored although position_biased_input is false: must be ignored",
        lambda s: {**s, "deberta.embeddings.position_embeddings.weight": torch.randn(64, 32)})

    name = "old-v3-lm-predictions"
    if c.wanted(name):
        torch.manual_seed(seed_of(name))
        model = V2_CLASSES["masked-lm"](v3_config("masked-lm", legacy=False, tie_word_embeddings=False)).eval()
        randomize(model)
        folder = c.folder(name)
        model.save_pretrained(folder)
        state = load_file(folder / "model.safetensors")
        state["deberta.embeddings.position_embeddings.weight"] = torch.randn(64, 32)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        edit_config(folder, {"legacy": None, "tie_word_embeddings": None, "architectures": None,
                             "pos_att_type": "p2c|c2p"})
        lines = compute(model, "masked-lm", SHORT, False, 0, 5)
        # The same weights through the legacy head by hand give the same logits.
        legacy = V2_CLASSES["masked-lm"](v3_config("masked-lm")).eval()
        head = {
            "dense.weight": "transform.dense.weight", "dense.bias": "transform.dense.bias",
            "LayerNorm.weight": "transform.LayerNorm.weight", "LayerNorm.bias": "transform.LayerNorm.bias",
            "bias": "bias",
        }
        moved = {k: v for k, v in model.state_dict().items() if k.startswith("deberta.")}
        for src, dst in head.items():
            moved["cls.predictions." + dst] = state["lm_predictions.lm_head." + src]
        missing = legacy.load_state_dict(moved, strict=False)
        assert set(missing.missing_keys) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}, missing
        for line in lines:
            got = forward(legacy, "masked-lm", [line], 0)[0]
            assert same({k: rows(v) for k, v in got.items()}, line["raw"], 5e-5)
        c.add(name, "deberta-v2", "masked-lm",
              "as Microsoft stores it: lm_predictions.lm_head.*, no legacy flag, no architectures, unused "
              "position_embeddings (transformers itself would give a random head)", lines)


# ---------------------------------------------------------------------------
# Storage


def storage(c):
    cls = V2_CLASSES["sequence"]

    def make():
        torch.manual_seed(seed_of("store"))
        config = v3_config("sequence", num_hidden_layers=1, intermediate_size=40)
        model = cls(config).eval()
        randomize(model)
        return model

    def expected(model):
        torch.manual_seed(seed_of("store-inputs"))
        return compute(model.float().eval(), "sequence", LENS, False, 0, 5)

    def run(name, note, write, dtype=torch.float32, reload=True):
        if not c.wanted(name):
            return
        folder = c.folder(name)
        model = make().to(dtype)
        write(model, folder)
        lines = expected(model)
        if reload:
            again = cls.from_pretrained(folder, dtype=torch.float32).eval()
            for line in lines:
                got = forward(again, "sequence", [line], 0)[0]
                assert same({k: rows(v) for k, v in got.items()}, line["raw"], 5e-5), name
        c.add(name, "deberta-v2", "sequence", note, lines)

    def pretrained(**kw):
        return lambda model, folder: model.save_pretrained(folder, **kw)

    def config_only(model, folder):
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(folder)

    def bin_of(change, **kw):
        def write(model, folder):
            config_only(model, folder)
            torch.save(change(model.state_dict()), folder / "pytorch_model.bin", **kw)
        return write

    def with_position_ids(state):
        state["deberta.embeddings.position_ids"] = torch.arange(64).expand((1, -1))
        return state

    def strided(state):
        """Views: q, k, v share one storage at offsets, dense weights are transposed, one tensor is tied."""
        state = collections.OrderedDict(state)
        for kind in ("weight", "bias"):
            keys = [f"deberta.encoder.layer.0.attention.self.{p}_proj.{kind}" for p in ("query", "key", "value")]
            fused = torch.cat([state[k] for k in keys])
            n = fused.shape[0] // 3
            for i, k in enumerate(keys):
                state[k] = fused[i * n:(i + 1) * n]
        for k, v in list(state.items()):
            if v.dim() == 2 and "_proj" not in k:
                state[k] = v.t().contiguous().t()
                assert not state[k].is_contiguous() or 1 in v.shape
        wide = torch.randn(3, 2, 2 * 40)
        wide[1, 0, ::2] = state["deberta.encoder.layer.0.intermediate.dense.bias"]
        state["deberta.encoder.layer.0.intermediate.dense.bias"] = wide[1, 0, ::2]
        state["cls.predictions.decoder.weight"] = state["deberta.embeddings.word_embeddings.weight"]
        return state

    def as_parameters(state):
        return collections.OrderedDict((k, torch.nn.Parameter(v.clone(), requires_grad=True)) for k, v in state.items())

    run("store-safetensors", "model.safetensors, float32: the reference for the other store-* cases", pretrained())
    run("store-bf16-safetensors", "model.safetensors, bfloat16; logits computed in float32", pretrained(),
        torch.bfloat16)
    run("store-f16-safetensors", "model.safetensors, float16; logits computed in float32", pretrained(),
        torch.float16)
    run("store-sharded-safetensors", "shards and model.safetensors.index.json",
        pretrained(max_shard_size="18KB"))
    run("store-bin", "pytorch_model.bin as save_pretrained writes it", pretrained(safe_serialization=False))
    run("store-bin-f16", "pytorch_model.bin, float16, with the int64 position_ids buffer of old checkpoints",
        bin_of(with_position_ids), torch.float16)
    run("store-bin-bf16", "pytorch_model.bin, bfloat16", pretrained(safe_serialization=False), torch.bfloat16)
    run("store-sharded-bin", "pytorch_model-*.bin shards and pytorch_model.bin.index.json",
        pretrained(max_shard_size="18KB", safe_serialization=False))
    run("store-bin-strided", "pytorch_model.bin with transposed and strided views, shared storages and a tied tensor",
        bin_of(strided))
    run("store-bin-state-dict",
        "pytorch_model.bin saved as {'state_dict': ..., 'epoch': 3} (transformers finds no weights "
        "in it and keeps random ones)",
        bin_of(lambda s: {"epoch": 3, "state_dict": s}), reload=False)
    run("store-bin-parameters", "pytorch_model.bin holding torch.nn.Parameter objects", bin_of(as_parameters))
    run("store-bin-legacy", "pytorch_model.bin in the pickle format from before torch 1.6 (not a zip)",
        bin_of(lambda s: s, _use_new_zipfile_serialization=False))


# ---------------------------------------------------------------------------
# BERT family


SIZE = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
HEADS = [
    ("sequence", "ForSequenceClassification"), ("token", "ForTokenClassification"),
    ("question-answering", "ForQuestionAnswering"), ("masked-lm", "ForMaskedLM"),
    ("multiple-choice", "ForMultipleChoice"), ("features", "Model"),
]
SHORT_NAMES = {"question-answering": "qa", "masked-lm": "mlm"}


def lens_of(head, longest):
    if head == "multiple-choice":
        return CHOICES
    if head in ("masked-lm", "features"):
        return SHORT
    return LENS + [longest - 1, longest] if head == "sequence" else LENS


def bert_family(c):
    def family(short, name, prefix, config, longest, heads=None, note="", **kw):
        for head, suffix in HEADS:
            if heads and head not in heads:
                continue
            extra = dict(num_labels=3) if head in ("sequence", "token") else {}
            if head not in ("sequence", "masked-lm", "features"):
                extra["n_layers" if short == "distilbert" else "num_hidden_layers"] = 1
            cls = getattr(transformers, prefix + suffix)
            c.model(f"{short}-{SHORT_NAMES.get(head, head)}", name, head, cls, config(**extra), note,
                    lens_of(head, longest), **kw)

    bert = lambda **kw: transformers.BertConfig(
        **{**SIZE, "max_position_embeddings": 64, "layer_norm_eps": 1e-12, **kw})
    family("bert", "bert", "Bert", bert, 64)
    c.model("bert-eps", "bert", "token", transformers.BertForTokenClassification,
            bert(num_labels=3, num_hidden_layers=1),
            "layer_norm_eps 1e-12 and embeddings of size 3e-6: eps decides", LENS, emb_scale=1e-5)
    c.model("bert-act-relu", "bert", "sequence", transformers.BertForSequenceClassification,
            bert(num_labels=1, num_hidden_layers=1, hidden_act="relu", num_attention_heads=4, type_vocab_size=3),
            "hidden_act relu, one logit, type_vocab_size 3", LENS)

    c.model("bert-long", "bert", "sequence", transformers.BertForSequenceClassification,
            bert(num_labels=3, num_hidden_layers=1, max_position_embeddings=512),
            "max_position_embeddings 512, as released", [1, 129, 511, 512])

    roberta = lambda **kw: transformers.RobertaConfig(
        **{**SIZE, "max_position_embeddings": 66, "layer_norm_eps": 1e-5, "type_vocab_size": 1, **kw})
    family("roberta", "roberta", "Roberta", roberta, 64,
           note="positions start at pad + 1 = 2; type_vocab_size 1, row 0 is added")
    torch.manual_seed(seed_of("roberta-pad-inside-ids"))
    tail = torch.randint(5, VOCAB, (9,)).tolist()
    c.model("roberta-pad-inside", "roberta", "token", transformers.RobertaForTokenClassification,
            roberta(num_labels=3, num_hidden_layers=1),
            "the pad id 1 inside an attended input takes position 1 and does not advance the count",
            ids=[[0, 1, 17, 2], tail[:4] + [1, 1] + tail[4:], [1, 5], [1]])

    c.model("roberta-long", "roberta", "sequence", transformers.RobertaForSequenceClassification,
            roberta(num_labels=3, num_hidden_layers=1, max_position_embeddings=514),
            "max_position_embeddings 514, as released: 512 tokens", [1, 129, 511, 512])
    c.model("camembert-sequence", "camembert", "sequence", transformers.CamembertForSequenceClassification,
            transformers.CamembertConfig(**{**SIZE, "num_hidden_layers": 1, "max_position_embeddings": 66,
                                            "layer_norm_eps": 1e-5, "type_vocab_size": 1, "num_labels": 3}),
            "RoBERTa under another name", LENS)

    xlmr = lambda **kw: transformers.XLMRobertaConfig(
        **{**SIZE, "max_position_embeddings": 66, "layer_norm_eps": 1e-5, "type_vocab_size": 1, **kw})
    family("xlmr", "xlm-roberta", "XLMRoberta", xlmr, 64, ["sequence"])

    distil = lambda **kw: transformers.DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_heads=2, hidden_dim=40, max_position_embeddings=64, **{"n_layers": 2, **kw})
    family("distilbert", "distilbert", "DistilBert", distil, 64)

    electra = lambda size: lambda **kw: transformers.ElectraConfig(
        **{**SIZE, "embedding_size": size, "max_position_embeddings": 64, "layer_norm_eps": 1e-12, **kw})
    family("electra", "electra", "Electra", electra(24), 64, note="embedding_size 24 differs from hidden_size 32")
    family("electra-equal", "electra", "Electra", electra(32), 64, ["sequence", "masked-lm"],
           note="embedding_size equals hidden_size: no embeddings_project")
    c.model("electra-act", "electra", "sequence", transformers.ElectraForSequenceClassification,
            electra(24)(num_labels=3, num_hidden_layers=1, hidden_act="relu"),
            "hidden_act relu: the head still uses gelu", LENS)


# ---------------------------------------------------------------------------
# Buckets


def buckets(path):
    """Index tables idx(d), d = query - key, after adding the span and clamping."""
    reach = 1100
    ids = torch.empty(1, reach + 1, 1)
    tables = []
    for b, m in BUCKET_SETTINGS:
        rel = deberta_v2.build_relative_position(ids, ids, bucket_size=b, max_position=m)[0]
        span = b if b > 0 else m
        line = torch.cat([rel[0].flip(0), rel[1:, 0]])  # distances -reach..reach
        index = torch.clamp(line + span, 0, 2 * span - 1)
        c2p = torch.clamp(rel + span, 0, 2 * span - 1)
        p2c = torch.clamp(-rel + span, 0, 2 * span - 1).t()
        i, j = torch.meshgrid(torch.arange(reach + 1), torch.arange(reach + 1), indexing="ij")
        assert torch.equal(c2p, index[i - j + reach])
        assert torch.equal(c2p, p2c)
        tables.append({"position_buckets": b, "max_relative_positions": m, "span": span,
                       "first_distance": -reach, "index": index.tolist()})
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(t, separators=(",", ":")) for t in tables) + "\n]\n")


def main():
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=here / "testdata" / "golden")
    parser.add_argument("--only", help="write only the cases whose name matches; leaves index.json alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    c = Cases(args.out, args.only)
    for part in (deberta_v1, deberta_v3, old_names, storage, bert_family):
        part(c)
    if args.only:
        return
    c.index.sort(key=lambda x: x["case"])
    with open(args.out / "index.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x, ensure_ascii=False) for x in c.index) + "\n]\n")
    buckets(args.out / "buckets.json")
    total = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
    print(f"{len(c.index)} cases, {total / 2**20:.2f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
