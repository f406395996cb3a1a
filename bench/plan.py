#!/usr/bin/env python3
"""How good is the fast sensitivity of `qberta plan`? Against the exhaustive answer, on one model and one file.

Runs `qberta plan --json` with each way to measure sensitivity and compares: time, rank correlation of the damages with
those found on many more rows, and what becomes of the selections: at every point of the curve the model is quantized by
the recipe and its divergence from the float model measured with `qberta evaluate`. Prints Markdown; standard library only.

    python3 bench/plan.py target/release/qberta MODEL DATA.jsonl --among dynamic --limit 2000
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

RULES = {
    "float": ("float", "float"),
    "dynamic": ("int8", "dynamic-asymmetric"),
    "static": ("int8", "static"),
    "weight-only": ("int8", "float"),
}


def run(*command):
    begin = time.monotonic()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout), time.monotonic() - begin


def ranks(values):
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def spearman(a, b):
    a, b = ranks(a), ranks(b)
    mean = (len(a) + 1) / 2
    product = lambda x, y: sum((p - mean) * (q - mean) for p, q in zip(x, y))
    return product(a, b) / (product(a, a) * product(b, b)) ** 0.5


def damages(found):
    """By unit and choice."""
    return {
        (unit["modules"][0], offer["choice"]): offer["damage"]
        for unit in found["units"]
        for offer in unit["offers"]
        if offer["choice"] != "float"
    }


def recipe(found, choices):
    """The recipe file that gives every unit the choice it has in `choices`."""
    words = [u["modules"][0] for u in found["units"] if "word" in u["modules"][0]]
    lines = ['name = "set"', "[linears]", 'weight = "int8"', 'input = "dynamic-asymmetric"', "[words]", 'weight = "int8"']
    for unit in found["units"]:
        weight, take = RULES[choices[unit["modules"][0]]]
        for module in unit["modules"]:
            lines += ["[[rules]]", f'modules = "{module}"', f'weight = "{weight}"']
            lines += [] if unit["modules"][0] in words else [f'input = "{take}"']
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qberta", type=pathlib.Path)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--among", default="dynamic")
    parser.add_argument("--calibration")
    parser.add_argument("--probe", default="64", help="rows of the ways that are compared")
    parser.add_argument("--reference", default="1000", help="rows of what they are compared with")
    parser.add_argument("--points", default="7")
    parser.add_argument("--limit", default="2000", help="rows on which selections are compared")
    args = parser.parse_args()
    data = ["--calibration", args.calibration] if args.calibration else []
    ways = [(how, args.probe) for how in ("fast", "alone", "exhaustive")]
    ways += [(how, args.reference) for how in ("alone", "exhaustive")]
    found = {
        (how, rows): run(
            args.qberta, "plan", args.model, "--data", args.data, "--sensitivity", how, "--among", args.among, *data,
            "--measure", rows, "--probe", rows, "--points", args.points, "--objective", "size", "--json",
        )
        for how, rows in ways
    }
    seconds = {way: told.get("spent_seconds", {}).get("sensitivity", whole) for way, (told, whole) in found.items()}
    found = {way: told for way, (told, _) in found.items()}
    first = found[ways[0]]
    print(f"{len(first['units'])} units, choices {args.among}, {first['threads']} threads, {first['isa']}\n")
    keys = sorted(damages(first))
    scores = {way: [damages(found[way])[k] for k in keys] for way in ways}
    print("| sensitivity | rows | s | halves of its rows | with alone | with exhaustive |\n|---|---|---|---|---|---|")
    for way in ways:
        told = found[way]
        rank = [spearman(scores[way], scores[reference]) for reference in ways[-2:]]
        print(
            f"| {way[0]} | {told['rows']['sensitivity']} | {seconds[way]:.1f} | "
            f"{told['sensitivity']['halves_rank_correlation']:.3f} | {rank[0]:.3f} | {rank[1]:.3f} |",
            flush=True,
        )
    print(f"\nMean Kullback-Leibler divergence from float on {args.limit} rows, selections of equal size side by side, float modules in brackets:\n")
    print("| MB | " + " | ".join(f"{how} {rows}" for how, rows in ways) + " |\n|---|" + "---|" * len(ways))
    known = {}

    def divergence(way, choices):
        text = recipe(found[way], choices)
        if text not in known:
            with tempfile.TemporaryDirectory() as scratch:
                path, out = pathlib.Path(scratch) / "set.toml", pathlib.Path(scratch) / "out"
                path.write_text(text)
                static = data if '"static"' in text else []
                run(args.qberta, "quantize", args.model, "-o", out, "--recipe", path, *static, "--json")
                told, _ = run(args.qberta, "evaluate", args.model, out, "--data", args.data, "--limit", args.limit, "--resamples", "100", "--json")
                known[text] = told["comparison"]["kl_divergence"]["mean"]
        return known[text]

    for points in zip(*(found[way]["curve"] for way in ways)):
        if any(set(p["choices"].values()) == {"float"} for p in points):
            continue
        cells = [f"{divergence(way, p['choices']):.2e} ({len(p['in_float'])})" for way, p in zip(ways, points)]
        print(f"| {points[0]['bytes'] / 1e6:.2f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
