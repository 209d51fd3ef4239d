"""What strangers' files, models and servers must not do: run code, leave their folder, speak as ours, learn secrets."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from assay import runs
from assay.config import JudgeConfig
from assay.data import user_rows
from assay.data.user_rows import read_rows
from assay.errors import AssayError
from assay.judges import CommandJudge
from assay.models.causal import CausalModel
from assay.models.loading import load_model, load_tokenizer
from assay.report.html import PAGE
from assay.report.model_card import model_card
from assay.report.tables import read_run
from assay.types import Prompt, Response
from command_line import assay_here
from servers.stub import Reply, Stub

SOURCE = Path(runs.__file__).parent
BAD = Path(__file__).parent / "bad_inputs"
ATTACK = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>x</a>"
    "<svg/onload=alert(4)>\" onmouseover=\"alert(5)' onfocus='alert(6)</style></text>-->]]>{{7*7}}$(touch x)"
    "\x1b[2J\x1b]0;title\x07\x9b31m\r\b\n---\nkey: value"
)
"""Of all kinds that a model may write: markup, handlers, URLs, ends of contexts, escapes of terminals, new lines."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# ---- code that is not ours


def test_the_source_unpickles_nothing_and_starts_no_shell() -> None:
    """``pickle`` is imported for the name of its error; weights are loaded by transformers, tensors only."""
    forbidden = {
        *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"),
        *("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "np.load", "numpy.load"),
        *("joblib.load", "shelve.open", "marshal.loads", "yaml.unsafe_load", "yaml.full_load", "jinja2.Template"),
    }
    loaders = 0
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            assert called not in forbidden, (path, called)
            assert named.get("shell", "False") == "False", (path, called)
            assert called != "yaml.load" or ast.unparse(node.args[1]) == "StrictLoader", path
            if called.endswith("auto_class.from_pretrained"):
                loaders += 1
                assert (named["weights_only"], named["trust_remote_code"]) == ("True", "trust_remote_code")
                assert named["use_safetensors"] == "None if allow_pickle else True"
    assert loaders == 1


def model_with(case: str, folder: Path) -> str:
    shutil.copytree(BAD / "models" / "whole", folder)
    for file in (BAD / "models" / case).iterdir():
        if file.suffix == ".absent":
            (folder / file.stem).unlink()
        else:
            shutil.copy(file, folder)
    return str(folder)


@pytest.mark.parametrize(
    "case", ["weights-pickled-with-a-payload", "index-of-a-pickled-shard", "config-of-foreign-code"]
)
def test_the_payload_of_a_model_folder_does_not_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = model_with(case, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssayError):
        load_model(name)
    assert not (tmp_path / "the-payload-has-run").exists()
    if case != "config-of-foreign-code":  # it is one: unpickled, it would have run
        pickle.loads((tmp_path / "model" / "pytorch_model.bin").read_bytes())
        assert (tmp_path / "the-payload-has-run").exists()


def test_the_code_of_a_tokenizer_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = model_with("config-of-foreign-code", tmp_path / "model")
    shutil.copy(BAD / "models" / "whole" / "config.json", name)
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings | own))
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer(name).encode("a b") == load_tokenizer(str(BAD / "models" / "whole")).encode("a b")
    assert not (tmp_path / "the-payload-has-run").exists()


@pytest.mark.parametrize(
    "words", ["; touch x", "$(touch x)", "`touch x`", "| touch x", "&& touch x", "> x", "\n touch x"]
)
def test_no_shell_reads_a_judges_command_or_a_prompt(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = "import sys, json; print(sum(len(json.loads(line)['prompt']) for line in sys.stdin) + len(sys.argv))"
    (tmp_path / "judge.py").write_text(program)
    judge = CommandJudge(JudgeConfig("one", "command", f"{sys.executable} judge.py {words}"), lambda ids: words)
    response = Response("a", (1,), "student", False, 0, 1.0, 0)
    found = judge.values([Prompt("a", words, (1,), None)], [response])
    assert found[0] == len(words) + 1 + len(words.split())  # the words as they are, each an argument
    assert os.listdir(tmp_path) == ["judge.py"]


def test_no_shell_reads_the_names_of_files_and_folders(tmp_path: Path) -> None:
    name = "$(touch x); touch x & `touch x`.jsonl"
    (tmp_path / name).write_text('{"prompt": "$(touch x)"}\n{"prompt": "; touch x"}\n')
    assert assay_here("tasks", "check", name, folder=tmp_path).returncode == 0
    folder = shutil.copytree(BAD / "runs" / "whole", tmp_path / "; touch x")
    assert assay_here("report", folder, "--out", "$(touch x)", folder=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {name, "; touch x", "$(touch x)"}


# ---- text that is not ours


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which every name and text is an attack."""
    folder = tmp_path_factory.mktemp("runs") / "hostile <script>"
    shutil.copytree(BAD / "runs" / "whole", folder)
    arms = {"offline": f"offline{ATTACK}", "online_teacher": "online_teacher", "online_student": "online_student"}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [renamed(inner) for inner in value]
        return arms.get(value, value) if isinstance(value, str) else value

    manifest = renamed(json.loads((folder / "manifest.json").read_text()))
    manifest |= {"recipe": ATTACK, "commit": ATTACK, "hardware": {ATTACK: ATTACK}}
    manifest["config"]["task"]["name"] = ATTACK
    manifest["config"]["models"] |= {"oracle": ATTACK, "teacher": ATTACK, "student": ATTACK}
    manifest["config"]["probe"]["judges"] = [{"name": ATTACK, "kind": "command", "higher_is_better": None}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    summary = renamed(json.loads((folder / "summary.json").read_text())) | {"task": ATTACK}
    summary["arms"][0] |= {
        "reason": ATTACK,
        "alarm_step": 1,
        "actions": [{"step": 1, "kind": "stop", "reason": ATTACK, "completions": None, "fraction": None}],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    records = [renamed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record |= {f"judge_{ATTACK}": 0.5, f"judge_{ATTACK}_stderr": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for file in ("probe.parquet", "responses.parquet"):
        table = pq.read_table(folder / file)
        for column in {"prompt", "text"} & set(table.column_names):
            texts = [f"{text}{ATTACK}" for text in table[column].to_pylist()]
            table = table.set_column(table.column_names.index(column), column, pa.array(texts))
        names = pa.array([arms.get(arm, arm) for arm in table["arm"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("arm"), "arm", names), folder / file)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, as a browser takes them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def assert_harmless_page(text: str) -> None:
    """No markup of strangers; of scripts only the page's own, whose hashes are in its policy, and data that is text."""
    assert not CONTROLS.search(text)
    for script in PAGE.script_texts:
        text = text.replace(f"<script>{script}</script>", "")
    text = re.sub(r'<script type="application/json" id="data">[^<>&]*</script>', "", text)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "link", "foreignobject"}
    assert text.count("<script") == text.count("<img") == 0
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src", "xlink:href", "action"):
            link = attributes.get(name) or "#"
            assert re.fullmatch(r"#[\w.-]*|(figures|tables)/\w+\.(svg|png|csv)", link), (tag, attributes)


def test_a_report_of_attacks_is_a_page_without_them(hostile: Path, tmp_path: Path) -> None:
    result = assay_here("report", hostile, "--out", "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert_harmless_page(text)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    assert "{{7*7}}" in text
    figures = list((tmp_path / "out" / "figures").glob("*.svg"))
    assert len(figures) > 3
    for figure in figures:
        root = ElementTree.fromstring(figure.read_text(encoding="utf-8"))
        assert not {element.tag.split("}")[1] for element in root.iter()} & {"script", "image", "a", "foreignObject"}
        assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]


@pytest.mark.parametrize("command", [["compare"], ["watch", "--once"], ["diagnose"], ["report"]])
def test_a_terminal_gets_no_escape_of_a_run(command: list[str], hostile: Path, tmp_path: Path) -> None:
    result = assay_here(*command, hostile, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not CONTROLS.search(result.stdout + result.stderr)


def test_a_terminal_gets_no_escape_of_a_file_or_an_error(tmp_path: Path) -> None:
    prompt = f"say this again and again, as often and as loudly as you can while you still have breath: {ATTACK}"
    rows = [{"prompt": f"\x1b[2J{prompt} {word}", "split": s} for word, s in (("or so", "train"), ("indeed", "test"))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("step,\x1b[2Jloss\n1,2\n")
    (tmp_path / "b.csv").write_text(f"step,eval_loss\n1,{'x' * 5000}\x9b31m\n2,1\n")
    for arguments, code in (
        (["tasks", "check", "a.jsonl", "--without-oracle"], 0),
        (["tasks", "check", "a.jsonl", "--template", "{\x1b[2J}"], 2),
        (["diagnose", "a.csv", "--proxy", "\x1b[2Jlos"], 2),
        (["diagnose", "b.csv"], 2),
        (["run", "\x1b[31mquickstart"], 2),
        (["report", "\x1b]0;title\x07"], 2),
    ):
        result = assay_here(*arguments, folder=tmp_path)
        assert result.returncode == code, result
        assert not CONTROLS.search(result.stdout + result.stderr), arguments
        assert len(result.stderr) < 1200


def test_a_model_card_says_attacks_as_text(hostile: Path) -> None:
    run = read_run(hostile)
    for entry in run.summary["arms"]:
        entry.setdefault("kept_step", entry["best_step"])
    card = model_card(run, run.summary["arms"][0]["source"], "best")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == ATTACK
    assert not CONTROLS.search(card)
    assert "<script" not in body
    assert "\nkey: value" not in body


# ---- folders that are not ours


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    for name in ("report.html", "figures/training_curves.svg"):
        (out / name).symlink_to(victim)
    assert assay_here("report", BAD / "runs" / "whole", "--out", out, folder=tmp_path).returncode == 0
    assert victim.read_text() == "precious"
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_an_error_tells_nothing_of_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:hunter2:0:0\n")
    for name in ("manifest.json", "summary.json", "metrics.jsonl", "probe.parquet", "responses.parquet"):
        folder = shutil.copytree(BAD / "runs" / "whole", tmp_path / name)
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
        result = assay_here("report", folder, folder=tmp_path)
        assert result.returncode == 2
        assert "hunter2" not in result.stdout + result.stderr


# ---- secrets


SECRETS = {
    "ASSAY_SERVER_API_KEY": "sk-3f9c0ffee5ecre7",
    "HF_TOKEN": "hf_0therS3cre7",
    "WANDB_API_KEY": "wb-7h1rdS3cre7",
}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("assay.workers.local_executor", lambda number, messages=None: ThreadPoolExecutor(1))
    model = load_model("define-teacher")
    assert isinstance(model, CausalModel)
    with Stub(model, load_tokenizer("define-teacher")) as stub:
        stub.models[0]["max_model_len"] = model.max_context_tokens
        yield stub


def assert_no_secret(folder: Path, *said: str) -> None:
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert places
    places |= {f"said {number}": text.encode() for number, text in enumerate(said)}
    for place, content in places.items():
        for secret in (*SECRETS.values(), "hunter2"):
            assert secret.encode() not in content, place


def prompts_file(folder: Path, number: int) -> Path:
    rows = [json.dumps({"prompt": f"noun: {a} {b}:"}) for a in "abcdefghijklmnop" for b in "qrstuvwxyz"][:number]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_no_key_is_written_or_said_by_a_run(stub: Stub, tmp_path: Path) -> None:
    sizes = ["--distillation.training.num-steps=2", "--probe.num-prompts=16", "--probe.num-monitored=8",
             "--probe.num-train-pairs=4", "--probe.num-shown=2", "--distillation.num-prompts=16"]  # fmt: skip
    result = assay_here(
        *("distill", "--teacher", stub.url, "--student", "define-student"),
        *("--prompts", prompts_file(tmp_path, 160), "--max-prompt-tokens", 24, "--max-response-tokens", 4),
        *("--source", "offline", *sizes, "--out", "run"),
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert set(stub.keys[1:]) <= {f"Bearer {SECRETS['ASSAY_SERVER_API_KEY']}", None}
    assert f"Bearer {SECRETS['ASSAY_SERVER_API_KEY']}" in stub.keys
    assert (tmp_path / "run" / "report.html").exists()
    assert_no_secret(tmp_path, result.stdout, result.stderr)


def test_no_key_is_said_when_a_server_repeats_it(stub: Stub, tmp_path: Path) -> None:
    key = SECRETS["ASSAY_SERVER_API_KEY"]
    for status, value in ((400, {"error": {"message": f"bad key {key}"}}), (403, {"error": key}), (200, [key])):
        stub.alter = lambda n, request, reply, s=status, v=value: reply if n < 0 else Reply(v, s)
        result = assay_here(
            *("answers", prompts_file(tmp_path, 2), "--server", stub.url, "--out", "answers.jsonl"), folder=tmp_path
        )
        assert result.returncode == 2, result
        assert_no_secret(tmp_path, result.stdout, result.stderr)


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?token=hunter2", "http://127.0.0.1:9/v1#hunter2"]
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    path = prompts_file(tmp_path, 160)
    config = {"task": {"name": str(path)}, "models": {"oracle": None, "teacher": url}}
    (tmp_path / "config.json").write_text("{}")
    for arguments in (
        ["answers", path, "--server", url, "--out", "answers.jsonl"],
        ["distill", "--teacher", url, "--student", "define-student", "--prompts", path, "--max-prompt-tokens", 24],
        ["doctor", "--teacher", url, "--student", "define-student", "--prompts", path, "--json"],
        ["run", "mine.json"],
    ):
        (tmp_path / "mine.json").write_text(json.dumps(config))
        result = assay_here(*arguments, folder=tmp_path)
        (tmp_path / "mine.json").unlink()
        assert result.returncode in (2, 3), result
        assert_no_secret(tmp_path, result.stdout, result.stderr)
    assert not (tmp_path / "runs").exists()


# ---- bombs


def test_a_parquet_file_of_kilobytes_does_not_unpack_to_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_rows, "MAX_TEXT_BYTES", 10_000_000)
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array(["x" * 10_000]))
    pq.write_table(pa.table({"prompt": one}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 20_000
    with pytest.raises(AssayError, match="unpacks to more than 10,000,000 bytes"):
        read_rows(tmp_path / "bomb.parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_line_of_a_hundred_megabytes_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x" * 100_000_000)
    result = assay_here("diagnose", name, folder=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr) < 1200
