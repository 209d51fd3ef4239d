"""Files that are not what their names say: what stands in a file's place when a download or an unpacking was missed."""

from __future__ import annotations

from pathlib import Path

from assay.errors import AssayError

NUM_TELLING_BYTES = 64
"""Of a file's start; enough to tell."""


def refuse_stand_in(path: Path, start: bytes) -> None:
    """Raises AssayError where the first bytes of ``path`` are those of a Git LFS pointer, a web page or an archive."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs.github.com/"):
        raise AssayError(f"{str(path)!r} is a pointer of Git LFS, not the file itself: fetch that with git lfs pull")
    if text.startswith((b"<!doctype html", b"<html")):
        raise AssayError(
            f"{str(path)!r} is a web page, not the file itself: its download failed or wanted a login; fetch it again"
        )
    if start.startswith(b"\x1f\x8b"):
        raise AssayError(f"{str(path)!r} is compressed with gzip: unpack it first")
    if start.startswith(b"PK\x03\x04"):
        raise AssayError(f"{str(path)!r} is a zip archive or a spreadsheet: unpack it, or export it as text")
