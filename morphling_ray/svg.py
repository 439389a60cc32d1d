"""SVG that takes its colours and its font from the page around it: light, dark and print alike.

Matplotlib draws with stand-in colours; `svg` turns each into a CSS variable of data/report.html, makes all ids unique
and drops everything that points outside.
"""

import atexit
import io
import os
import re
import sys
import tempfile
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER, ACCENT, MISSED = "#100001", "#100002", "#100003", "#100004", "#100005", "#100006"
SERIES = ("#100007", "#100008", "#100009", "#10000a")
STAGES = (*SERIES, "#10000b", "#10000c", "#10000d")
_VARIABLES = {
    **dict(zip((INK, MUTED, LINE, PAPER, ACCENT, MISSED), ("ink", "muted", "line", "paper", "accent", "missed"))),
    **{colour: f"s{i}" for i, colour in enumerate(STAGES, start=1)},
}
_WIDTH_IN = 8.6
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "morphling_ray",
    "text.parse_math": False,  # a unit such as $/h is no formula
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
    "savefig.transparent": True,
}


def style() -> AbstractContextManager[None]:
    """The settings to draw with."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        # Matplotlib keeps a list of fonts in the home directory; a run leaves nothing outside its own folder.
        folder = tempfile.TemporaryDirectory(prefix="morphling_ray-")
        atexit.register(folder.cleanup)
        os.environ["MPLCONFIGDIR"] = folder.name
    import matplotlib

    return matplotlib.rc_context(_RC)


def figure_of(height_in: float) -> "Figure":
    """An empty figure as wide as the page."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")


def svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page.

    Args:
        figure: What was drawn.
        name: Prefix of all its ids; use each once on a page.
        label: What a screen reader says.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening = rf'<svg \1 role="img" aria-label="{escape(label)}">'
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", opening, text, count=1)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{name}-\1"', text)
    text = re.sub(r"href=\"#([^\"]+)\"", rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    return re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", text)
