"""How every figure looks: colours, matplotlib's style, an axis of steps; the same bytes for the same figure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#e3e6ea", "#ffffff"
ARM_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a6a58")
"""After Okabe and Ito: told apart by readers with any common colour blindness, each on light and on dark."""
_TOL = ("#ddcc77", "#aa4499", "#44aa99", "#88ccee", "#999933", "#882255", "#cc6677", "#117733", "#332288")
PHASE_COLOURS = (*_TOL, "#bbbbbb")
PALETTE = {"ink": INK, "muted": MUTED, "grid": GRID, "card": PAPER}
PALETTE |= {f"arm-{number}": colour for number, colour in enumerate(ARM_COLOURS)}
PALETTE |= {f"phase-{number}": colour for number, colour in enumerate(PHASE_COLOURS)}
"""The colours that the page may replace in the dark, by name."""

STYLE: dict[str, Any] = {
    # Text stays text: readers can select it, search it and hear it, and the page can recolour it in the dark.
    "svg.fonttype": "none",
    # Element ids are otherwise random: the same run must give the same bytes.
    "svg.hashsalt": "assay",
    # Arm names come from files; a dollar sign in one is a dollar sign, not the start of a formula.
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    # A fixed place: looking for a free one means laying out every tick twice.
    "axes.titley": 1.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def in_style() -> AbstractContextManager[None]:
    """Within it figures are drawn and saved in ``STYLE``, whatever a user has set."""
    return matplotlib.style.context(["default", STYLE])


def to_svg(figure: Figure) -> str:
    """A figure that was drawn ``in_style`` as SVG text; called there, the same bytes for the same figure."""
    data = BytesIO()
    figure.savefig(data, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return data.getvalue().decode("utf-8")


def to_png(figure: Figure) -> bytes:
    """The same figure as a PNG of 300 dpi on white, for papers that take no SVG."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=300, facecolor="white", metadata={"Software": None})
    return data.getvalue()


class StartAxis:
    """A logarithmic axis with room for 0: its point stands apart at the left edge, behind a break."""

    def __init__(self, values: np.ndarray) -> None:
        positive = values[values > 0]
        self.first, self.last = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
        # No run spans more decades; a damaged file may span more than a float.
        self.first = max(self.first, self.last / 1e12)
        self.decades = max(np.log10(self.last / self.first), 0.5)
        self.zero = self.first / 10 ** (0.14 * self.decades)

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where values stand on the axis: themselves, and 0 at its left edge."""
        return np.where(values > 0, values, self.zero)

    def apply(self, axes: Axes, label: str) -> None:
        """Give ``axes`` this scale, its ticks and the break."""
        axes.set_xscale("log")
        axes.set_xlim(self.zero / 10 ** (0.03 * self.decades), self.last * 10 ** (0.04 * self.decades))
        plain_ticks(axes.xaxis, [self.zero, *round_values(self.first, self.last)], zero=self.zero)
        axes.set_xlabel(label)
        centre, half = (self.zero * self.first) ** 0.5, 10 ** (0.008 * self.decades)
        ends, style = [centre / half, centre * half], {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(ends, [0, 0], color=PAPER, lw=3, zorder=3, **style)
        axes.plot(ends, [0, 0], ls="", marker=[(-1, -2), (1, 2)], ms=7, mew=0.9, color=MUTED, zorder=4, **style)


def round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between two values while that is few; then fewer, down to powers of ten."""
    exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    values: list[float] = []
    for leading in ((1, 2, 5), (1, 3), (1,)):
        values = [d * 10.0**e for e in exponents for d in leading if low <= d * 10.0**e <= high]
        if len(values) <= 6:
            break
    return values


def plain_ticks(axis: Axis, values: Sequence[float], zero: float | None = None) -> None:
    """Ticks at these values and nowhere else, in plain numbers; ``zero`` is the place that stands for 0."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == zero else f"{value:,g}"))
