"""Scripts, styles and data inside a page: it opens offline, and its browser runs the scripts of this package alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from assay.report.words import visible

CHARTS = ("uPlot.iife.min.js", "charts.js", "controls.js")
"""What every page with interactive curves needs; after it comes the page's own script."""
CHART_STYLES = ("uPlot.min.css", "charts.css")
_FOLDER = Path(__file__).parent / "assets"
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Assets:
    """Scripts and style sheets of ``assets/`` by file name, in the order in which a page has them."""

    scripts: Sequence[str] = CHARTS
    styles: Sequence[str] = CHART_STYLES

    @cached_property
    def script_texts(self) -> list[Markup]:
        """What goes between ``<script>`` and ``</script>``, to the byte: its hash is in ``policy``."""
        return [Markup((_FOLDER / name).read_text(encoding="utf-8")) for name in self.scripts]

    @property
    def style_text(self) -> Markup:
        """All style sheets as one."""
        return Markup("\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in self.styles))

    @property
    def policy(self) -> str:
        """The Content-Security-Policy: nothing is loaded, and only these scripts run."""
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in self.script_texts]
        scripts = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
        return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'"


def embed(value: Any) -> Markup:
    """A value as JSON for within ``<script type="application/json">``: no text in it can end the element.

    Control characters become symbols, as in all of the page. Raises ValueError for NaN and infinities.
    """
    text = json.dumps(_visible(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ESCAPES))


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value, keep="\n\t")
    if isinstance(value, dict):
        return {_visible(key): _visible(each) for key, each in value.items()}
    return [_visible(each) for each in value] if isinstance(value, (list, tuple)) else value
