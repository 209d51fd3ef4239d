"""One world under each policy: what watching over an offline run is worth."""

from __future__ import annotations

import dataclasses

from assay.config import ArmConfig, Experiment, SourceConfig

_OFFLINE = (SourceConfig("teacher"),)
POLICY_ARMS = (
    ArmConfig("policy_auto", _OFFLINE, "auto"),
    ArmConfig("policy_stop", _OFFLINE, "stop"),
    ArmConfig("stop_on_patience", _OFFLINE, "stop", "patience"),
    ArmConfig("stop_on_references", _OFFLINE, "stop", "references"),
)
"""Offline arms that differ in who watches."""


def under_policies(world: Experiment) -> Experiment:
    """The world with an offline arm under each policy and alarm."""
    return dataclasses.replace(world, arms=POLICY_ARMS)
