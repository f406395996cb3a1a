"""Checks an artefact against the checkpoint it was made from, with numpy alone and none of qberta's code.

usage: check_artefact.py ARTEFACT SOURCE

  weights   every int8 tensor has NAME_scale, float32 [rows, 1], positive; codes within +-127; code * scale within
            half a step of the source (and the float32 rounding of the quotient); float tensors equal the source's bits
  4 bits    NAME_packed, NAME_scale and NAME_shape fit together; codes within +-7; code * scale within half a step of
            the source unless the code is at an end (groups may clip), and no group worse than its plain grid absmax / 7
  fitted    weights and biases that qberta.json calls fitted to data differ from the source by design: their structure
            is checked, and that a weight points the way of its source (cosine at least 0.9)
  inputs    the grid of a static input is one positive float32 and one int8, beside an int8 weight
  config    quantization_config is compressed-tensors: every group well formed, every target a module that is
            int8, every other matrix of a linear in the ignore list
  digests   every file and tensor of qberta.json, and qberta.json itself
Prints one line per check; exit status 1 if one fails.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from reference import read_safetensors

failures = 0

# The grid of a static input, beside its weight.
GRID = (".input_scale", ".input_zero_point")

# What follows the name of a weight: its codes in 4 bits, its scales, its shape.
PARTS = ("_packed", "_scale", "_shape")

# A code is round(value * (1 / scale)) in float32: two roundings of 2**-24 each on a number up to 127.5.
HALF_A_STEP = 0.5 + 127.5 * 2.0**-23


def check(name: str, problems: list[str], extent: str) -> None:
    global failures
    failures += bool(problems)
    print(f"{'FAIL' if problems else 'ok':4} {name}: {extent}")
    for problem in problems[:5]:
        print(f"       {problem}")
    if len(problems) > 5:
        print(f"       and {len(problems) - 5} more")


def unpack(name: str, tensors: dict) -> tuple[np.ndarray, np.ndarray, int] | str:
    """Codes [rows, cols], scales of each code, group; or what is wrong. Column k is bits 4 (k % 8).. of word k / 8."""
    packed, scale, shape = (tensors.get(name + end) for end in ("_packed", "_scale", "_shape"))
    if packed is None or packed.dtype != np.int32 or scale is None or scale.dtype != np.float32:
        return "no int32 _packed or no float32 _scale"
    if shape is None or shape.dtype != np.int64 or shape.shape != (2,):
        return "no int64 [2] _shape"
    rows, cols = map(int, shape)
    if packed.shape != (rows, cols // 8) or scale.shape[0] != rows or cols % scale.shape[1] or cols // scale.shape[1] not in (32, 64, 128):
        return f"{packed.shape} codes and {scale.shape} scales of a [{rows}, {cols}] weight"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return "a scale is not a positive number"
    words = packed.astype(np.int64) & 0xFFFFFFFF
    codes = ((words[:, :, None] >> (4 * np.arange(8))) & 15).reshape(rows, cols) - 8
    group = cols // scale.shape[1]
    return codes, np.repeat(scale, group, axis=1), group


def four_bits(tensors: dict, source: dict, fitted: bool) -> None:
    problems, count, worst = [], 0, 0.0
    for packed in [n for n in tensors if n.endswith(".weight_packed")]:
        name = packed.removesuffix("_packed")
        count += 1
        found = unpack(name, tensors)
        if isinstance(found, str):
            problems.append(f"{name}: {found}")
            continue
        codes, scale, group = found
        if np.abs(codes).max(initial=0) > 7:
            problems.append(f"{name}: holds the code -8")
        original = find(name, source)
        if original is None or original.shape != codes.shape:
            problems.append(f"{name}: not in the source, or not of shape {codes.shape} there")
            continue
        original = original.astype(np.float64)
        if fitted and not name.endswith("embeddings.weight"):
            problems += opposite(name, codes * scale.astype(np.float64), original)
            continue
        error = codes * scale.astype(np.float64) - original
        steps = np.abs(error) / scale
        inside = steps[np.abs(codes) < 7]
        worst = max(worst, float(inside.max(initial=0)))
        if inside.max(initial=0) > HALF_A_STEP:
            problems.append(f"{name}: {inside.max():.7f} steps from the source")
        in_groups = original.reshape(-1, group)
        step = np.abs(in_groups).max(axis=1, keepdims=True) / 7
        plain = np.where(step > 0, np.rint(in_groups / np.where(step > 0, step, 1)) * step, 0) - in_groups
        if ((error.reshape(-1, group) ** 2).sum(1) > (plain**2).sum(1) * (1 + 1e-5) + 1e-12).any():
            problems.append(f"{name}: a group loses more than on its plain grid")
    check("4-bit codes and scales", problems, f"{count} tensors, at most {worst:.7f} steps off inside the grid")


def opposite(name: str, weight: np.ndarray, original: np.ndarray) -> list[str]:
    cosine = (weight * original).sum() / max(np.sqrt((weight**2).sum() * (original**2).sum()), 1e-300)
    return [] if cosine >= 0.9 else [f"{name}: fitted weight has cosine {cosine:.3f} with the source"]


def weights(tensors: dict, source: dict, fitted: dict | None) -> None:
    problems, coded, worst = [], 0, 0.0
    rounded = bool(fitted) and fitted["rounding"] != "nearest"
    four_bits(tensors, source, rounded)
    for name, codes in tensors.items():
        if codes.dtype != np.int8 or name.endswith(GRID):
            continue
        coded += 1
        scale = tensors.get(name + "_scale")
        if scale is None or scale.dtype != np.float32 or scale.shape != (codes.shape[0], 1):
            problems.append(f"{name}: no float32 [{codes.shape[0]}, 1] {name}_scale")
            continue
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            problems.append(f"{name}: a scale is not a positive number")
        if codes.min(initial=0) < -127:
            problems.append(f"{name}: holds the code -128")
        original = find(name, source)
        if original is None or original.shape != codes.shape:
            problems.append(f"{name}: not in the source, or not of shape {codes.shape} there")
            continue
        if rounded and not name.endswith("embeddings.weight"):
            problems += opposite(name, codes * scale.astype(np.float64), original)
            continue
        steps = np.abs(codes * scale.astype(np.float64) - original) / scale
        worst = max(worst, float(steps.max(initial=0)))
        if steps.max(initial=0) > HALF_A_STEP:
            problems.append(f"{name}: {steps.max():.7f} steps from the source")
    check("codes and scales", problems if coded or any(n.endswith("_packed") for n in tensors) else ["no quantized tensor"], f"{coded} tensors, at most {worst:.7f} steps off")
    problems, same, corrected = [], 0, 0
    for name, values in tensors.items():
        weight = next((name.removesuffix(end) for end in PARTS if name.endswith(end)), None)
        if values.dtype == np.int8 or name.endswith(GRID) or (weight is not None and (weight in tensors or weight + "_packed" in tensors)):
            continue
        original = find(name, source)
        same += 1
        if fitted and fitted["bias_correction"] and name.endswith("bias") and original is not None and f"{name.removesuffix('bias')}weight_scale" in tensors:
            corrected += 1
            if original.shape != values.shape or not np.isfinite(values).all():
                problems.append(f"{name}: misshapen or not finite")
            continue
        if original is None:
            problems.append(f"{name}: not in the source")
        elif original.shape != values.shape or original.tobytes() != values.tobytes():
            problems.append(f"{name}: differs from the source")
    check("float tensors", problems, f"{same - corrected} equal to the source, {corrected} corrected biases")
    problems, grids = [], {n.removesuffix(end) for n in tensors for end in GRID if n.endswith(end)}
    for module in sorted(grids):
        scale, zero = (tensors.get(module + end) for end in GRID)
        if scale is None or scale.dtype != np.float32 or scale.shape != (1,) or not (np.isfinite(scale[0]) and scale[0] > 0):
            problems.append(f"{module}: input_scale is not one positive float32")
        if zero is None or zero.dtype != np.int8 or zero.shape != (1,):
            problems.append(f"{module}: input_zero_point is not one int8")
        weight = tensors.get(module + ".weight")
        if (weight is None or weight.dtype != np.int8) and module + ".weight_packed" not in tensors:
            problems.append(f"{module}: has the grid of an input and no integer weight")
    check("static inputs", problems, f"{len(grids)} grids")


def find(name: str, source: dict):
    """The source may use older names: a missing or a wrapper's prefix, gamma and beta, Microsoft's head."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    head = "lm_predictions.lm_head"
    microsoft = name.replace("cls.predictions.transform", head).replace("cls.predictions", head)
    for wanted in (microsoft, name, old):  # its own head is the trained one where both are there
        parts = wanted.split(".")
        found = [source[n] for n in (wanted, ".".join(parts[1:])) if n in source]
        found += [t for n, t in source.items() if n.endswith("." + wanted)]
        if found:
            return found[0]
    return tied(name, source)


# Masked-LM projections that are tied to the word table in most checkpoints, and written out by an artefact.
TIED = ("decoder", "vocab_projector", "generator_lm_head")


def tied(name: str, source: dict):
    module, _, part = name.rpartition(".")
    if module.split(".")[-1] not in TIED:
        return None
    if part == "weight":
        return next((t for n, t in source.items() if n.endswith("embeddings.word_embeddings.weight")), None)
    return find(module.rpartition(".")[0] + ".bias", source)


ARGUMENTS = {"num_bits", "type", "symmetric", "strategy", "dynamic"}


def arguments(where: str, given, strategies: set, dynamic: bool, bits: int = 8) -> list[str]:
    if not isinstance(given, dict) or not ARGUMENTS <= given.keys():
        return [f"{where}: expected {sorted(ARGUMENTS)}"]
    wrong = given["num_bits"] != bits or given["type"] != "int" or given["strategy"] not in strategies
    return [f"{where}: {given}"] if wrong or given["dynamic"] is not dynamic else []


def config(directory: Path, tensors: dict) -> None:
    whole = json.loads((directory / "config.json").read_text())
    q = whole.get("quantization_config")
    if not isinstance(q, dict):
        return check("quantization_config", ["config.json has none"], "absent")
    problems = [f"{k} is {q.get(k)!r}" for k, v in (("quant_method", "compressed-tensors"), ("quantization_status", "compressed")) if q.get(k) != v]
    problems += [f"{k} is missing" for k in ("config_groups", "format", "ignore", "version") if k not in q]
    coded = {n.removesuffix(".weight") for n, t in tensors.items() if t.dtype == np.int8 and not n.endswith(GRID)}
    four = {n.removesuffix(".weight_packed") for n in tensors if n.endswith(".weight_packed")}
    coded |= four
    # A linear has a matrix; so has a table, which is float unless a group names it.
    matrices = {n.removesuffix(".weight") for n, t in tensors.items() if n.endswith(".weight") and t.ndim == 2}
    tables = {m for m in matrices if m.endswith("_embeddings")}
    targets: list[str] = []
    for name, group in q.get("config_groups", {}).items():
        packed = group.get("format") == "pack-quantized"
        strategy = {"group"} if packed else {"channel"}
        problems += arguments(f"{name}.weights", group.get("weights"), strategy, False, 4 if packed else 8)
        for target in group.get("targets", []):
            if (target in four) != packed:
                problems.append(f"{target}: targeted as {'4-bit' if packed else '8-bit'}, stored otherwise")
            elif packed and not isinstance(found := unpack(target + ".weight", tensors), str) and found[2] != group["weights"].get("group_size"):
                problems.append(f"{target}: groups of {found[2]}, declared {group['weights'].get('group_size')}")
        if not group.get("weights", {}).get("symmetric"):
            problems.append(f"{name}: weights are not symmetric")
        if group.get("input_activations") is not None:
            given = group["input_activations"]
            dynamic = given.get("dynamic") is True
            problems += arguments(f"{name}.input_activations", given, {"token"} if dynamic else {"tensor"}, dynamic)
            if not dynamic:
                targeted = group.get("targets", [])
                problems += [f"{t}: static, and has no grid" for t in targeted if any(t + end not in tensors for end in GRID)]
        if group.get("output_activations") is not None:
            problems.append(f"{name}: has output_activations")
        wanted = "pack-quantized" if packed else "naive-quantized" if group.get("input_activations") is None else "int-quantized"
        if group.get("format") != wanted:
            problems.append(f"{name}: format {group.get('format')!r}, expected {wanted!r}")
        targets += group.get("targets", [])
    ignore = q.get("ignore", [])
    problems += [f"target {t}: no integer tensor of that module" for t in targets if t not in coded]
    problems += [f"{m}: quantized, and no group targets it" for m in sorted(coded - set(targets))]
    problems += [f"{t}: targeted more than once" for t in sorted({t for t in targets if targets.count(t) > 1})]
    problems += [f"{m}: float, and not in the ignore list" for m in sorted(matrices - coded - tables - set(ignore))]
    problems += [f"{m}: both targeted and ignored" for m in sorted(set(targets) & set(ignore))]
    check("quantization_config", problems, f"{len(q.get('config_groups', {}))} groups, {len(targets)} targets, {len(ignore)} ignored")


def digests(directory: Path) -> None:
    text = (directory / "qberta.json").read_bytes()
    manifest = json.loads(text)
    problems = []
    for name, record in manifest["files"].items():
        data = (directory / name).read_bytes()
        if len(data) != record["bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
            problems.append(f"{name}: differs from its digest")
    unsealed = dict(manifest, digest="")
    canonical = json.dumps(unsealed, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if hashlib.sha256(canonical.encode()).hexdigest() != manifest["digest"]:
        problems.append("qberta.json: differs from its own digest")
    check("digests", problems, f"{len(manifest['files'])} files and the manifest")


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit("usage: check_artefact.py ARTEFACT SOURCE")
    artefact, source = Path(sys.argv[1]), Path(sys.argv[2])
    tensors = read_safetensors(artefact / "model.safetensors")
    originals: dict = {}
    for file in sorted(source.glob("*.safetensors")):
        originals |= read_safetensors(file)
    if not originals:
        sys.exit(f"check_artefact: {source} holds no safetensors file")
    weights(tensors, originals, json.loads((artefact / "qberta.json").read_text()).get("fitted"))
    config(artefact, tensors)
    digests(artefact)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
