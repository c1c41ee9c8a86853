"""Plots of the benchmarks: one look for all, and the same bytes for the same figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_PAPER, _INK, _FAINT = "#fbfaf7", "#23272f", "#9aa1ab"
_OURS = ("#2f6f73", "#d9a441", "#c8643c", "#7d3a4f", "#4a3a63")
_THEIRS = ("#9aa1ab", "#6b8f9c", "#b3a58a", "#8c8c94", "#c0b7c9", "#7b8794")

Line = Sequence[tuple[float, float]]


def draw_lines(
    file: Path,
    *,
    title: str,
    x_label: str,
    y_label: str,
    ours: Mapping[str, Line],
    theirs: Mapping[str, Line],
    levels: Mapping[str, float] | None = None,
) -> None:
    """Write an SVG: ours in colour, theirs in grey, `levels` as dots across. Both axes double."""
    with mpl.rc_context({"svg.hashsalt": "adaptive-kv", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.6), facecolor=_PAPER, layout="constrained")
        axes: Any = figure.subplots()
        axes.set_facecolor(_PAPER)
        for colors, lines, style in ((_THEIRS, theirs, "--"), (_OURS, ours, "-")):
            for number, (name, line) in enumerate(lines.items()):
                color = colors[number % len(colors)]
                axes.plot(*zip(*line, strict=True), style, color=color, label=name, lw=1.8)
        for name, level in (levels or {}).items():
            axes.axhline(level, color=_FAINT, lw=0.8, ls=":")
            place = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
            axes.annotate(name, (0.01, level), **place, color=_INK, fontsize=8)
        _label(axes, title, x_label, y_label)
        _double(axes, [x for line in (*ours.values(), *theirs.values()) for x, _ in line])
        figure.savefig(file, format="svg", metadata={"Date": None})


def _label(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _double(axes: Any, places: Sequence[float]) -> None:
    """Of the places that were measured those are named that are doubles of the first."""
    first = min(places)
    named = [x for x in sorted(set(places)) if math.log2(x / first).is_integer()]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(named, [f"{x / 1024:g}k" if x >= 1024 else f"{x:g}" for x in named])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
