"""Peak memory of `assay generate` against the number of prompts, with an exact world as the teacher.

    python benchmarks/long_generation.py [10000 100000 1000000]

The teacher is a Markov chain over letters. Each size is a process of its own, so that its peak is its own; the peaks
are those of resident memory, of the process that reads the prompts and of its one worker, as the kernel counts them
(getrusage). The table goes to benchmarks/long_generation.md.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from assay import runs
from assay.data.shards import MANIFEST, shard_paths
from assay.data.user_rows import UserRow
from assay.generation import generate
from assay.models.exact import MarkovChain
from assay.models.sampling import response_seed
from assay.text_writers import Generation, LeftOut, Texts

LETTERS = ".abcdefghijklmno"
SIZES = (10_000, 100_000, 1_000_000)
AT_ONCE = 1_000


class ExactWriter:
    """A Markov chain over letters that the full stop ends."""

    def __init__(self, request: Generation) -> None:
        self._request = request
        self._chain = MarkovChain.random(len(LETTERS), seed=0)
        self.digest = self._chain.digest

    def write(self, rows: Sequence[UserRow]) -> list[Texts]:
        """One response for each prompt."""
        return [text for start in range(0, len(rows), AT_ONCE) for text in self._some(rows[start : start + AT_ONCE])]

    def _some(self, rows: Sequence[UserRow]) -> list[Texts]:
        prompts = [tuple(map(LETTERS.index, row.columns["prompt"])) for row in rows]
        seeds = [response_seed("exact", self._request.seed, row.line) for row in rows]
        written = self._chain.sample(prompts, seeds, self._request.max_response_tokens)
        eos = self._chain.eos_token_id
        return [["".join(LETTERS[i] for i in ids)] if ids[-1] == eos else LeftOut.CUT for ids in written]


def measure(num_prompts: int) -> None:
    """Writes prompts and the responses to them, and prints one JSON object about it."""
    with tempfile.TemporaryDirectory() as name:
        prompts, out, draw = Path(name) / "prompts.jsonl", Path(name) / "out", random.Random(0)
        with prompts.open("w", encoding="utf-8") as file:
            for _ in range(num_prompts):
                text = "".join(draw.choices(LETTERS[1:], k=draw.randrange(8, 32)))
                file.write(json.dumps({"prompt": text}) + "\n")
        started = time.perf_counter()
        generate(Generation("exact", max_response_tokens=32), prompts, out, 1, ExactWriter)
        seconds = time.perf_counter() - started
        manifest = runs.read_json(out / MANIFEST)
        num_rows = sum(pq.read_metadata(path).num_rows for path in shard_paths(out))
        assert num_rows == manifest["num_rows"] == num_prompts - sum(manifest["left_out"].values())
    reader, worker = (
        resource.getrusage(who).ru_maxrss / 2**10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    found = {"prompts": num_prompts, "rows": num_rows, "shards": manifest["num_shards"], "seconds": seconds}
    print(json.dumps(found | {"reader_mib": reader, "worker_mib": worker}))


def main(sizes: Sequence[int]) -> None:
    """Prints and writes the table of peaks, one row for each size."""
    lines = [
        "| prompts | files | responses | peak of the reader, MiB | peak of the worker, MiB | seconds |",
        "|" + "---|" * 6,
    ]
    for size in sizes:
        command = [sys.executable, __file__, "--measure", str(size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        counts = f"{size:,} | {found['shards']} | {found['rows']:,}"
        peaks = f"{found['reader_mib']:.0f} | {found['worker_mib']:.0f}"
        lines.append(f"| {counts} | {peaks} | {found['seconds']:.0f} |")
        print(lines[-1], flush=True)
    text = (
        "Written by `python benchmarks/long_generation.py`; files of 10,000 prompts, one worker, one thread. Seconds\n"
        "are those of the wall clock, on a machine that may have been busy with other work; the peaks do not depend\n"
        "on it.\n\n"
    )
    runs.write_text(Path(__file__).with_suffix(".md"), text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]))
    else:
        main([int(size) for size in sys.argv[1:]] or SIZES)
