"""A served teacher and a stub of its server: the numbers are the local model's, and every fault ends in a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.config import ARMS, Experiment, ModelsConfig, ServerConfig, TrainingConfig, to_dict
from assay.data.signal_store import SignalStore
from assay.divergences import DIVERGENCES
from assay.errors import AssayError
from assay.models import server
from assay.models.cached import CachedLogProbs
from assay.models.loading import load_tokenizer
from assay.models.served import ServedModel
from assay.training import distillation_loss
from assay.types import Batch, TopK
from assay.validation import validate
from servers.stub import MODEL, Reply, Stub, with_choice, word_tokenizer
from tiny_models import EOS, VOCAB_SIZE, gpt2

BATCH = Batch([(5,), (7, 3, 9, 2), (4, 4)], [(3, 8, EOS), (6,), (2, 9, 4, 7, EOS)])
SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(server.API_KEY_VARIABLE, raising=False)
    monkeypatch.setattr(server, "_FIRST_DELAY_SECONDS", 0.0)
    with Stub(gpt2(3), word_tokenizer()) as running:
        yield running


def served(stub: Stub, **config: Any) -> ServedModel:
    return ServedModel(stub.url, word_tokenizer(), ServerConfig(**{"top_k": VOCAB_SIZE, "max_retries": 2, **config}))


def dense(signal: TopK) -> torch.Tensor:
    """Listed log-probabilities at their places; −∞ elsewhere, and never from a filler that repeats a token."""
    log_p_NV = torch.full((len(signal.log_p_NK), VOCAB_SIZE), -math.inf)
    return log_p_NV.scatter_reduce(1, signal.token_ids_NK, signal.log_p_NK, "amax")


# --- the numbers


def test_with_the_whole_vocabulary_listed_the_scores_are_the_local_models(stub: Stub) -> None:
    signal = served(stub).top_k(BATCH)
    assert signal.token_ids_NK.shape == signal.log_p_NK.shape == (BATCH.num_tokens, VOCAB_SIZE)
    assert torch.allclose(dense(signal), stub.model.log_probs(BATCH), atol=1e-5)
    assert (signal.log_tail_N == -math.inf).all()


@pytest.mark.parametrize("name", [name for name, row in DIVERGENCES.items() if row.needs == "distribution"])
def test_live_stored_listed_and_served_teachers_give_one_loss_and_gradient(
    name: str, stub: Stub, tmp_path: Path
) -> None:
    """Within 1e-5 of the live teacher's, through the training loss itself; what is stored is that to the last bit."""
    teacher, config = stub.model, TrainingConfig(divergence=name)

    def loss_and_gradient(cache: CachedLogProbs) -> tuple[torch.Tensor, torch.Tensor]:
        batch = Batch(BATCH.prompt_ids, BATCH.response_ids, cache.signal(cache.compute(BATCH)))
        student = gpt2(4)
        loss = distillation_loss(student, batch, config)
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])

    live = loss_and_gradient(CachedLogProbs(teacher))
    for cache, bound in (
        (SignalStore(teacher, tmp_path / "exact"), 0.0),
        (SignalStore(teacher, tmp_path / "listed", top_k=VOCAB_SIZE), 1e-5),
        (CachedLogProbs(served(stub)), 1e-5),
        (SignalStore(served(stub), tmp_path / "served"), 1e-5),
    ):
        for _ in range(2):  # a store computes first, and reads then
            loss, gradient = loss_and_gradient(cache)
            assert abs(loss - live[0]) <= bound * abs(live[0])
            assert (gradient - live[1]).norm() <= bound * live[1].norm()


@pytest.mark.parametrize("k", [1, 4, 22])
def test_listed_are_the_likeliest_and_the_responses_own_token_and_the_tail_is_the_rest(stub: Stub, k: int) -> None:
    signal = served(stub, top_k=k).top_k(BATCH)
    log_p_NV = stub.model.log_probs(BATCH).detach().double()
    own_N = torch.tensor([token for response in BATCH.response_ids for token in response])
    assert signal.token_ids_NK.shape == (BATCH.num_tokens, k + 1)
    for ids, log_p, tail, expected, own in zip(
        signal.token_ids_NK, signal.log_p_NK, signal.log_tail_N, log_p_NV, own_N, strict=True
    ):
        wanted = {int(own), *expected.argsort(descending=True)[:k].tolist()}
        real = log_p > -math.inf
        assert set(ids[real].tolist()) == wanted
        assert int(real.sum()) == len(wanted)
        assert ids[0] == expected.argmax()
        assert torch.equal(log_p, log_p.sort(descending=True).values)
        assert (ids[~real] == ids[0]).all()
        assert torch.allclose(log_p[real].double(), expected[ids[real]], atol=1e-5)
        rest = 1 - expected[sorted(wanted)].exp().sum()
        assert math.isclose(float(tail.double().exp()), float(rest), abs_tol=1e-6)


def test_a_row_is_scored_alike_whatever_the_batch(stub: Stub) -> None:
    model = served(stub, top_k=4)
    together = model.top_k(BATCH)
    alone = model.top_k(Batch(BATCH.prompt_ids[1:2], BATCH.response_ids[1:2]))
    assert torch.equal(together.token_ids_NK[3:4], alone.token_ids_NK)
    assert torch.equal(together.log_p_NK[3:4], alone.log_p_NK)


def test_samples_are_drawn_one_by_one_with_their_own_seeds_and_nothing_is_cut_from_the_law(stub: Stub) -> None:
    model = served(stub)
    del stub.requests[:]
    prompts, seeds = [(5,), (7, 3), (5,)], [3, 2**64 - 1, 3]
    responses = model.sample(prompts, seeds, 6, 0.7)
    assert responses == stub.model.sample(prompts, [3, 2**63 - 1, 3], 6, 0.7)
    assert responses[0] == responses[2]
    assert len(stub.requests) == 3
    assert {len(r) == 6 or r[-1] == EOS for r in responses} == {True}
    for request in stub.requests:
        asked = {"n": 1, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert asked.items() <= request.items()
        assert request["stop_token_ids"] == [EOS]
        assert 0 <= request["seed"] < 2**63


def test_ids_may_come_as_names_of_tokens(stub: Stub) -> None:
    model = served(stub)
    expected = model.sample([(5,)], [1], 6)
    stub.alter = lambda n, request, reply: with_choice(reply, token_ids=None)
    assert model.sample([(5,)], [1], 6) == expected


def test_the_first_batchs_mass_is_told_once(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    model = served(stub, top_k=4)
    model.top_k(BATCH)
    told = capsys.readouterr().err
    mass_N = torch.exp(model.top_k(BATCH).log_p_NK).sum(dim=-1).double()
    assert f"{mass_N.mean():.2%} of its mass on average ({mass_N.quantile(0.05):.2%}" in told
    assert capsys.readouterr().err == ""


def test_the_digest_is_of_the_model_the_tokenizer_and_k_and_not_of_the_place(stub: Stub) -> None:
    with Stub(gpt2(3), word_tokenizer()) as other:
        assert served(other).digest == served(stub).digest
        assert other.url != stub.url
    digests = {served(stub).digest, served(stub, top_k=4).digest}
    stub.models.append({"id": "another"})
    stub.alter = lambda n, request, reply: reply if n < 0 else stub.complete(request | {"model": MODEL})
    digests.add(served(stub, model="another").digest)
    stub.tokenizer = word_tokenizer("vbcdefghijklmnopqrstu")
    digests.add(ServedModel(stub.url, stub.tokenizer, ServerConfig(MODEL, VOCAB_SIZE)).digest)
    assert len(digests) == 4


# --- the start


def test_a_server_that_is_not_there_is_one_sentence(stub: Stub) -> None:
    stub.__exit__()
    with pytest.raises(AssayError, match=r"the server at http://127.0.0.1:\d+/v1 gave no answer in 1 try .*see that"):
        served(stub)


@pytest.mark.parametrize(
    ("models", "wanted", "message"),
    [
        ([{"id": MODEL}], "other", r"no model 'other' \(it has tiny\): name one in models.server.model"),
        ([{"id": MODEL}, {"id": "b"}], None, r"has 2 models \(tiny, b\): name one"),
        ([], None, r"has 0 models"),
        ([3], None, r"lists no models: give a URL that ends in /v1"),
    ],
)
def test_a_model_that_is_not_served_is_refused(stub: Stub, models: Any, wanted: str | None, message: str) -> None:
    stub.models = models
    with pytest.raises(AssayError, match=message):
        served(stub, model=wanted)


def test_a_url_without_the_protocol_behind_it_is_refused(stub: Stub) -> None:
    with pytest.raises(AssayError, match="refuses /models with status 404"):
        ServedModel(stub.url.removesuffix("/v1"), word_tokenizer(), ServerConfig())


def test_another_tokenizer_is_refused(stub: Stub) -> None:
    stub.tokenizer = word_tokenizer("abcdefghijklmnopqrsut")  # two words swapped
    with pytest.raises(AssayError, match=r"the tokenizer of tiny at .* is not the student's: .*ids"):
        served(stub)


def test_a_tokenizer_of_bytes_is_compared_on_all_of_its_vocabulary(stub: Stub) -> None:
    tokenizer = load_tokenizer("define-oracle")
    stub.model, stub.tokenizer = gpt2(0, vocab_size=512), tokenizer
    ServedModel(stub.url, tokenizer, ServerConfig(top_k=4))
    texts = [request["prompt"] for request in stub.requests if isinstance(request["prompt"], str)]
    touched = {token for text in texts for token in tokenizer.encode(text)}
    assert len(touched) > 100
    assert 0 in touched
    short = gpt2(0, vocab_size=511)
    stub.model = short
    with pytest.raises(AssayError, match="refuses /completions with status 400: a token id is out of vocabulary"):
        ServedModel(stub.url, tokenizer, ServerConfig(top_k=4))


def test_a_server_that_cannot_score_is_refused(stub: Stub) -> None:
    stub.alter = lambda n, request, reply: reply if n < 0 else with_choice(reply, prompt_logprobs=None)
    with pytest.raises(AssayError, match="answers without prompt_logprobs, so it cannot score given responses: serve"):
        served(stub)


def test_a_server_that_lists_too_few_says_what_it_gives(stub: Stub) -> None:
    said = Reply({"error": {"message": "Requested prompt logprobs of 23, which is greater than max allowed: 20"}}, 400)
    stub.alter = lambda n, request, reply: said if request.get("prompt_logprobs") else reply
    with pytest.raises(AssayError, match=r"status 400: Requested .* max allowed: 20 \(.*--max-logprobs 23 or more"):
        served(stub)


def test_lengths_leave_room_for_the_token_that_scoring_adds(stub: Stub) -> None:
    model = served(stub)
    model.check_lengths(20, 11)
    with pytest.raises(AssayError, match=r"needs 33 tokens .* has a context of 32"):
        model.check_lengths(20, 12)
    with pytest.raises(AssayError, match="needs 33 tokens"):
        model.sample([(2,) * 20], [0], 12)
    with pytest.raises(AssayError, match="empty"):
        model.top_k(Batch([()], [(2,)]))
    stub.models = [{"id": MODEL}]
    served(stub).check_lengths(20_000, 12_000)


def test_how_long_a_server_may_take_is_the_configs(stub: Stub) -> None:
    assert served(stub, timeout_seconds=7.5)._server._client.timeout.read == 7.5


def test_a_missing_library_is_one_sentence(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(AssayError, match=r"needs the library httpx2: pip install 'assay\[server\]'"):
        served(stub)


# --- faults on the way


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited for, none of them in truth."""
    monkeypatch.setattr(server, "_FIRST_DELAY_SECONDS", 0.5)
    waited: list[float] = []
    monkeypatch.setattr(server.time, "sleep", waited.append)
    return waited


def test_errors_that_pass_are_waited_for_twice_as_long_each_time(stub: Stub, waits: list[float]) -> None:
    model = served(stub, max_retries=9)
    expected, begun = model.top_k(BATCH[:1]), len(stub.requests)
    jitters: list[tuple[float, float]] = []
    model._server._jitter.uniform = lambda *bounds: jitters.append(bounds) or 1.0  # type: ignore[method-assign]
    faults = [Reply(status=status) for status in (500, 429, 502, 503, 504, 500, 500, 500)]
    faults.insert(2, Reply(status=429, headers={"Retry-After": "7"}))
    stub.alter = lambda n, request, reply: faults[n - begun] if n - begun < len(faults) else reply
    assert torch.equal(model.top_k(BATCH[:1]).log_p_NK, expected.log_p_NK)
    assert waits == [0.5, 1, 7, 4, 8, 16, 30, 30, 30]
    assert set(jitters) == {(0.5, 1.5)}


def test_nothing_is_waited_for_after_the_last_try_or_where_waiting_cannot_help(stub: Stub, waits: list[float]) -> None:
    model = served(stub, max_retries=3)
    for status, num_waits in ((500, 3), (400, 0), (401, 0)):
        stub.alter = lambda n, request, reply, status=status: Reply(status=status)
        with pytest.raises(AssayError):
            model.top_k(BATCH[:1])
        assert len(waits) == num_waits
        waits.clear()


def test_results_keep_their_order_when_one_comes_late(stub: Stub) -> None:
    model = served(stub)
    expected, begun = model.top_k(BATCH), len(stub.requests)
    stub.alter = lambda n, request, reply: Reply(status=500) if n == begun else reply
    assert torch.equal(model.top_k(BATCH).token_ids_NK, expected.token_ids_NK)


def test_so_many_requests_run_at_a_time_and_no_more(stub: Stub) -> None:
    """Each of six requests waits for another one: alone it would never be answered."""
    model = served(stub, concurrency=2)
    pair, lock, running, most = threading.Barrier(2), threading.Lock(), 0, 0

    def meet(n: int, request: dict[str, Any], reply: Reply) -> Reply:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait(30)
        with lock:
            running -= 1
        return reply

    stub.alter = meet
    model.sample([(5,)] * 6, range(6), 3)
    assert most == 2


def cut(reply: Reply) -> Reply:
    return dataclasses.replace(reply, body=reply.content[:-20])


def rows(reply: Reply, change: Any) -> Reply:
    return with_choice(reply, prompt_logprobs=change(list(reply.value["choices"][0]["prompt_logprobs"])))


def entry(log_p: float) -> dict[str, float]:
    return {"logprob": log_p}


SCORING_FAULTS = {
    "500 for ever": (lambda r: Reply(status=500), "gave no answer in 3 tries .status 500"),
    "connection lost": (lambda r: dataclasses.replace(r, announced=10_000), "gave no answer in 3 tries"),
    "no answer in time": (lambda r: Reply(waits=True), "gave no answer in 3 tries .*timeout_seconds"),
    "truncated JSON": (cut, "answers /completions with what is not JSON"),
    "a page": (lambda r: Reply(body=b"<html>hello</html>"), "not JSON .such as '<html>hello</html>'"),
    "another protocol": (lambda r: Reply({"data": []}), "without the one choice"),
    "two choices": (lambda r: Reply({"choices": r.value["choices"] * 2}), "without the one choice"),
    "moved": (lambda r: Reply(status=307, headers={"Location": "http://127.0.0.1:9/v1"}), "status 307"),
    "a position too few": (lambda r: rows(r, lambda rows: rows[:-1]), "scored 3 positions where 4 were asked for"),
    "a position too many": (lambda r: rows(r, lambda rows: [*rows, rows[-1]]), "scored 5 positions where 4"),
    "no tokens": (lambda r: rows(r, lambda rows: [*rows[:-1], None]), "lists no tokens"),
    "fewer tokens": (lambda r: rows(r, lambda rows: [*rows[:-1], {"0": entry(-1)}]), "lists 1 tokens where its 3"),
    "more tokens": (
        lambda r: rows(r, lambda rows: [*rows[:-1], {str(i): entry(-9) for i in range(5)}]),
        "lists 5 tokens where its 3",
    ),
    "not the scored token": (
        lambda r: rows(r, lambda rows: [*rows[:-1], {str(i): entry(-9) for i in (1, 2, 3)}]),
        "lists 3 tokens where its 3 likeliest and the scored one",
    ),
    "a token that is none": (lambda r: rows(r, lambda rows: [*rows[:-1], {"99": entry(-1)}]), "lists token 99, but"),
    "above 0": (
        lambda r: rows(r, lambda rows: [*rows[:-1], rows[-1] | {"0": entry(0.5)}]),
        "token 0 the log-probability 0.5: it must not be above 0",
    ),
    "not a number": (
        lambda r: rows(r, lambda rows: [*rows[:-1], rows[-1] | {"0": entry(math.nan)}]),
        "nan: it must not",
    ),
    "more than everything": (
        lambda r: rows(r, lambda rows: [*rows[:-1], {str(i): entry(-0.1) for i in (0, 1, 2)}]),
        "a mass of 2.7145: these are no probabilities",
    ),
    "refused": (lambda r: Reply({"error": {"message": "no\nsuch thing"}}, 400), "status 400: no such thing"),
    "no key": (lambda r: Reply(status=401), "wants a key: put it into the environment variable ASSAY_SERVER_API_KEY"),
}


@pytest.mark.parametrize("fault", SCORING_FAULTS)
def test_an_answer_that_cannot_be_used_is_one_sentence(stub: Stub, fault: str) -> None:
    spoil, message = SCORING_FAULTS[fault]
    model = served(stub, top_k=3, timeout_seconds=0.2 if fault == "no answer in time" else 30.0)
    stub.alter = lambda n, request, reply: spoil(reply)
    with pytest.raises(AssayError, match=message) as caught:
        model.top_k(BATCH[:1])
    assert "\n" not in str(caught.value)


def test_a_server_that_changes_its_answers_length_half_way_gives_nothing(stub: Stub) -> None:
    model, begun = served(stub), len(stub.requests)
    stub.alter = lambda n, request, reply: rows(reply, lambda rows: rows[:-1]) if n == begun + 2 else reply
    with pytest.raises(AssayError, match="positions where"):
        model.top_k(BATCH)


def test_a_vocabulary_that_is_larger_than_the_tokenizers_is_noticed_when_all_of_it_is_listed(stub: Stub) -> None:
    """A padded model: its rows beyond the tokenizer hold mass."""
    model = served(stub)

    def without_a_quarter(rows: list[Any]) -> list[Any]:
        less = {token: {"logprob": value["logprob"] + math.log(0.75)} for token, value in rows[-1].items()}
        return [*rows[:-1], less]

    stub.alter = lambda n, request, reply: rows(reply, without_a_quarter)
    with pytest.raises(AssayError, match=r"tokens a mass of 0.7500: it predicts tokens that the tokenizer has not"):
        model.top_k(BATCH[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"token_ids": None, "logprobs": None},
            "samples text without token ids.*distil from its text alone .models.teacher null",
        ),
        ({"token_ids": None, "logprobs": {"tokens": ["5", "3"]}}, "samples text without token ids"),
        ({"token_ids": ["5"]}, "samples text without token ids"),
        ({"token_ids": [2] * 7}, "sampled 7 tokens where 1 to 6"),
        ({"token_ids": []}, "sampled 0 tokens"),
        ({"token_ids": [2, 3, 99, 4, 2, 2]}, "ids beyond the tokenizer's 23"),
        ({"token_ids": [2, 3]}, "ended a response after 2 tokens"),
        ({"token_ids": [2, EOS, 3, EOS]}, "ended a response after 4 tokens"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(stub: Stub, changes: dict[str, Any], message: str) -> None:
    model = served(stub)
    stub.alter = lambda n, request, reply: with_choice(reply, **changes)
    with pytest.raises(AssayError, match=message):
        model.sample([(5,)], [1], 6)


def test_minus_infinity_comes_back_as_it_was(stub: Stub) -> None:
    model = served(stub, top_k=22)
    stub.alter = lambda n, request, reply: rows(reply, lambda rows: [*rows[:-1], rows[-1] | {"4": entry(-9999.0)}])
    signal = model.top_k(Batch([(5,)], [(2,)]))
    assert signal.token_ids_NK[0].tolist().count(4) == 1
    assert dense(signal)[0, 4] == -math.inf


# --- the key


def test_the_key_goes_to_the_server_and_nowhere_else(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(server.API_KEY_VARIABLE, f"{SECRET}\n")
    caplog.set_level(0)
    model = served(stub)
    model.top_k(BATCH)
    assert stub.keys == [f"Bearer {SECRET}"]
    said = [model.name, model.digest, repr(model), repr(vars(model)), repr(vars(model._server)["_client"])]
    for status in (400, 401, 500):
        stub.alter = lambda n, request, reply, status=status: Reply(
            {"error": {"message": f"bad key {SECRET}"}}, status=status
        )
        with pytest.raises(AssayError) as caught:
            model.top_k(BATCH)
        said.append(str(caught.value))
    stub.alter = lambda n, request, reply: Reply(body=f"hello {SECRET}".encode())
    with pytest.raises(AssayError, match="hello") as caught:
        model.top_k(BATCH)
    said += [str(caught.value), capsys.readouterr().err, caplog.text]
    assert "refuses the key in the environment variable" in said[-5]
    assert SECRET not in "".join(said)
    assert SECRET not in json.dumps(to_dict(Experiment(models=ModelsConfig(teacher=stub.url))))


def test_a_key_that_is_none_is_not_repeated(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.API_KEY_VARIABLE, "сек рет")
    with pytest.raises(AssayError, match="holds what no key can") as caught:
        served(stub)
    assert "сек" not in str(caught.value)


# --- configs


def served_experiment(teacher: str, **changes: Any) -> Experiment:
    base = Experiment(models=ModelsConfig(oracle=None, teacher=teacher, **changes))
    return dataclasses.replace(base, arms=(ARMS["offline"],))


def test_what_a_server_cannot_be_is_refused_before_anything_is_computed() -> None:
    validate(served_experiment("http://127.0.0.1:8000/v1"))
    for field, value in (("top_k", 0), ("timeout_seconds", 0.0), ("max_retries", -1), ("concurrency", 0)):
        config = ServerConfig(**{field: value})  # type: ignore[arg-type]
        with pytest.raises(AssayError, match=f"config field 'models.server.{field}' is {value}"):
            validate(served_experiment("http://127.0.0.1:8000/v1", server=config))
    with pytest.raises(AssayError, match="a server is one teacher"):
        validate(served_experiment("http://127.0.0.1:8000/v1", num_teachers=2))
    with pytest.raises(AssayError, match="a served teacher cannot be fine-tuned"):
        validate(Experiment(models=ModelsConfig(teacher="http://127.0.0.1:8000/v1")))


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@127.0.0.1/v1",
        f"https://127.0.0.1/v1?key={SECRET}",
        f"http://127.0.0.1/v1#{SECRET}",
        "http://",
        "http://host:port/v1",
        "http://[::1/v1",
        "http://127.0.0.1:8000/v1\n",
    ],
)
def test_a_url_holds_a_place_and_no_secret(url: str) -> None:
    with pytest.raises(AssayError, match=r"http://host:port/v1") as caught:
        validate(served_experiment(url))
    assert SECRET not in str(caught.value)
