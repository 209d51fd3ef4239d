"""What keeps the repository in order: pins, tidy files, releases, hooks and workflows, each shown to find faults."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import assay
from command_line import assay_here
from scripts import loaded

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)

PROJECT = """
[build-system]
requires = ["hatchling==1.27.0"]
[project]
dependencies = ["torch>=2.6", "ruamel.yaml>=0.18"]
[project.optional-dependencies]
logs = ["tensorboard>=2.18; python_version >= '3.11'"]
dev = ["mkdocstrings[python]>=0.27"]
"""
PINS = """# tested
hatchling==1.27.0
mkdocstrings==1.0.8; python_version >= "3.11"
ruamel-yaml==0.18.6; python_version < "3.11"
ruamel-yaml==0.18.9; python_version >= "3.11"
tensorboard==2.21.0; python_version >= "3.11"
torch==2.13.0
"""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pins() -> ModuleType:
    return loaded("tools/check_pins.py")


@pytest.fixture(scope="module")
def files() -> ModuleType:
    return loaded("tools/check_files.py")


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return loaded("tools/check_release.py")


def test_every_dependency_is_pinned_and_explained(pins: Any) -> None:
    assert pins.faults(text("pyproject.toml"), text("constraints.txt")) == []
    project = pins.tomllib.loads(text("pyproject.toml"))["project"]
    names = {
        re.split(r"[\[>=<]", requirement)[0]
        for requirements in (project["dependencies"], *project["optional-dependencies"].values())
        for requirement in requirements
    }
    explained = text("CONTRIBUTING.md")
    assert [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", explained)] == []


def test_pins_with_markers_extras_and_other_spellings_are_understood(pins: Any) -> None:
    assert pins.faults(PROJECT, PINS) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("torch==2.13.0", "", "torch has no pin in constraints.txt for Python 3.10"),
        (
            "torch==2.13.0",
            "torch==2.5.1",
            "torch==2.5.1 in constraints.txt is not in the range of pyproject.toml, >=2.6",
        ),
        ("torch==2.13.0", "torch>=2.6", "line 7: 'torch>=2.6' names no single version"),
        ("torch==2.13.0", "torch==2.*", "line 7: 'torch==2.*' names no single version"),
        ("torch==2.13.0", "torch 2.13.0", "line 7: 'torch 2.13.0' is no requirement"),
        (
            '0.18.9; python_version >= "3.11"',
            "0.18.9",
            "ruamel-yaml has 2 pins in constraints.txt for Python 3.10 (0.18.6,",
        ),
        (
            'ruamel-yaml==0.18.6; python_version < "3.11"',
            "",
            "ruamel-yaml has no pin in constraints.txt for Python 3.10",
        ),
        (
            'mkdocstrings==1.0.8; python_version >= "3.11"',
            "",
            "mkdocstrings has no pin in constraints.txt for Python 3.11",
        ),
        ("hatchling==1.27.0", "hatchling==1.28.0", "hatchling==1.28.0 in constraints.txt is not in the range"),
    ],
)
def test_a_pin_out_of_step_is_refused(pins: Any, tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in PINS
    found = pins.faults(PROJECT, PINS.replace(old, new))
    assert any(said in fault for fault in found), found
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (tmp_path / "constraints.txt").write_text(PINS.replace(old, new), encoding="utf-8")
    assert pins.main(str(tmp_path)) == 1


def installed(names: Collection[str]) -> dict[str, Distribution]:
    """These packages and all that they need, by their canonical names, as they are installed here."""
    here = {canonicalize_name(found.name): found for found in distributions()}
    found: dict[str, Distribution] = {}
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if name in found and not requirement.extras:
            continue
        assert name in here, f"{name} is not installed: run make test, or pip install -c constraints.txt -e '.[dev]'"
        found[name] = here[name]
        for needed in map(Requirement, here[name].requires or []):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                todo.append(needed)
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt was written with Python 3.11")
def test_what_dependencies_need_is_pinned_too_and_pins_fit_the_pythons_they_are_for(pins: Any) -> None:
    project = pins.tomllib.loads(text("pyproject.toml"))["project"]
    needed = installed([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    pinned = [Requirement(line) for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    # setuptools comes with many a Python, in a version of its own
    assert set(needed) - {canonicalize_name(pin.name) for pin in pinned} <= {"setuptools"}
    for pin in pinned:
        found = needed.get(canonicalize_name(pin.name))
        if found is None or not pin.specifier.contains(found.version):
            continue
        for python in pins.PYTHONS:
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                allowed = SpecifierSet(found.metadata["Requires-Python"] or "")
                assert allowed.contains(f"{python}.99"), f"{pin} needs Python {allowed}: give the pin a marker"


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("notes.md", b"x" * 500_000 + b"\n", "notes.md: 500,001 bytes, more than 500,000"),
        ("src/assay/data/corpora/new.parquet", b"\0" * 3_000_001, "more than 3,000,000"),
        ("conf.yaml", b"a: [1\n", "conf.yaml: cannot be read: while parsing a flow sequence"),
        ("conf.toml", b"a = \n", "conf.toml: cannot be read: Invalid value"),
        ("card.json", b'{"a": }', "card.json: cannot be read: Expecting value"),
        ("notes.md", b"end", "does not end with one line break"),
        ("notes.md", b"end\n\n", "does not end with one line break"),
        ("notes.md", b"one\ntwo \n", "notes.md line 2: white space at its end"),
        ("notes.md", b"one\r\n", r"lines end in \r"),
        ("notes.md", b"caf\xe9\n", "no UTF-8 at byte 3"),
        ("page.py", b"<<<<<<< main\na\n=======\nb\n>>>>>>> other\n", "page.py line 1: left of a merge"),
    ],
)
def test_an_untidy_file_is_refused(files: Any, path: str, content: bytes, said: str) -> None:
    found = files.faults(path, content)
    assert any(said in fault for fault in found), found


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("mkdocs.yml", b"a: !!python/name:material.extensions.emoji.twemoji\n"),
        ("src/assay/data/corpora/new.parquet", b"\0" * 2_900_000),
        ("src/assay/models/embedded/define-oracle/model.safetensors", b"\0" * 2_900_000),
        ("docs/reports/sweep.html", b"<p> \n" * 500_000),
        ("src/assay/py.typed", b""),
        ("card.json", b'{"a": 1}'),
        ("notes.md", "Überschrift\n=======a\n".encode()),
    ],
)
def test_a_tidy_file_passes(files: Any, path: str, content: bytes) -> None:
    assert files.faults(path, content) == []


CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.3] - 2026-11-26

### Fixed

- A fault.

## [1.2.2] - 2026-11-01

- Older.
"""


@pytest.mark.parametrize(
    ("tag", "version", "cited", "changelog", "said"),
    [
        ("v1.2.4", "1.2.3", "1.2.3", CHANGELOG, "tag v1.2.4 is not v1.2.3"),
        ("1.2.3", "1.2.3", "1.2.3", CHANGELOG, "tag 1.2.3 is not v1.2.3"),
        ("v1.2", "1.2", "1.2", CHANGELOG, "version 1.2 of pyproject.toml is not MAJOR.MINOR.PATCH"),
        ("v1.2.3", "1.2.3", "1.2.2", CHANGELOG, "CITATION.cff does not say version: 1.2.3"),
        ("v1.2.5", "1.2.5", "1.2.5", CHANGELOG, "CHANGELOG.md has no '## [1.2.5] - YYYY-MM-DD'"),
        ("v1.2.3", "1.2.3", "1.2.3", CHANGELOG.replace(" - 2026-11-26", ""), "CHANGELOG.md has no '## [1.2.3] -"),
        ("v1.2.3", "1.2.3", "1.2.3", CHANGELOG.replace("### Fixed\n\n- A fault.\n", ""), "CHANGELOG.md has no"),
        ("v1.2.3", "1.2.3", "1.2.3", CHANGELOG, None),
        ("v1.2.3rc1", "1.2.3rc1", "1.2.3rc1", CHANGELOG.replace("1.2.3", "1.2.3rc1"), None),
    ],
)
def test_a_release_needs_one_version_everywhere(
    release: Any, tmp_path: Path, capsys: Any, tag: str, version: str, cited: str, changelog: str, said: str | None
) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "a"\nversion = "{version}"\n', encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n", encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    code = release.main(tag, str(tmp_path))
    printed = capsys.readouterr()
    if said is None:
        assert (code, printed.out, printed.err) == (0, "### Fixed\n\n- A fault.\n", "")
    else:
        assert code == 1
        assert said in printed.err
        assert printed.out == ""


def test_this_version_is_stated_alike(release: Any) -> None:
    """All that a release checks but its section in the changelog, which is written when it is made."""
    version = re.search(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert version is not None
    found = release.faults(f"v{version[1]}", text("pyproject.toml"), text("CITATION.cff"), text("CHANGELOG.md"))
    assert [fault for fault in found if not fault.startswith("CHANGELOG.md")] == []
    assert re.search(r"^## \[Unreleased\]$", text("CHANGELOG.md"), re.MULTILINE)


def test_the_command_says_its_version(tmp_path: Path) -> None:
    done = assay_here("--version", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"assay {assay.__version__}\n", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_the_makefile_has_with_pinned_actions_and_few_rights(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(TARGET.findall(text("Makefile")))
    ran: set[str] = set()
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] == "ubuntu-24.04"
        assert job["timeout-minutes"] <= 90
        assert set(job.get("permissions", {})) <= {"publish": {"id-token"}, "attach": {"contents"}}.get(name, set())
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
        ran |= set(job.get("strategy", {}).get("matrix", {}).get("target", []))
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", f"none/none@{'0' * 40}")), step
            # an expression in a script would be read by the shell
            assert "${{" not in step.get("run", "")
            ran |= set(re.findall(r"\bmake ([a-z-]+)", step.get("run", "")))
    assert ran
    assert ran <= targets


def test_ci_covers_style_hooks_tests_documents_and_the_wheel() -> None:
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    assert {"lint", "check-hooks", "test", "docs", "wheel"} <= set(
        workflow["jobs"]["make"]["strategy"]["matrix"]["target"]
    )


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_for_issues_have_what_the_host_asks_for(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)
    assert any(part.get("validations", {}).get("required") for part in fields)


def test_hooks_start_programs_of_the_environment_alone() -> None:
    config = yaml.safe_load(text(".pre-commit-config.yaml"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} >= {"ruff-check", "ruff-format", "types", "spelling", "files", "pins"}
    development = text("pyproject.toml").split("dev = [")[1].split("\n]")[0]
    distributions = {"lint-imports": "import-linter"}
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        assert hook["language"] == "system"
        name = program.removeprefix(".venv/bin/")
        if name == "python":
            assert (ROOT / arguments[0]).is_file()
        else:
            assert f'"{distributions.get(name, name)}>=' in development
