"""`assay answers`: a chat API without log-probs fills a column that a student can be distilled from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from assay import runs
from assay.answering import Asked, write_answers
from assay.config import ServerConfig
from assay.data.user_rows import read_rows, stream_rows
from assay.errors import AssayError
from assay.text_writers import Generation, LeftOut, open_writer


class ChatApi:
    """Answers "SEED: the last message" to chat requests; ``alter(n, answer)`` may change the n-th answer's choice."""

    def __init__(self) -> None:
        self.models = ["one"]
        self.requests: list[dict[str, Any]] = []
        self.alter: Callable[[int, dict[str, Any]], Any] = lambda n, choice: choice

    def __enter__(self) -> ChatApi:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": name} for name in api.models]})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.requests.append(request)
                text = f"{request['seed']}: {request['messages'][-1]['content']}"
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                altered = api.alter(len(api.requests), choice)
                self._send(*(altered if isinstance(altered, tuple) else (200, {"choices": [altered]})))

            def _send(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api() -> Iterator[ChatApi]:
    with ChatApi() as api:
        yield api


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [{"prompt": f"word {i}", "reference": f"gloss {i}"} for i in range(9)]
    rows.append({"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "word 9"}]})
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def asked(api: ChatApi, **changes: Any) -> Asked:
    return Asked(api.url, ServerConfig(concurrency=1, max_retries=0), **{"number": 2} | changes)


def test_every_prompt_gets_its_responses_each_with_a_seed_of_its_own(api: ChatApi, prompts: Path) -> None:
    out = write_answers(prompts, prompts.with_name("out.jsonl"), asked(api))
    rows = read_rows(out, responses="responses")
    assert [len(row.responses) for row in rows] == [2] * 10
    assert all(text.endswith(f": word {i}") for i, row in enumerate(rows) for text in row.responses)
    assert len({request["seed"] for request in api.requests}) == 20
    assert rows[3].reference == "gloss 3"
    assert api.requests[-1]["messages"][0] == {"role": "system", "content": "be short"}
    assert {request["model"] for request in api.requests} == {"one"}
    assert sorted(path.name for path in prompts.parent.iterdir()) == ["out.jsonl", "prompts.jsonl"]


def test_an_interrupted_command_goes_on_and_ends_with_the_same_file(api: ChatApi, prompts: Path) -> None:
    whole = write_answers(prompts, prompts.with_name("whole.jsonl"), asked(api)).read_bytes()
    out, partial = prompts.with_name("out.jsonl"), prompts.with_name(".out.jsonl.partial")
    api.requests.clear()
    api.alter = lambda n, choice: (500, {}) if n > 13 else choice
    with pytest.raises(AssayError, match="gave no answer in 1 try"):
        write_answers(prompts, out, asked(api))
    assert not out.exists()
    with partial.open("a") as file:
        file.write('{"id": "torn')  # killed while it wrote
    api.alter, before = (lambda n, choice: choice), len(api.requests)
    assert write_answers(prompts, out, asked(api)).read_bytes() == whole
    assert len(api.requests) - before == 20 - 8, "what had come is not asked for again"
    assert not partial.exists()


def test_what_was_asked_for_otherwise_is_not_mixed(api: ChatApi, prompts: Path) -> None:
    api.alter = lambda n, choice: (500, {}) if n > 12 else choice
    with pytest.raises(AssayError):
        write_answers(prompts, prompts.with_name("out.jsonl"), asked(api))
    with pytest.raises(AssayError, match="asked for something else"):
        write_answers(prompts, prompts.with_name("out.jsonl"), asked(api, sampling_temperature=0.5))


def test_a_prompt_whose_response_was_cut_is_left_out_and_said_so(
    api: ChatApi, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.alter = lambda n, choice: choice | {"finish_reason": "length"} if n == 4 else choice
    out = write_answers(prompts, prompts.with_name("out.jsonl"), asked(api))
    assert [row.columns["prompt"] for row in read_rows(out, responses="responses")[:2]] == ["word 0", "word 2"]
    assert "1 of 10 prompts are left out" in capsys.readouterr().err
    api.alter = lambda n, choice: choice | {"finish_reason": "length"}
    with pytest.raises(AssayError, match="raise --max-tokens"):
        write_answers(prompts, prompts.with_name("none.jsonl"), asked(api))


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda n, choice: choice | {"message": {"content": " "}}, "no text for the prompt of line 1"),
        (lambda n, choice: choice | {"message": None}, "no text for the prompt of line 1"),
        (lambda n, choice: (200, {"choices": []}), "no text for the prompt of line 1"),
        (lambda n, choice: (200, [1]), "no text for the prompt of line 1"),
        (lambda n, choice: (401, {}), "wants a key"),
        (lambda n, choice: (404, {}), "refuses /chat/completions with status 404"),
    ],
)
def test_an_answer_that_is_none_ends_in_one_sentence(
    alter: Callable[[int, dict[str, Any]], Any], said: str, api: ChatApi, prompts: Path
) -> None:
    api.alter = alter
    with pytest.raises(AssayError, match=said):
        write_answers(prompts, prompts.with_name("out.jsonl"), asked(api))
    assert not prompts.with_name("out.jsonl").exists()


def test_what_cannot_be_asked_is_refused(api: ChatApi, prompts: Path) -> None:
    with pytest.raises(AssayError, match=r"a \.jsonl file"):
        write_answers(prompts, prompts.with_name("out.csv"), asked(api))
    with pytest.raises(AssayError, match="in a column that is none of"):
        write_answers(prompts, prompts.with_name("out.jsonl"), asked(api), "reference")
    with pytest.raises(AssayError, match="ask for 1 response or more"):
        asked(api, number=0)
    api.models = ["one", "two"]
    with pytest.raises(AssayError, match=r"serves 2 models \(one, two\)"):
        write_answers(prompts, prompts.with_name("out.jsonl"), asked(api))


def test_the_same_api_writes_long_jobs(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "say {n}", "id": "same"}}\n' for n in range(3)))
    with ChatApi() as api:
        api.alter = lambda n, choice: choice if n != 3 else choice | {"finish_reason": "length"}
        writer = open_writer(Generation(api.url, number=2, server=ServerConfig(concurrency=1)))
        first, cut, last = writer.write(list(stream_rows(path)))
    assert cut == LeftOut.CUT
    for texts, said in ((first, "say 0"), (last, "say 2")):
        assert isinstance(texts, list)
        assert [text.partition(": ")[2] for text in texts] == [said] * 2
    assert len({request["seed"] for request in api.requests}) == 6


def test_a_second_process_on_the_same_answers_is_refused(api: ChatApi, prompts: Path, tmp_path: Path) -> None:
    with (
        runs.locked(tmp_path, ".answers.jsonl.lock"),
        pytest.raises(AssayError, match=r"another process is working in .*choose another --out"),
    ):
        write_answers(prompts, tmp_path / "answers.jsonl", asked(api))
    assert api.requests == []
    write_answers(prompts, tmp_path / "other.jsonl", asked(api))
    assert sorted(path.name for path in tmp_path.iterdir() if path != prompts) == [".answers.jsonl.lock", "other.jsonl"]
