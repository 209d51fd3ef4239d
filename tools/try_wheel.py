"""Tries a built wheel as a new user would: a clean environment, the pinned versions, and nothing of the repository.

    python tools/try_wheel.py dist/assay-VERSION-py3-none-any.whl constraints.txt

Makes a virtual environment of the Python that runs this, in a temporary folder, and installs the wheel there. Then, in
an empty folder, imports every public name, lists recipes, tasks and embedded models, runs the smallest run there is,
and reads it again. Ends with the exit code of what failed, after its output; 0 when all went well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

NAMES = """
import pathlib, assay
missing = [name for name in assay.__all__ if not hasattr(assay, name)]
assert not missing, missing
folder = pathlib.Path(assay.__file__).parent
assert (folder / "py.typed").is_file(), "no py.typed in the wheel"
assert folder.is_relative_to(pathlib.Path(__import__("sys").prefix)), f"{folder} is not what was installed"
print("assay", assay.__version__, "with", len(assay.__all__), "public names")
"""

RUN = """
run quickstart --out run
--stage-one.num-oracle-prompts=64 --distillation.num-prompts=16 --distillation.training.num-steps=4
--probe.num-prompts=16 --probe.num-monitored=16 --probe.num-train-pairs=16 --probe.num-evaluations=4
"""

COMMANDS = ("--version", "--help", "recipes", "tasks", "bases", RUN, "report run", "compare run", "diagnose run")

WRITTEN = ("run/report.html", "run/summary.json", "run/metrics.jsonl", "run/manifest.json")


def environment() -> dict[str, str]:
    """Ours without what would lead Python to other code, or assay to a network."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))} | {
        "HF_HUB_OFFLINE": "1"
    }


def main(wheel: str, constraints: str) -> int:
    """Installs and tries the wheel; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="assay-wheel-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        programs = folder / "venv" / "bin"
        work = folder / "work"
        work.mkdir()
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pinned = ["-c", str(Path(constraints).resolve()), str(Path(wheel).resolve())]
        steps = [
            (f"pip install {Path(wheel).name}", ["python", *install, *pinned]),
            ("import every public name", ["python", "-c", NAMES]),
            *((f"assay {line.strip().splitlines()[0]}", ["assay", *line.split()]) for line in COMMANDS),
        ]
        for step, (program, *arguments) in steps:
            print(f"-- {step}", flush=True)
            command = [str(programs / program), *arguments]
            done = subprocess.run(command, cwd=work, env=environment(), capture_output=True, text=True)
            print("".join(f"   {line}\n" for line in done.stdout.strip().splitlines()[-3:]), end="", flush=True)
            if done.returncode != 0:
                print(f"{done.stdout}\n{done.stderr}\nfailed with exit code {done.returncode}", file=sys.stderr)
                return done.returncode
        missing = [path for path in WRITTEN if not (work / path).is_file()]
        if missing:
            print(f"the run has not written {', '.join(missing)}", file=sys.stderr)
            return 1
    print(f"{Path(wheel).name} works in a clean environment")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
