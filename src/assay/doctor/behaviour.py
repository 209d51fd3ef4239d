"""Checks of what the two models do on real prompts. They need the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.divergences import DIVERGENCES, forward_kl
from assay.doctor.case import MEASURED_PROMPTS, Case
from assay.doctor.findings import Outcome, not_applicable, passed, refusal, warning
from assay.errors import AssayError
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.statistics import paired_difference
from assay.types import Batch

PADDING_MASS = 1e-3
"""Probability on padded rows above which cutting them changes the law."""
SCORE_TOLERANCE = 1e-3
"""Nats between a token's score and the same computed by hand, in float32."""
ITSELF_NATS = 1e-5
"""KL per token of a model from itself, over two batch sizes."""
SAME_NATS = 1e-6
"""Divergence per token of a law from itself: rounding of the mixtures in float32."""
COMPARED_SEQUENCES = 4
MANY_CUT = 0.25
MANY_EMPTY = 0.1
SIGNIFICANT = 2.0
"""Standard errors."""


def runs_in_assay(case: Case) -> Outcome:
    """D016: models load as a run loads them, logits are those of hidden states, decoding agrees with scoring."""
    for side in case.sides:
        try:
            _ = side.model
        except AssayError as error:
            return refusal(
                f"the {side.role} does not run in assay: {error}", "mend the checkpoint as said, or choose another"
            )
    ways = [f"{s.role}: {'layers written out' if s.model.steps_directly else 'its module'}" for s in case.sides]
    return passed(
        "all load; logits made from hidden states (with scale, bias and soft cap) are the models' own, and cached "
        f"decoding agrees with scoring ({', '.join(ways)})"
    )


@torch.no_grad()
def padding_mass(case: Case) -> Outcome:
    """D017: the probability that each model holds on rows beyond the tokenizer's ids, along teacher responses."""
    padded = [side for side in case.sides if side.vocab_size > case.num_ids]
    if not padded:
        return not_applicable("no model has rows beyond the tokenizer's ids")
    mass = {side.role: _mean_padding(side.model, case.teacher_pairs) for side in padded}
    what = "probability on padded rows per response token: " + ", ".join(f"{k} {v:.2g}" for k, v in mass.items())
    if max(mass.values()) <= PADDING_MASS:
        return passed(what, **mass)
    return warning(
        f"{what}: a run cuts these rows off, and the laws that it compares are noticeably other ones",
        "expect distances of the cut laws",
        **mass,
    )


def _mean_padding(model: PretrainedModel, pairs: Batch) -> float:
    total = 0.0
    for prompt, response in zip(pairs.prompt_ids, pairs.response_ids, strict=True):
        with model.evaluating():
            law_NV = _logits_by_hand(model, prompt, response).softmax(dim=-1)
        total += law_NV[:, model.vocab_size :].sum().item()
    return total / pairs.num_tokens


@torch.no_grad()
def labels_in_place(case: Case) -> Outcome:
    """D018: scores of one unpadded response are those of the whole sequence's logits, shifted by hand."""
    pairs = case.teacher_pairs
    i = max(range(len(pairs)), key=lambda i: len(pairs.response_ids[i]))
    one, response = pairs[i : i + 1], pairs.response_ids[i]
    largest = 0.0
    for side in case.sides:
        with side.model.evaluating():
            ours_N = _scores(side.model.log_probs(one), response)
            logits_NV = _logits_by_hand(side.model, pairs.prompt_ids[i], response)
        by_hand_NV = logits_NV[:, : side.model.vocab_size].log_softmax(dim=-1)
        differences = {
            0: _furthest(ours_N, _scores(by_hand_NV, response)),
            1: _furthest(ours_N[:-1], _scores(by_hand_NV[1:], response[:-1])),
            -1: _furthest(ours_N[1:], _scores(by_hand_NV[:-1], response[1:])),
        }
        if not differences[0] <= SCORE_TOLERANCE:  # nor where it is not a number
            shift = next((by for by in (1, -1) if differences[by] <= SCORE_TOLERANCE), None)
            cause = (
                "labels are shifted: each token is scored with the law of the position "
                f"{'after' if shift == 1 else 'before'} it"
                if shift
                else "labels or masks are shifted, or the law is not the model's"
            )
            return refusal(
                f"the {side.role}'s scores are {differences[0]:.3g} nats from the whole sequence's logits: {cause}",
                "trust no loss of this model: update transformers and assay, or report it",
                difference_nats=differences[0],
            )
        largest = max(largest, differences[0])
    return passed(
        f"scores of {len(response)} response tokens are within {largest:.1g} nats of the whole sequence's logits, "
        "shifted by hand",
        difference_nats=largest,
    )


def _logits_by_hand(model: PretrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """[N, rows] the module's own logits at the response's tokens of one sequence, on all of its output rows."""
    prompt_1T, response_1T = (torch.tensor([ids], device=model.device) for ids in (prompt, response))
    if model.module.config.is_encoder_decoder:
        start_11 = torch.full_like(response_1T[:, :1], model.module.config.decoder_start_token_id)
        fed_1T = torch.cat([start_11, response_1T[:, :-1]], dim=1)
        logits_NV = model.module(input_ids=prompt_1T, decoder_input_ids=fed_1T).logits[0]
    else:
        logits_NV = model.module(input_ids=torch.cat([prompt_1T, response_1T], dim=1)).logits[0, len(prompt) - 1 : -1]
    return logits_NV.float()


def _scores(log_p_NV: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    return log_p_NV[torch.arange(len(token_ids)), torch.tensor(token_ids, dtype=torch.long)]


def _furthest(one_N: Tensor, other_N: Tensor) -> float:
    """The largest difference; infinite where there is nothing to compare, or as many things on neither side."""
    if len(one_N) != len(other_N) or len(one_N) == 0:
        return math.inf
    return (one_N - other_N).abs().max().item()


@torch.no_grad()
def student_is_itself(case: Case) -> Outcome:
    """D019: every divergence of the student from itself is 0, and so is its KL across batch sizes and padding."""
    model = case.student.model
    pairs = case.teacher_pairs[: min(COMPARED_SEQUENCES, len(case.teacher_pairs))]
    with model.evaluating():
        together_NV = model.log_probs(pairs)
        alone_NV = torch.cat([model.log_probs(pairs[i : i + 1]) for i in range(len(pairs))])
    same = {
        name: row.function(together_NV, together_NV).abs().nan_to_num(nan=math.inf).max().item()
        for name, row in DIVERGENCES.items()
        if row.needs == "distribution"
    }
    itself = forward_kl(together_NV, alone_NV).mean().item()
    worst = max(same, key=lambda name: same[name])
    numbers = {"kl_nats_per_token": itself, "largest_divergence_nats": same[worst]}
    if same[worst] > SAME_NATS:
        return refusal(
            f"{worst} of the student from itself is {same[worst]:.3g} nats, not 0",
            "its log-probabilities are not finite: check the weights",
            **numbers,
        )
    if not abs(itself) < ITSELF_NATS:
        return refusal(
            f"KL of the student from itself is {itself:.3g} nats per token when {len(pairs)} sequences are scored "
            "together and one by one: padding or masks enter its scores",
            "trust no loss of this model: update transformers and assay, or report it",
            **numbers,
        )
    return passed(
        f"{len(same)} divergences of the student from itself are 0, KL across batch sizes {itself:.1g} nats per token",
        **numbers,
    )


@torch.no_grad()
def better_teacher(case: Case) -> Outcome:
    """D020: negative log-likelihood per token of references, under both models."""
    if case.teacher is None:
        return not_applicable(case.why_no_teacher)
    rows = [i for i in case.kept if case.rows[i].reference is not None]
    rows = rows[:: max(1, len(rows) // (2 * MEASURED_PROMPTS))][: 2 * MEASURED_PROMPTS]
    if len(rows) < 2:
        return not_applicable("there are no two references that could be scored")
    prompts = [case.all_prompt_ids[i] for i in rows]
    responses = [case.reference_ids(case.rows[i].reference or "")[: case.request.max_response_tokens] for i in rows]
    pairs = Batch(prompts, responses)
    teacher, student = (_nll_per_token(side.model, pairs) for side in case.sides)
    gap = paired_difference(teacher, student)
    means = [sum(values) / len(values) for values in (teacher, student)]
    what = f"{len(rows)} references cost the teacher {means[0]:.3g} nats per token, the student {means[1]:.3g}"
    numbers = {"teacher_nats_per_token": means[0], "student_nats_per_token": means[1]}
    if gap.stderr is not None and gap.value > SIGNIFICANT * gap.stderr:
        return warning(
            f"{what}: the teacher is the worse one, and the student would unlearn",
            "check that teacher and student are not swapped and that the prompts are rendered as the teacher expects",
            **numbers,
        )
    return passed(what, **numbers)


def _nll_per_token(model: LanguageModel, pairs: Batch) -> list[float]:
    values = []
    for i, response in enumerate(pairs.response_ids):
        with model.evaluating():
            values.append(-_scores(model.log_probs(pairs[i : i + 1]), response).mean().item())
    return values


@torch.no_grad()
def first_distance(case: Case) -> Outcome:
    """D021: KL(teacher‖student) per token along teacher responses, before any step.

    Where the teacher's law is not here: the student's negative log-likelihood of them, which is that up to a constant.
    """
    pairs, total = case.teacher_pairs, 0.0
    for i, response in enumerate(pairs.response_ids):
        with case.student.model.evaluating():
            log_q_NV = case.student.model.log_probs(pairs[i : i + 1])
        if case.teacher is None:
            total -= _scores(log_q_NV, response).sum().item()
            continue
        with case.teacher.model.evaluating():
            total += forward_kl(case.teacher.model.log_probs(pairs[i : i + 1]), log_q_NV).sum().item()
    share = 0.5 if case.teacher is not None else 0.8  # an NLL has the teacher's own entropy in it
    distance, uniform = total / pairs.num_tokens, math.log(case.num_ids)
    name = "nll_nats_per_token" if case.teacher is None else "kl_nats_per_token"
    quantity = "the student's NLL of the teacher's responses" if case.teacher is None else "KL(teacher‖student)"
    what = f"{quantity} is {distance:.3g} nats per token at the start"
    if distance <= share * uniform:
        return passed(what, **{name: distance})
    return warning(
        f"{what}, above {share:.0%} of ln V = {uniform:.3g}: that far apart are models of another template, another "
        "order of the vocabulary, or an untrained student",
        "read a few responses of both to the same prompt before training",
        **{name: distance},
    )


def response_lengths(case: Case) -> Outcome:
    """D022: teacher responses that are cut at the limit, and empty ones."""
    if case.request.responses is not None:
        return not_applicable("D025 has looked at all of them")
    pairs, eos = case.teacher_pairs, case.tokenizer.eos_token_id
    cut = sum(ids[-1] != eos for ids in pairs.response_ids) / len(pairs)
    empty = sum(ids == (eos,) for ids in pairs.response_ids) / len(pairs)
    what = (
        f"of {len(pairs)} teacher responses {cut:.0%} are cut at {case.request.max_response_tokens} tokens, {empty:.0%}"
        f" are empty, the mean has {pairs.num_tokens / len(pairs):.3g} tokens"
    )
    numbers = {"cut_share": cut, "empty_share": empty}
    if cut > MANY_CUT:
        return warning(
            f"{what}: the student is rarely shown how a response ends",
            "raise --max-response-tokens, or check that the end-of-sequence token is the one that the teacher writes",
            **numbers,
        )
    if empty > MANY_EMPTY:
        return warning(
            f"{what}: the teacher ends at once",
            "check the chat template, and that prompts do not end with the end-of-sequence token",
            **numbers,
        )
    return passed(what, **numbers)
