"""Run-time shape checks of every annotated function in the tested modules, and the end of each file's browser."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from jaxtyping import install_import_hook

import browser

install_import_hook(["assay.buckets", "assay.divergences", "assay.estimators", "assay.models"], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _no_browser_outlives_its_file() -> Iterator[None]:
    yield
    browser.close()
