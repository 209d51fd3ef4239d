"""The wheel holds all that src/assay has and nothing else; what it does once installed is `make wheel`'s to show."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import assay

ROOT = Path(__file__).parents[1]
MAX_BYTES = 40_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    assert path.name == f"assay-{assay.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as opened:
        yield opened


def in_the_package(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "assay").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_the_package(wheel) == sources
    for kind in ("py.typed", "data/corpora/define.parquet", "models/embedded/define-oracle/model.safetensors"):
        assert f"assay/{kind}" in sources


def test_files_of_the_wheel_are_those_of_the_repository(wheel: zipfile.ZipFile) -> None:
    """Left-overs in src/assay would be packed, too."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository here, so nobody knows which files belong")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src/assay"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    assert in_the_package(wheel) == {name.removeprefix("src/") for name in known if (ROOT / name).is_file()}
    kinds = {Path(name).suffix for name in known if name}
    assert kinds <= {".py", ".typed", ".json", ".parquet", ".safetensors", ".txt", ".j2", ".css", ".js"}


def test_the_wheel_has_a_reasonable_size(wheel: zipfile.ZipFile) -> None:
    packed = sum(info.compress_size for info in wheel.infolist())
    assert packed < MAX_BYTES, f"{packed:,} bytes"
    assert max(info.file_size for info in wheel.infolist()) < 3_000_000


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"assay-{assay.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["Version"] == assay.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "assay = assay.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    licences = {name.rsplit("/", 1)[1] for name in wheel.namelist() if name.startswith(f"{info}/licenses/")}
    beside = {path.name for path in (ROOT / "src" / "assay").rglob("*.LICENSE.txt")}
    assert licences == {"LICENSE", "NOTICE"} | beside
