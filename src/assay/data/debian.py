"""Package descriptions of the machine's own Debian (or Ubuntu) sources: summaries and translations at size.

Descriptions belong to their packages' authors, so they are fetched on demand and never shipped. Apt does the
fetching and checks the archive's signatures, with a state of its own: the machine's lists are not touched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.data.splitting import assign_splits, loose_key, near_duplicates, row_keys
from assay.errors import AssayError

APT_CONFIG = """\
#clear Acquire::Languages;
Acquire::Languages {{ "en"; "de"; }};
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Update::Error-Mode "any";
Dir::State::Lists "{folder}/lists";
Dir::Cache "{folder}/cache";
"""
"""Container images hide descriptions (Acquire::Languages "none") and hook scripts to updates: both are undone."""
SECONDS_FOR_APT = 900


@dataclass(frozen=True)
class Description:
    """One entry of a Translation index: package, the digest that joins languages, first line, all further lines."""

    package: str
    md5: str
    synopsis: str
    body: str


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 file [deb822(5)] as field → value; continuation lines keep their line ends."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            fields[name] = f"{fields.get(name, '')}\n{line[1:]}"
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields


def parse_translations(lines: Iterable[str], language: str) -> Iterator[Description]:
    """The descriptions of a Translation index; the body on one line, its paragraphs joined by spaces."""
    for fields in stanzas(lines):
        synopsis, _, body = fields.get(f"Description-{language}", "").partition("\n")
        if synopsis and "Package" in fields and "Description-md5" in fields:
            words = " ".join(line for line in body.split("\n") if line.strip() != ".").split()
            yield Description(fields["Package"], fields["Description-md5"], synopsis.strip(), " ".join(words))


def parse_sources(lines: Iterable[str]) -> dict[str, str]:
    """Binary package → source package, from a Packages index."""
    return {
        fields["Package"]: fields.get("Source", fields["Package"]).split(" ")[0]
        for fields in stanzas(lines)
        if "Package" in fields
    }


def synopsis_rows(english: Iterable[Description], sources: Mapping[str, str]) -> list[dict[str, str]]:
    """Rows ``description`` → ``synopsis`` with package and split: no near-duplicate descriptions or equal synopses."""
    rows = [
        {"package": d.package, "description": d.body, "synopsis": d.synopsis}
        for d in sorted(english, key=lambda d: (d.package, d.md5))
        if d.body
    ]
    return _split_by_source(rows, "description", "synopsis", sources)


def german_rows(
    english: Iterable[Description], german: Iterable[Description], sources: Mapping[str, str]
) -> list[dict[str, str]]:
    """Rows ``english`` → ``german`` synopsis, joined on Description-md5; what is left untranslated is left out."""
    translated = {d.md5: d.synopsis for d in german}
    rows = [
        {"package": d.package, "english": d.synopsis, "german": translated[d.md5]}
        for d in sorted(english, key=lambda d: (d.package, d.md5))
        if d.md5 in translated and loose_key(translated[d.md5]) != loose_key(d.synopsis)
    ]
    return _split_by_source(rows, "english", "german", sources)


def _split_by_source(
    rows: list[dict[str, str]], prompt: str, reference: str, sources: Mapping[str, str]
) -> list[dict[str, str]]:
    """Rows without repeats of prompt, reference or (nearly) prompt, the first one kept; a source is in one split."""
    seen: set[str] = set()
    distinct: list[dict[str, str]] = []
    for row in rows:
        keys = {f"{column} {loose_key(row[column])}" for column in (prompt, reference)}
        if not keys & seen:
            distinct.append(row)
        seen |= keys
    alike = {i for i, _ in near_duplicates([row[prompt] for row in distinct], range(len(distinct)))}
    kept = [row for i, row in enumerate(distinct) if i not in alike]
    keys_of_rows = [
        row_keys(row[prompt], row[reference], f"source {sources.get(row['package'], row['package'])}") for row in kept
    ]
    splits, _ = assign_splits(keys_of_rows)
    return [{**row, "split": split} for row, split in zip(kept, splits, strict=True)]


def fetch_debian(name: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The rows of ``debian-synopsis`` or ``debian-de`` from the machine's apt sources, and the digests of what came.

    Raises AssayError when there is no apt, no network, or no description in the wanted language.
    """
    apt_get = shutil.which("apt-get")
    apt_helper = shutil.which("apt-helper", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/lib/apt")
    if apt_get is None or apt_helper is None:
        raise AssayError(
            f"task {name!r} is fetched with apt, which this machine lacks: use Debian or Ubuntu, or a file"
        )
    with tempfile.TemporaryDirectory(prefix="assay-apt-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # apt downloads as a user of its own
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        config = folder / "apt.conf"
        config.write_text(APT_CONFIG.format(folder=folder), encoding="utf-8")
        _run([apt_get, "-c", str(config), "update"], name)
        indexes = {
            kind: _read_indexes(name, folder / "lists", kind, [apt_helper, "-c", str(config), "cat-file"])
            for kind in ("_Translation-en", "_Translation-de", "_Packages")
        }
    digests = {kind.strip("_"): hashlib.sha256(text.encode()).hexdigest()[:16] for kind, text in indexes.items()}
    english = list(parse_translations(indexes["_Translation-en"].split("\n"), "en"))
    sources = parse_sources(indexes["_Packages"].split("\n"))
    if name == "debian-synopsis":
        return synopsis_rows(english, sources), {"indexes": digests}
    german = parse_translations(indexes["_Translation-de"].split("\n"), "de")
    return german_rows(english, german, sources), {"indexes": digests}


def _read_indexes(name: str, lists: Path, kind: str, cat_file: list[str]) -> str:
    """All indexes of a kind, decompressed and one after the other."""
    paths = sorted(path for path in lists.iterdir() if kind in path.name)
    if not paths:
        raise AssayError(f"task {name!r}: the machine's apt sources have no {kind[1:]} index: add a Debian archive")
    return "\n\n".join(_run([*cat_file, str(path)], name) for path in paths)


def _run(command: list[str], name: str) -> str:
    """What an apt command prints; its last error line as one sentence when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=SECONDS_FOR_APT, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssayError(f"task {name!r} could not be fetched with apt: {error}: try again") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("E:")]
        reason = (lines or [f"exit code {done.returncode}"])[0].removeprefix("E: ")
        raise AssayError(
            f"task {name!r} could not be fetched with apt ({reason}): it needs network and working apt sources"
        )
    return done.stdout.decode("utf-8", errors="replace")
