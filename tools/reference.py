"""Independent float64 outputs of the fetched models, in plain numpy: what the Rust code is compared with.

usage: reference.py MODELS_DIR      (called by fetch_models.py; needs numpy and tokenizers)

Writes MODELS_DIR/reference/NAME.jsonl, one row an input:
  deberta-v3-xsmall  {"input_ids", "raw": {"logits"}}
  minilm-l6          {"input_ids", "token_type_ids", "raw": {"mean": mean of the last hidden states,
                      "first": the first of them}}
Written from the papers and the tensor shapes, sequence by sequence and without padding or masks, so that it
shares neither code nor layout decisions with the implementations it judges.
"""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
          "I8": "<i1", "U8": "<u1", "BOOL": "<u1"}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name to array; bfloat16 becomes float32. Reads the format by hand: eight bytes, JSON, data."""
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    out, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda kv: kv[1].get("data_offsets", [0])[0]):
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        if start != end:
            raise ValueError(f"{path}: {name} starts at {start}, expected {end}")
        end = stop
        array = np.frombuffer(data[8 + length + start : 8 + length + stop], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        out[name] = array.reshape(entry["shape"])
    if 8 + length + end != len(data):
        raise ValueError(f"{path}: {len(data) - 8 - length - end} bytes after the last tensor")
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact one; numpy has no erf."""
    erf = np.fromiter(map(math.erf, (x / math.sqrt(2)).ravel().tolist()), np.float64, x.size)
    return 0.5 * x * (1 + erf.reshape(x.shape))


class Encoder:
    """DeBERTa v2/v3 (shared position projections) or BERT, post-norm, gelu."""

    def __init__(self, directory: Path):
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = read_safetensors(directory / "model.safetensors")
        self.deberta = self.config["model_type"] == "deberta-v2"
        known = self.config.get("hidden_act") == "gelu" and self.config["model_type"] in ("deberta-v2", "bert")
        if not known or (self.deberta and not self.config.get("share_att_key")):
            raise ValueError(f"{directory}: not an architecture this reference was written for")
        self.prefix = "deberta." if "deberta.embeddings.LayerNorm.weight" in self.tensors else ""
        self.heads = self.config["num_attention_heads"]

    def get(self, name: str, full: bool = False) -> np.ndarray:
        return self.tensors[("" if full else self.prefix) + name].astype(np.float64)

    def linear(self, x: np.ndarray, name: str, full: bool = False) -> np.ndarray:
        return x @ self.get(name + ".weight", full).T + self.get(name + ".bias", full)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.config["layer_norm_eps"])
        return scaled * self.get(name + ".weight") + self.get(name + ".bias")

    def embed(self, ids: list[int], types: list[int]) -> np.ndarray:
        def rows(table: str, index) -> np.ndarray:
            return self.tensors[f"{self.prefix}embeddings.{table}.weight"][index].astype(np.float64)

        x = rows("word_embeddings", ids)
        if self.config.get("position_biased_input", True):
            x = x + rows("position_embeddings", np.arange(len(ids)))
        if self.config.get("type_vocab_size", 0):
            x = x + rows("token_type_embeddings", types)
        return self.norm(x, "embeddings.LayerNorm")

    def relative_rows(self, n: int) -> np.ndarray:
        """[n, n]: which row of the relative table query i uses for key j."""
        buckets, reach = self.config["position_buckets"], self.config["max_relative_positions"]
        if reach < 1:
            reach = self.config["max_position_embeddings"]
        middle = buckets // 2
        distance = np.arange(n)[:, None] - np.arange(n)[None, :]
        far = np.maximum(np.abs(distance), middle)
        logarithmic = np.ceil(np.log(far / middle) / np.log((reach - 1) / middle) * (middle - 1)) + middle
        bucket = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * logarithmic).astype(int)
        return np.clip(bucket + buckets, 0, 2 * buckets - 1)

    def attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        n = len(x)
        names = ("query_proj", "key_proj", "value_proj") if self.deberta else ("query", "key", "value")
        query, key, value = (f"{layer}.attention.self.{name}" for name in names)

        def by_head(y: np.ndarray) -> np.ndarray:  # [heads, rows, size]
            return y.reshape(len(y), self.heads, -1).transpose(1, 0, 2)

        q, k, v = (by_head(self.linear(x, name)) for name in (query, key, value))
        scores, terms = q @ k.transpose(0, 2, 1), 1
        if self.deberta:
            kinds = self.config["pos_att_type"]
            kinds = kinds.split("|") if isinstance(kinds, str) else kinds
            table = self.norm(self.get("encoder.rel_embeddings.weight"), "encoder.LayerNorm")
            index, rows, columns = self.relative_rows(n), np.arange(n)[:, None], np.arange(n)[None, :]
            if "c2p" in kinds:  # what the query says of the distance
                scores = scores + (q @ by_head(self.linear(table, key)).transpose(0, 2, 1))[:, rows, index]
                terms += 1
            if "p2c" in kinds:  # what the distance says of the key
                scores = scores + (k @ by_head(self.linear(table, query)).transpose(0, 2, 1))[:, columns, index]
                terms += 1
        scores = scores / math.sqrt(q.shape[-1] * terms)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ v).transpose(1, 0, 2).reshape(n, -1)

    def hidden(self, ids: list[int], types: list[int]) -> np.ndarray:
        x = self.embed(ids, types)
        for number in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            attended = self.linear(self.attention(x, layer), f"{layer}.attention.output.dense")
            x = self.norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(x + self.linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x

    def classify(self, ids: list[int], types: list[int]) -> np.ndarray:
        first = self.hidden(ids, types)[:1]
        return self.linear(gelu(self.linear(first, "pooler.dense", True)), "classifier", True)[0]


SENTENCES = [
    "Yes.",
    "Where is the key?",
    "A man is eating a piece of bread.",
    "The agent may read files in the project folder, but it must never delete or overwrite them.",
    "It removed the backup directory of the customer without asking anybody first!",
    "Prices rose by 3.7% in March 2021, the steepest monthly increase since 1998.",
    "“Naïve” coöperation isn't façade-deep; it's a résumé of trust — so they say…",
    "def add(a, b):\n    return a + b  # trailing comment",
    "Übermäßig lange Wörter wie Donaudampfschifffahrtsgesellschaft prüfen die Zerlegung.",
    "The committee, having heard both sides for the better part of two days and read some four hundred pages of "
    "evidence, adjourned without reaching a decision; its chair said only that the matter would be taken up again "
    "in the autumn.",
    "Rivers that rise in the mountains are fed by snow in spring and by glaciers in late summer.",
    "Send the report to alice@example.org and bob@example.org before 17:30, then archive it.",
    "The quick brown fox jumps over the lazy dog, and the dog, being lazy, does not mind in the least.",
]


def inputs() -> list[tuple[str, str | None]]:
    """Singles, pairs, paragraphs, and one text longer than 512 tokens."""
    pairs = [(SENTENCES[i], SENTENCES[(5 * i + 4) % len(SENTENCES)]) for i in range(0, len(SENTENCES), 2)]
    paragraphs = [(" ".join(SENTENCES[a:b]), None) for a, b in ((2, 6), (3, 9), (1, 13))]
    return [(s, None) for s in SENTENCES] + pairs + paragraphs + [(" ".join(SENTENCES * 3), None)]


def rows(directory: Path):
    from tokenizers import Tokenizer

    encoder = Encoder(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()  # a saved tokenizer may carry its last caller's settings
    tokenizer.no_truncation()
    limit = None if encoder.deberta else encoder.config["max_position_embeddings"]
    for text, pair in inputs():
        encoded = tokenizer.encode(text, pair)
        ids, types = encoded.ids[:limit], encoded.type_ids[:limit]
        if encoder.deberta:
            yield {"input_ids": ids, "raw": {"logits": encoder.classify(ids, types).tolist()}}
        else:
            states = encoder.hidden(ids, types)
            raw = {"mean": states.mean(0).tolist(), "first": states[0].tolist()}
            yield {"input_ids": ids, "token_type_ids": types, "raw": raw}


def write(models: Path, name: str) -> None:
    target = models / "reference" / f"{name}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    lengths = []
    partial = target.with_name(target.name + ".partial")
    with open(partial, "w") as out:
        for row in rows(models / name):
            out.write(json.dumps(row) + "\n")
            lengths.append(len(row["input_ids"]))
    os.replace(partial, target)
    print(f"reference/{target.name}: {len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens")


if __name__ == "__main__":
    for model in ("deberta-v3-xsmall", "minilm-l6"):
        write(Path(sys.argv[1]), model)
