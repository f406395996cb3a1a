"""Second opinion on rescue and export: torch itself quantizes a checkpoint, qberta rescues what torch saved.

usage: check_rescue.py QBERTA BASE [BASE ..]      needs tools/requirements-doctor.txt, with either torch

  QBERTA   the program
  BASE     float checkpoints: directories that from_pretrained loads

For each base, with one scale for each tensor and with one for each row:
  - `doctor` finds nothing wrong with the state dict of quantize_dynamic, and something if the model was saved whole
  - every rescued weight dequantizes to exactly torch's, bit for bit, and every float tensor is torch's
  - `export --to huggingface` and `--to torch` load strictly and give torch's dequantized weights, bit for bit
  - predictions: how far torch's quantized run and ours are from each other and from the float run of the same weights

The last is no equality. Both multiply the same int8 weights; they differ in the grid of the inputs: torch chooses one
for all tokens of a batch (seven bits with x86 and fbgemm), qberta one for each token, always of eight bits. So the distance is
that of torch's own rounding, and the check is that qberta stays nearer to the float run than torch does.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
LENGTHS = [5, 9, 17, 24, 31, 40, 12, 48] * 8
failures = []


def check(what: str, ok: bool, detail: str) -> None:
    print(f"  {'ok' if ok else 'FAIL':4} {what}: {detail}")
    if not ok:
        failures.append(what)


def run(program: str, *args, status: int = 0) -> str:
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode != status:
        sys.exit(f"qberta {' '.join(map(str, args))}: status {done.returncode}, expected {status}\n{done.stderr}{done.stdout}")
    return done.stdout


def load(directory: Path):
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def linears(model) -> dict:
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)}


@torch.no_grad()
def torch_answers(model, rows: list) -> torch.Tensor:
    """One row at a time, so that padding and neighbours take no part."""
    return torch.cat([model(input_ids=torch.tensor([r]), attention_mask=torch.ones(1, len(r), dtype=torch.long)).logits.flatten() for r in rows])


def our_answers(qberta: str, directory: Path, rows: list, scratch: Path) -> torch.Tensor:
    file = scratch / "rows.jsonl"
    file.write_text("".join(json.dumps({"input_ids": r}) + "\n" for r in rows))
    lines = run(qberta, "predict", directory, "--raw", "--input", file).splitlines()
    return torch.cat([torch.tensor(json.loads(line)["logits"]).flatten() for line in lines])


def distance(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    return (a - b).abs().max().item(), (a - b).abs().mean().item()


def one(qberta: str, base: Path, qconfig, how: str, scratch: Path) -> None:
    model = load(base)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear: qconfig})
    file, rescued = scratch / "quantized.pt", scratch / "rescued"
    torch.save(quantized.state_dict(), file)
    torch.save(quantized, scratch / "whole.pt")
    print(f"{base.name}, {how}, torch {torch.__version__}, engine {torch.backends.quantized.engine}")
    # quantize_dynamic takes the projection of a masked language model apart from the word table it is tied to.
    wanted = ["tied-twice"] if "MaskedLM" in type(model).__name__ else []
    answer = json.loads(run(qberta, "doctor", file, "--base", base, "--rescue", rescued, "--json", status=len(wanted)))
    found = [f["name"] for f in answer["diagnosis"]["findings"]]
    check("doctor", found == wanted, f"{answer['diagnosis']['recipe']}: {', '.join(found) or 'sound'}")
    run(qberta, "doctor", scratch / "whole.pt", "--base", base, status=1)

    # What torch's int8 weights stand for, in a float model of the same class.
    weights, stored = {n: m.weight() for n, m in linears(quantized).items()}, load_file(rescued / "model.safetensors")
    equal = sum(torch.equal(stored[f"{n}.weight"].float() * stored[f"{n}.weight_scale"], w.dequantize()) for n, w in weights.items())
    codes = sum(torch.equal(stored[f"{n}.weight"], w.int_repr()) for n, w in weights.items())
    total = len(weights)
    check("weights", equal == codes == total > 0, f"{codes} of {total} with torch's codes, {equal} dequantize to its bits")
    floats = {n: t for n, t in quantized.state_dict().items() if isinstance(t, torch.Tensor) and n in stored}
    wrong = [n for n, t in floats.items() if not torch.equal(stored[n], t)]
    check("float tensors", not wrong and floats, f"{len(floats) - len(wrong)} of {len(floats)} equal {wrong[:3] or ''}")
    reference = load(base)
    modules = dict(reference.named_modules())
    with torch.no_grad():
        for name, weight in weights.items():
            # A tied projection is quantized and its twin is not: give it a matrix of its own.
            modules[name].weight = torch.nn.Parameter(weight.dequantize())
    reference.config.tie_word_embeddings = False

    float_dir, pt = scratch / "float", scratch / "float.pt"
    run(qberta, "export", rescued, "-o", float_dir, "--to", "huggingface")
    run(qberta, "export", rescued, "-o", pt, "--to", "torch")
    loaded, info = type(model).from_pretrained(float_dir, dtype=torch.float32, output_loading_info=True)
    left = {k: v for k, v in info.items() if v}
    check("from_pretrained", not left, f"strict {left or ''}")
    fresh = type(model)(model.config)
    for name in weights:  # a projection tied to the word table gets a matrix of its own
        module = fresh.get_submodule(name)
        module.weight = torch.nn.Parameter(torch.empty_like(module.weight))
    state, want = torch.load(pt, weights_only=True), reference.state_dict()
    fresh.load_state_dict(state, strict=True)
    for what, tensors in (("export --to huggingface", loaded.state_dict()), ("export --to torch", fresh.state_dict())):
        wrong = [n for n in want if not torch.equal(tensors[n], want[n])]
        check(what, not wrong and tensors.keys() == want.keys(), f"{len(want) - len(wrong)} of {len(want)} tensors have torch's bits {wrong[:3] or ''}")

    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(5, model.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    exact, theirs = torch_answers(reference, rows), torch_answers(quantized, rows)
    ours, ours_float = (our_answers(qberta, d, rows, scratch) for d in (rescued, float_dir))
    worst, mean = distance(ours_float, exact)
    check("float run", worst < 1e-4, f"ours from torch's, same weights: {worst:.1e} at most")
    between, torchs, own = distance(ours, theirs), distance(theirs, exact), distance(ours, exact)
    show = lambda d: f"{d[0]:.4f} at most, {d[1]:.4f} on average"  # noqa: E731
    check("quantized run", own[1] <= torchs[1], f"ours from torch's {show(between)}; torch's from float {show(torchs)}; ours from float {show(own)}")


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit("usage: check_rescue.py QBERTA BASE [BASE ..]")
    torch.set_num_threads(1)
    for base in map(Path, sys.argv[2:]):
        for how, qconfig in (
            ("one scale a tensor", torch.ao.quantization.default_dynamic_qconfig),
            ("one scale a row", torch.ao.quantization.per_channel_dynamic_qconfig),
        ):
            with tempfile.TemporaryDirectory() as scratch:
                one(sys.argv[1], base, qconfig, how, Path(scratch))
    print(f"{len(failures)} checks failed" if failures else "every check passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
