"""A server that speaks vLLM's part of the OpenAI protocol for a tiny local model, and fails on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay.models.causal import CausalModel
from assay.types import Batch
from tiny_models import EOS, VOCAB_SIZE

MODEL = "tiny"


def word_tokenizer(words: str = "abcdefghijklmnopqrstu") -> PreTrainedTokenizerFast:
    """A tokenizer of 23 words, the end of a sequence first, for models of tests/tiny_models.py.

    Like Llama's it puts a special token before text, unless told not to.
    """
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *words])}
    assert (len(vocabulary), vocabulary["<eos>"]) == (VOCAB_SIZE, EOS)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


@dataclass(frozen=True)
class Reply:
    """What goes back; ``announced`` bytes of body are promised, all of them unless said."""

    value: Any = None
    status: int = 200
    body: bytes | None = None
    announced: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    waits: bool = False

    @property
    def content(self) -> bytes:
        return json.dumps(self.value).encode() if self.body is None else self.body


class Stub:
    """The server, at ``url`` while it is entered. Faults: ``alter(n, request, reply)`` of the n-th POST."""

    def __init__(self, model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.models: list[dict[str, Any]] = [{"id": MODEL, "max_model_len": 32}]
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.alter: Callable[[int, dict[str, Any], Reply], Reply] = lambda n, request, reply: reply
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Stub:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 20  # headers and body in one packet, or the client waits 40 ms for the second

            def do_GET(self) -> None:
                stub.keys.append(self.headers.get("Authorization"))
                known = self.path == "/v1/models"
                self._send(stub.alter(-1, {}, Reply({"data": stub.models}) if known else Reply(status=404)))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:  # one model for all threads
                    n = len(stub.requests)
                    stub.requests.append(request)
                    reply = stub.complete(request) if self.path == "/v1/completions" else Reply(status=404)
                self._send(stub.alter(n, request, reply))

            def _send(self, reply: Reply) -> None:
                if reply.waits:
                    stub._over.wait()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(reply.announced or len(reply.content)))
                self.end_headers()
                try:
                    self.wfile.write(reply.content)
                    self.wfile.flush()
                except OSError:  # whoever asked has gone
                    self.close_connection = True
                self.close_connection |= reply.announced is not None

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @torch.no_grad()
    def complete(self, request: dict[str, Any]) -> Reply:
        """The answer to a completion request, as vLLM gives it."""
        if request["model"] != MODEL:
            return Reply({"error": {"message": f"The model `{request['model']}` does not exist."}}, 404)
        ids = request["prompt"]
        if isinstance(ids, str):
            ids = self.tokenizer.encode(ids, add_special_tokens=request.get("add_special_tokens", True))
        if any(token >= self.model.vocab_size for token in ids):
            return Reply({"error": {"message": "a token id is out of vocabulary"}}, 400)
        choice: dict[str, Any] = {"index": 0, "text": "", "prompt_logprobs": None, "token_ids": None, "logprobs": None}
        if (listed := request.get("prompt_logprobs")) is not None:
            log_p_NV = self.model.log_probs(Batch([tuple(ids[:1])], [tuple(ids[1:])]))
            rows = [_row(log_p_V, own, listed) for log_p_V, own in zip(log_p_NV, ids[1:], strict=True)]
            choice["prompt_logprobs"] = [None, *rows]
        if request.get("return_token_ids"):
            sampled = self.model.sample([tuple(ids)], [request["seed"]], request["max_tokens"], request["temperature"])[
                0
            ]
            choice["token_ids"] = list(sampled)
            choice["logprobs"] = {"tokens": [f"token_id:{token}" for token in sampled]}
            choice["text"] = self.tokenizer.decode(sampled)
        return Reply({"choices": [choice]})


def _row(log_p_V: torch.Tensor, own: int, listed: int) -> dict[str, Any]:
    """The ``listed`` likeliest tokens of one position, and the prompt's own token wherever it ranks."""
    order = log_p_V.argsort(descending=True).tolist()
    return {
        str(token): {"logprob": max(float(log_p_V[token]), -9999.0), "rank": order.index(token) + 1}
        for token in dict.fromkeys([own, *order[:listed]])
    }


def with_choice(reply: Reply, **changes: Any) -> Reply:
    """The reply with other fields in its choice."""
    return replace(reply, value={"choices": [reply.value["choices"][0] | changes]})
