"""qberta and its peers in turn, on the same weights and ids, into a CSV record.

    python run.py --arch v3-base --work DIR --qberta target/release/qberta --record bench/record

Weights are random (speed does not depend on them): qberta writes a float checkpoint, every peer is made from it
(prepare.py), and every program runs in a process of its own (serve.py, `qberta bench --serve`). A round asks each
program once per shape, starting with another one each time, so that whatever else the machine does meets all of them.
Ratios are medians over rounds of the ratio inside a round. Before anything is timed, float logits of qberta must be
within 1e-4 of ONNX Runtime's.
"""
import argparse
import csv
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import prepare
import serve
import shapes

HERE = pathlib.Path(__file__).parent
REFERENCE = "ort-fp32"
FLAGS = ["avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"]
COLUMNS = (
    "date commit cpu flags amx vnni cores load_average threads arch shape tokens system version fastest_peer rounds calls "
    "median_ms p10_ms p90_ms speed_to_fastest_peer ratio_p10 ratio_p90 max_logit_difference load_s rss_mb peak_mb"
).split()
AGREE = 1e-4


class System:
    """A program that answers timing requests."""

    def __init__(self, name, command, environment=()):
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **dict(environment)},
        )
        self.about = self.read()
        self.peak = self.about["peak_mb"]

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} went away; run its command by hand: {' '.join(self.process.args)}")
        return json.loads(line)

    def ask(self, sequences, warm, repeats):
        request = json.dumps({"sequences": sequences, "warm": warm, "repeats": repeats})
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        answer = self.read()
        self.peak = answer["peak_mb"]
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    has = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", "unknown"),
        "flags": " ".join(f for f in FLAGS if f in has),
        "amx": "yes" if "amx_int8" in has else "no",
        "vnni": "yes" if has & {"avx512_vnni", "avx_vnni"} else "no",
        "cores": os.cpu_count(),
    }


def commit():
    git = lambda *words: subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True).stdout.strip()
    # Records and tables are what a run writes; they do not change what was measured.
    changed = [l for l in git("status", "--porcelain", "--", ":(top)crates", ":(top)Cargo.lock").splitlines()]
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def made(options):
    """The files of every program, made once."""
    work = options.work / options.arch
    checkpoint, int8, files = work / "float", work / "int8", work / "files"
    attention = work / "int8-attention"
    work.mkdir(parents=True, exist_ok=True)
    quick = ["--shapes", "1x8", "--repeats", "1"]
    kinds = {checkpoint: ["--float"], int8: [], attention: ["--recipe", "dynamic-attention"]}
    for directory, kind in kinds.items():
        if not directory.exists():
            print(f"qberta writes {directory.name}", flush=True)
            command = [options.qberta, "bench", "--arch", options.arch, *kind, "--save", directory, *quick]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, HERE / "prepare.py", checkpoint, files], check=True)
    return checkpoint, int8, attention, files


def start(options):
    checkpoint, int8, attention, files = made(options)
    threads = str(options.threads)
    ours = {
        "qberta-int8": (int8, None),
        "qberta-int8-attention": (attention, None),
        "qberta-float": (checkpoint, None),
        "qberta-int8-avx2": (int8, "avx2"),
    }
    systems = []
    for name in options.systems:
        if name in ours:
            directory, isa = ours[name]
            command = [options.qberta, "bench", str(directory), "--serve", "--threads", threads]
            command += ["--isa", isa or "auto"]
        else:
            command = [sys.executable, str(HERE / "serve.py"), name, str(checkpoint), str(files), threads]
        # The fastest of three loads: the first may read the disk, any may meet other work.
        runs = [System(name, command)]
        for _ in range(options.loads - 1):
            runs[-1].close()
            runs.append(System(name, command))
        system = runs[-1]
        system.about["load_s"] = min(r.about["load_s"] for r in runs)
        print(f"{name}: loaded in {system.about['load_s']:.2f} s, {system.about['rss_mb']:.0f} MB", flush=True)
        systems.append(system)
    return systems, json.loads((checkpoint / "config.json").read_text())["vocab_size"]


def far(a, b):
    return max(abs(x - y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True))


def check(systems, inputs):
    """Logits of every program against the reference; also the first call on every shape."""
    differences, seconds = {}, {}
    by_name = {s.name: s for s in systems}
    for shape, rows in inputs.items():
        answers = {name: s.ask(rows, 0, 1) for name, s in by_name.items()}
        for name, answer in answers.items():
            differences[name, shape] = far(answer["logits"], answers[REFERENCE]["logits"])
            seconds[name, shape] = answer["ms"][0] / 1e3
        exact = [n for n in ("qberta-float", "torch-fp32", "openvino") if n in answers]
        # OpenVINO's default precision is bf16 where the processor has it.
        for name in exact:
            if differences[name, shape] > AGREE and not (name == "openvino" and machine()["amx"] == "yes"):
                raise SystemExit(f"{name} on {shape}: logits differ by {differences[name, shape]:.1e}; another model?")
        print(f"{shape}: " + ", ".join(f"{n} {differences[n, shape]:.1e}" for n in answers), flush=True)
    return differences, seconds


def measure(systems, inputs, seconds, options):
    """Milliseconds of every timed call, `{(system, shape): [round][call]}`, again after each round."""
    times = {(s.name, shape): [] for s in systems for shape in inputs}
    for number in range(options.rounds):
        begin = time.monotonic()
        for shape, rows in inputs.items():
            slowest = max(seconds[s.name, shape] for s in systems)
            if slowest > options.slow and number >= options.slow_rounds:
                continue
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                one = seconds[system.name, shape]
                repeats = max(1, min(options.calls, int(options.turn / one)))
                answer = system.ask(rows, 1 if one < 0.5 else 0, repeats)
                times[system.name, shape].append(answer["ms"])
                time.sleep(0.03)  # threads that still spin for work go to sleep
        print(f"round {number + 1} of {options.rounds}: {time.monotonic() - begin:.0f} s", flush=True)
        yield times


def quantile(values, q):
    values = sorted(values)
    place = q * (len(values) - 1)
    below, above = values[int(place)], values[-int(-place // 1)] if place % 1 else values[int(place)]
    return below + (above - below) * (place % 1)


def circumstances(options):
    """What a record says about the run as a whole, as it is when the run begins."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        **machine(),
        "load_average": f"{os.getloadavg()[0]:.1f}",
        "threads": options.threads,
        "arch": options.arch,
    }


def record(systems, inputs, differences, times, options, common):
    rows = []
    for shape, sequences in inputs.items():
        medians = {s.name: [statistics.median(calls) for calls in times[s.name, shape]] for s in systems}
        peers = [s.name for s in systems if s.name in serve.PEERS]
        fastest = min(peers, key=lambda name: statistics.median(medians[name]))
        for system in systems:
            calls = [ms for turn in times[system.name, shape] for ms in turn]
            ratios = [a / b for a, b in zip(medians[fastest], medians[system.name], strict=True)]
            isa = system.about.get("isa")
            rows.append(
                {
                    **common,
                    "shape": shape,
                    "tokens": sum(map(len, sequences)),
                    "system": system.name,
                    "version": system.about["version"] + (f" {isa}" if isa else ""),
                    "fastest_peer": fastest,
                    "rounds": len(ratios),
                    "calls": len(calls),
                    "median_ms": f"{statistics.median(medians[system.name]):.3f}",
                    "p10_ms": f"{quantile(calls, 0.1):.3f}",
                    "p90_ms": f"{quantile(calls, 0.9):.3f}",
                    "speed_to_fastest_peer": f"{statistics.median(ratios):.3f}",
                    "ratio_p10": f"{quantile(ratios, 0.1):.3f}",
                    "ratio_p90": f"{quantile(ratios, 0.9):.3f}",
                    "max_logit_difference": f"{differences[system.name, shape]:.2e}",
                    "load_s": f"{system.about['load_s']:.3f}",
                    "rss_mb": f"{system.about['rss_mb']:.1f}",
                    "peak_mb": f"{system.peak:.1f}",
                }
            )
    path = options.record / f"{common['date']}_{options.arch}_{options.threads}threads_{common['commit']}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def arguments():
    everyone = ["qberta-int8", "qberta-int8-attention", "qberta-float", "qberta-int8-avx2", *serve.PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="v3-base", help="a name of `qberta bench --arch` that is DeBERTa v3")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where models go: 3 GB for v3-base")
    parser.add_argument("--qberta", default="target/release/qberta", help="the program, built with --release")
    parser.add_argument("--record", type=pathlib.Path, default=HERE.parent / "record", help="directory of the CSV file")
    parser.add_argument("--shapes", default=shapes.DEFAULT)
    parser.add_argument("--systems", default=",".join(everyone), help=f"of {', '.join(everyone)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow", type=float, default=2.0, help="seconds of one call that make a shape slow")
    parser.add_argument("--slow-rounds", type=int, default=5, help="rounds of slow shapes")
    parser.add_argument("--calls", type=int, default=10, help="most timed calls of a program in a turn")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of timed calls in a turn")
    parser.add_argument("--loads", type=int, default=3, help="times each program is loaded; the fastest counts")
    options = parser.parse_args()
    options.systems = options.systems.split(",")
    for name in set(options.systems) - set(everyone):
        parser.error(f"--systems {name}: expected some of {', '.join(everyone)}")
    if REFERENCE not in options.systems:
        parser.error(f"--systems must hold {REFERENCE}, the reference of the logits")
    options.qberta = str(pathlib.Path(options.qberta).resolve())
    return options


def main():
    options = arguments()
    common = circumstances(options)  # the load average before this run adds to it
    systems, vocabulary = start(options)
    inputs = {shape: shapes.sequences(shape, vocabulary) for shape in options.shapes.split(",")}
    try:
        differences, seconds = check(systems, inputs)
        for times in measure(systems, inputs, seconds, options):
            # Written again after each round: a run that is stopped leaves what it has.
            path = record(systems, inputs, differences, times, options, common)
        print(path)
    finally:
        for system in systems:
            system.close()


if __name__ == "__main__":
    main()
