"""Run-time shape checks of every annotated function in the tested modules."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook(["assay.buckets", "assay.divergences", "assay.estimators", "assay.models"], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
