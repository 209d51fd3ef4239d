"""Checks of what a config says about logits and dropout. They need no weights."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig

from assay.doctor.case import Case
from assay.doctor.findings import Outcome, passed, warning

SOFT_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
_NOT_OF_THE_BODY = ("summary_first_dropout", "classifier_dropout", "classif_dropout")
"""Dropout of heads that a language model does not have."""


def soft_cap(case: Case) -> Outcome:
    """D007: soft caps and logit scale as the configs say, and a cap that a model's architecture has and it lacks."""
    said = []
    for side in case.sides:
        config = side.config.get_text_config()
        siblings = _default_of(config)
        for name in SOFT_CAPS:
            usual, own = getattr(siblings, name, None), getattr(config, name, None)
            if usual and not own:
                return warning(
                    f"soft cap ignored: {name} is {own} in the {side.role}'s config.json, while models of type "
                    f"{config.model_type} are trained with {usual:g}: its law would be another than it was trained to",
                    f"set {name} to {usual:g}, unless this model was trained without it",
                )
        cap, scale = getattr(config, SOFT_CAPS[0], None), getattr(config, "logit_scale", None)
        said.append(f"{side.role}: soft cap {cap or 'none'}, logit scale {scale or 1:g}")
    return passed("; ".join(said))


def _default_of(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The config of the model's type as transformers has it; None for a type that it does not list."""
    try:
        return AutoConfig.for_model(config.model_type)
    except ValueError:
        return None


def dropout(case: Case) -> Outcome:
    """D008: rates of dropout above 0 in the configs."""
    rates = {side.role: _rates(side.config.get_text_config()) for side in case.sides}
    if not any(rates.values()):
        return passed("no dropout in any config")
    found = "; ".join(
        f"the {role}'s config has " + ", ".join(f"{name} {rate:g}" for name, rate in its.items())
        for role, its in rates.items()
        if its
    )
    effects = {
        "teacher": "assay scores the teacher without it, a trainer that leaves it on gives noisy targets",
        "student": "the training loss is measured with it on and lies above the same student's proxy",
    }
    return warning(
        f"{found}: " + "; ".join(effects[role] for role, its in rates.items() if its),
        "set these to 0 in config.json, unless you want them as a regulariser",
    )


def _rates(config: PreTrainedConfig) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if ("dropout" in name or name.endswith("pdrop") or name == "layerdrop") and name not in _NOT_OF_THE_BODY
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    }
