"""Draws replays: a panel each, free memory against the floor above, the share of modes below."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_kv.errors import ConfigError
from adaptive_kv.policy import CacheMode
from adaptive_kv.replay.course import Course
from adaptive_kv.replay.replaying import Replayed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 1600
"""More than the picture has columns; of several moments in one, the lowest memory is shown."""

_MIB = 2**20
_HOUR_S = 3 * 3600.0
_PAPER, _INK, _FAINT = "#fbfaf7", "#23272f", "#9aa1ab"
_FREE, _CACHE, _FLOOR = "#6b8f9c", "#d9cdb4", "#b3392f"
_SHADES = ("#2f6f73", "#7fb1a1", "#d9a441", "#c8643c", "#7d3a4f", "#4a3a63", "#23272f")


def plot(file: Path, title: str, replays: Sequence[Replayed], ladder: Sequence[CacheMode]) -> None:
    """Write a PNG. Raises `ConfigError` where matplotlib is missing or `file` cannot be written."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError:
        why = "drawing needs matplotlib; pip install 'adaptive-kv[plot]'"
        raise ConfigError(f"--plot: {why}") from None
    figure = Figure(figsize=(11, 0.8 + 2.6 * len(replays)), facecolor=_PAPER, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12)
    ratios = [3.2, 1] * len(replays)
    axes: Any = figure.subplots(2 * len(replays), 1, sharex=True, height_ratios=ratios)
    for index, replayed in enumerate(replays):
        assert replayed.course is not None
        _draw(axes[2 * index], axes[2 * index + 1], replayed, replayed.course, ladder)
    is_long = max(each.course.time_s[-1] for each in replays if each.course) > _HOUR_S
    axes[-1].set_xlabel("hours" if is_long else "seconds", color=_INK)
    if is_long:
        axes[-1].xaxis.set_major_formatter(lambda seconds, _: f"{seconds / 3600:g}")
        axes[-1].xaxis.set_major_locator(_every_hours(axes[-1]))
    axes[0].legend(loc="upper right", ncols=3, frameon=False, fontsize=8)
    axes[1].legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(ladder), frameon=False, fontsize=8
    )
    try:
        figure.savefig(file, dpi=110, format="png")
    except OSError as error:
        raise ConfigError(f"--plot: {file} cannot be written: {error.strerror}") from error


def _every_hours(axes: "Axes") -> Any:
    from matplotlib.ticker import MultipleLocator  # noqa: PLC0415 - optional

    hours = (axes.get_xlim()[1] - axes.get_xlim()[0]) / 3600
    return MultipleLocator(3600 * max(1, round(hours / 12)))


def _draw(
    above: "Axes", below: "Axes", replayed: Replayed, course: Course, ladder: Sequence[CacheMode]
) -> None:
    figures = replayed.figures
    shown = list(_lowest(course))
    times = [course.time_s[i] for i in shown]
    free = [course.free_bytes[i] / _MIB for i in shown]
    floor = [course.floor_bytes[i] / _MIB for i in shown]
    cache = [course.cache_bytes[i] / _MIB for i in shown]
    above.fill_between(times, cache, color=_CACHE, label="cache", lw=0, step="post")
    above.plot(times, free, color=_FREE, lw=1.2, label="free", drawstyle="steps-post")
    above.plot(times, floor, color=_FLOOR, lw=1, ls="--", label="floor")
    broken = [here < least for here, least in zip(free, floor, strict=True)]
    above.fill_between(times, free, floor, where=broken, color=_FLOOR, alpha=0.6, lw=0, step="post")
    above.set_ylabel("MiB", color=_INK)
    above.set_ylim(bottom=min(0, *free))
    above.set_title(_caption(figures), loc="left", fontsize=9, color=_INK)
    modes = list(dict.fromkeys([*ladder, *(mode for i in shown for mode in course.modes[i])]))
    shares = [
        [course.modes[i][mode] / max(1, course.modes[i].total()) for i in shown] for mode in modes
    ]
    shades = [_SHADES[place % len(_SHADES)] for place in range(len(modes))]
    below.stackplot(times, shares, colors=shades, labels=modes, lw=0, step="post")
    below.set_ylim(0, 1)
    below.set_yticks([])
    below.set_ylabel("modes", color=_INK, fontsize=8)
    for axes in (above, below):
        axes.set_facecolor(_PAPER)
        axes.margins(x=0)
        axes.tick_params(colors=_INK, labelsize=8)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_FAINT)


def _caption(figures: Any) -> str:
    return (
        f"{figures.policy}   {figures.under_floor_s:g} s under the floor, "
        f"{figures.switches_down + figures.switches_up} switches, "
        f"{figures.lossy_share:.0%} of tokens in a lossy mode"
    )


def _lowest(course: Course) -> Iterator[int]:
    """The moments to draw: all, or of each of `MAX_POINTS` stretches the one lowest on memory."""
    num = len(course.time_s)
    if num <= MAX_POINTS:
        yield from range(num)
        return
    for point in range(MAX_POINTS):
        stretch = range(point * num // MAX_POINTS, (point + 1) * num // MAX_POINTS)
        yield min(stretch, key=course.free_bytes.__getitem__)
