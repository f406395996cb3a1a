"""A record of bench/peers/run.py as the README's table and a plot. Standard library only.

    python bench/table.py bench/record/NAME.csv            # prints the table, writes NAME.svg beside the record
    python bench/table.py bench/record/NAME.csv --readme   # also puts the table into README.md
"""
import csv
import html
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
BEGIN, END = "<!-- bench/table.py begin -->", "<!-- bench/table.py end -->"
NAMES = {
    "qberta-int8": "**qberta int8**",
    "qberta-float": "qberta float32",
    "qberta-int8-avx2": "qberta int8, AVX2 only",
    "qberta-int8-attention": "qberta int8, attention too",
    "openvino-int8": "OpenVINO int8 (NNCF)",
    "openvino": "OpenVINO, default precision",
    "ort-int8": "ONNX Runtime dynamic int8",
    "ort-fp32": "ONNX Runtime float32",
    "torch-int8": "PyTorch dynamic int8",
    "torch-fp32": "PyTorch float32",
}
COLOURS = {
    "qberta-int8": "#b3261e",
    "qberta-int8-avx2": "#e08a84",
    "qberta-int8-attention": "#d2662f",
    "qberta-float": "#7a5c58",
    "openvino-int8": "#1d4e89",
    "openvino": "#7ea3cc",
    "ort-int8": "#2a7f62",
    "ort-fp32": "#93c5af",
    "torch-int8": "#8a6d1a",
    "torch-fp32": "#d3bd7f",
}


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "speed_to_fastest_peer" not in rows[0]:
        raise SystemExit(f"{path}: not a record of bench/peers/run.py")
    return rows


def short(ms):
    ms = float(ms)
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}"


def undisturbed(rows):
    """Speed to the fastest peer by the 10th percentile of calls, `{(system, shape): ratio}`: the calls that other work on
    the machine disturbed least."""
    calm = {}
    for shape in dict.fromkeys(r["shape"] for r in rows):
        p10 = {r["system"]: float(r["p10_ms"]) for r in rows if r["shape"] == shape}
        fastest = min(ms for system, ms in p10.items() if not system.startswith("qberta"))
        calm.update({(system, shape): fastest / ms for system, ms in p10.items()})
    return calm


def table(rows, link):
    shapes = list(dict.fromkeys(r["shape"] for r in rows))
    systems = [s for s in NAMES if any(r["system"] == s for r in rows)]
    cell = {(r["system"], r["shape"]): r for r in rows}
    first = rows[0]
    features = f"VNNI {first['vnni']}, AMX {first['amx']}"
    busy = float(first["load_average"]) > 1.2 * int(first["threads"])
    lines = [
        f"DeBERTa-{first['arch']} shape, random weights, {first['threads']} threads, {first['cpu']} ({features}), commit "
        f"{first['commit']}, {first['date']}: medians in ms, batch x tokens. Speed to the fastest peer: median over rounds of "
        "the ratio inside a round, and ratio of 10th percentiles"
        + (
            f". The machine was busy with other work (load average {first['load_average']}), so neither is what a quiet one gives; "
            "the second is disturbed less"
            if busy
            else ""
        )
        + f" ([record]({link}), [method](bench/README.md)).",
        "",
        "| | " + " | ".join(s.replace("ragged:", "").replace("..", "-") for s in shapes) + " | load s | RSS MB |",
        "|---" * (len(shapes) + 3) + "|",
    ]
    for system in systems:
        any_row = cell[system, shapes[0]]
        values = [short(cell[system, s]["median_ms"]) for s in shapes]
        lines.append(
            f"| {NAMES[system]} | {' | '.join(values)} | {float(any_row['load_s']):.2f} | {float(any_row['rss_mb']):.0f} |"
        )
    calm = undisturbed(rows)
    for system in [s for s in systems if s.startswith("qberta-int8")]:
        ratios = [f"{float(cell[system, s]['speed_to_fastest_peer']):.2f}x" for s in shapes]
        lines.append(f"| {NAMES[system]} to the fastest peer, rounds | {' | '.join(ratios)} | | |")
        ratios = [f"{calm[system, s]:.2f}x" for s in shapes]
        lines.append(f"| {NAMES[system]} to the fastest peer, p10 | {' | '.join(ratios)} | | |")
    fastest = [cell[systems[0], s]["fastest_peer"] for s in shapes]
    lines.append(f"| fastest peer | {' | '.join(fastest)} | | |")
    return "\n".join(lines)


def plot(rows):
    """Bars per shape: speed of each program, the fastest peer of that shape being 1."""
    shapes = list(dict.fromkeys(r["shape"] for r in rows))
    systems = [s for s in NAMES if any(r["system"] == s for r in rows)]
    speed = undisturbed(rows)
    most = max(1.0, *speed.values()) * 1.08
    bar, gap, left, top, height = 13, 26, 46, 40, 300
    group = bar * len(systems) + gap
    width = left + group * len(shapes) + 230
    y = lambda value: top + height * (1 - value / most)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + height + 60}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{top + height + 60}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14">Speed by the 10th percentile of calls, fastest peer of each shape = 1 (DeBERTa-{rows[0]["arch"]}, '
        f'{rows[0]["threads"]} threads, AMX {rows[0]["amx"]})</text>',
    ]
    step = 0.5 if most < 4 else 1.0
    for i in range(int(most / step) + 1):
        value = i * step
        stroke = "#888" if value == 1.0 else "#ddd"
        out.append(f'<line x1="{left}" x2="{width - 220}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{stroke}"/>')
        out.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for g, shape in enumerate(shapes):
        x = left + g * group + gap / 2
        for s, system in enumerate(systems):
            value = speed[system, shape]
            out.append(
                f'<rect x="{x + s * bar:.1f}" y="{y(value):.1f}" width="{bar - 1}" height="{top + height - y(value):.1f}" '
                f'fill="{COLOURS[system]}"><title>{html.escape(f"{system} {shape}: {value:.2f}")}</title></rect>'
            )
        out.append(f'<text x="{x + bar * len(systems) / 2:.1f}" y="{top + height + 18}" text-anchor="middle">{shape}</text>')
    for s, system in enumerate(systems):
        at = top + 18 * s
        out.append(f'<rect x="{width - 210}" y="{at}" width="12" height="12" fill="{COLOURS[system]}"/>')
        out.append(f'<text x="{width - 192}" y="{at + 11}">{html.escape(NAMES[system].strip("*"))}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    path, *rest = sys.argv[1:]
    path = pathlib.Path(path).resolve()
    rows = read(path)
    text = table(rows, pathlib.PurePath(os.path.relpath(path, ROOT)).as_posix())
    path.with_suffix(".svg").write_text(plot(rows))
    print(text)
    if rest == ["--readme"]:
        readme = ROOT / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
