"""Second opinion on an artefact: Hugging Face transformers with compressed-tensors opens the same directory.

usage: check_transformers.py ARTEFACT [ROWS.jsonl ANSWERS.jsonl]      needs tools/requirements-torch.txt

  ROWS     {"input_ids": [..], "token_type_ids": [..]} a line
  ANSWERS  what `qberta predict ARTEFACT --raw --input ROWS.jsonl` wrote

Asserts that every quantized module's dequantized weight equals code.float() * scale bit for bit and that no weight
is missing or left over, then reports the largest difference of the outputs. Both sides quantize activations
per token, so BERT and its relatives agree to float rounding, unless a code lies on the edge and rounds the other
way. DeBERTa's position projections read a table, not activations: qberta computes them once and keeps their input in float,
while transformers quantizes it in every forward. Outputs are therefore compared twice, as transformers gives them
and with that one input left in float.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def main() -> int:
    directory = Path(sys.argv[1])
    config = json.loads((directory / "config.json").read_text())
    stored = load_file(directory / "model.safetensors")
    torch.set_num_threads(1)
    # Without a dtype, transformers 4.57 loads compressed-tensors models in float16, whatever the config says.
    model, info = getattr(transformers, config["architectures"][0]).from_pretrained(directory, dtype="auto", output_loading_info=True)
    model.eval()
    failed = False
    tied = set(getattr(model, "_tied_weights_keys", None) or []) if model.config.tie_word_embeddings else set()
    # Static inputs with extra columns: listed as dynamic, their own grids are nobody else's business (FORMAT.md).
    split = json.loads((directory / "qberta.json").read_text())["splits"]
    tied |= {f"{module}.{end}" for module in split for end in ("input_scale", "input_zero_point")}
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(set(map(str, info[kind])) - tied)
        failed |= bool(names)
        print(f"{'FAIL' if names else 'ok':4} {kind}: {len(names)} {names[:6]}")

    inputs = {k: v for k, v in (("input_ids", torch.tensor([[1, 2, 3]])),)}
    with torch.no_grad():
        model(**inputs)  # compressed-tensors dequantizes on the first forward
    modules, wrong, quantized = dict(model.named_modules()), [], 0
    for name, codes in stored.items():
        if name.endswith(".weight_packed"):
            name = name.removesuffix("_packed")
            want = four_bits(codes, stored[name + "_scale"])
        elif codes.dtype == torch.int8 and not name.endswith(".input_zero_point"):
            want = codes.float() * stored[name + "_scale"]
        else:
            continue
        quantized += 1
        found = modules[name.removesuffix(".weight")].weight
        if found.dtype != torch.float32 or not torch.equal(found.float(), want):
            wrong.append(f"{name} ({found.dtype})")
    failed |= bool(wrong)
    print(f"{'FAIL' if wrong else 'ok':4} dequantized weights: {quantized - len(wrong)} of {quantized} bit-equal {wrong[:4]}")
    schemes = [m for m in modules.values() if getattr(m, "quantization_scheme", None) is not None]
    dynamic = sum(m.quantization_scheme.input_activations is not None for m in schemes)
    print(f"ok   modules with a scheme: {len(schemes)}, of which {dynamic} quantize their input")

    if len(sys.argv) > 3:
        rows = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
        answers = [json.loads(line) for line in Path(sys.argv[3]).read_text().splitlines()]
        assert len(rows) == len(answers), f"{len(rows)} rows, {len(answers)} answers"
        compare(model, rows, answers, "as transformers runs it")
        if float_positions(model):
            compare(model, rows, answers, "with position rows in float")
    return 1 if failed else 0


def four_bits(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Column k of a row is bits 4 (k % 8).. of word k / 8, as code + 8; not compressed-tensors' own unpacking."""
    words = packed.to(torch.int64) & 0xFFFFFFFF
    codes = ((words.unsqueeze(-1) >> (4 * torch.arange(8))) & 15).reshape(packed.shape[0], -1) - 8
    return codes.float() * scale.repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)


def float_positions(model) -> int:
    """Makes DeBERTa's projections skip activation quantization for the relative table; how many were found."""
    table = next((p for n, p in model.named_parameters() if n.endswith("rel_embeddings.weight")), None)
    own, shared = ("pos_proj", "pos_q_proj", "pos_key_proj", "pos_query_proj"), ("query_proj", "key_proj")
    named = [(n.rsplit(".", 1)[-1], m) for n, m in model.named_modules()] if table is not None else []
    found = [(name, module) for name, module in named if name in own + shared]
    for name, module in found:
        quantized = module.forward

        def forward(x, name=name, module=module, quantized=quantized):
            # A shared projection reads the table where its input has that many rows; no test row is as long.
            if name in own or x.shape[-2] == table.shape[0]:
                return torch.nn.functional.linear(x, module.weight, module.bias)
            return quantized(x)

        module.forward = forward
    return len(found)


def compare(model, rows: list, answers: list, how: str) -> None:
    worst, total, count = 0.0, 0.0, 0
    for row, answer in zip(rows, answers):
        given = {k: torch.tensor([row[k]]) for k in ("input_ids", "token_type_ids") if k in row}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.no_grad():
            out = model(**given)
        for key in ("logits", "start_logits", "end_logits", "last_hidden_state"):
            if key in answer:
                difference = (out[key][0].float() - torch.tensor(answer[key])).abs()
                worst = max(worst, difference.max().item())
                total, count = total + difference.sum().item(), count + difference.numel()
    print(f"     {len(rows)} rows {how}: largest difference {worst:.2e}, mean {total / count:.2e}")


if __name__ == "__main__":
    sys.exit(main())
