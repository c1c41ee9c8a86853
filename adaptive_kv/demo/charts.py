"""The charts of the report: inline SVG, coloured by the style sheet's variables alone."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from statistics import quantiles

from adaptive_kv.demo.timeline import Gap, Sample, Timeline

MIB = 2**20
WIDTH, _LEFT, _RIGHT = 1000, 76, 12
_BUCKET_S = 0.5
_LANE, _LANE_GAP = 11, 2


def kind(mode: str) -> str:
    """The style class of a mode: its name without its length."""
    return "window" if mode.startswith("window") else mode


@dataclass(frozen=True, slots=True)
class Across:
    """Time from left to right, the same in every chart."""

    end_s: float

    def x(self, time_s: float) -> float:
        """Where a moment stands."""
        share = min(1.0, max(0.0, time_s / max(self.end_s, 1e-9)))
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def ticks(self) -> list[float]:
        """Round moments, ten or so."""
        step_s = next(step for step in (1, 2, 5, 10, 20, 30, 60, 1e9) if self.end_s / step <= 12)
        return [i * step_s for i in range(int(self.end_s / step_s) + 1)]


def memory_chart(timeline: Timeline, across: Across, height: int = 210) -> str:
    """Above the floor: what the cache holds, and over it what is still free."""
    samples = timeline.samples
    tops = [sample.room_bytes for sample in samples]
    most = _nice(max(tops, default=1) / MIB) * MIB

    def y(num_bytes: float) -> float:
        return round(height - 24 - (height - 34) * num_bytes / most, 1)

    free = _area(across, y, samples, tops)
    cache = _area(across, y, samples, [sample.cache_bytes for sample in samples])
    grid = (_level(y(most * i / 4), f"{most * i / 4 / MIB:.0f}") for i in range(1, 5))
    lowest = f'<line class="floor" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(0)}" y2="{y(0)}"/>'
    return _svg(
        height,
        "memory above the floor in MiB",
        (*grid, f'<path class="free" d="{free}"/>', f'<path class="cache" d="{cache}"/>'),
        _marks(timeline, across, height),
        (lowest, f'<text class="axis" x="{_LEFT - 8}" y="{y(0) + 4}">floor</text>'),
        _clock(across, height),
    )


def squeeze_chart(timeline: Timeline, across: Across, height: int = 100) -> str:
    """What the second process holds."""
    held = [sample.held_bytes for sample in timeline.samples]
    most = _nice(max(held, default=1) / MIB) * MIB

    def y(num_bytes: float) -> float:
        # Room is left above for the names of the phases.
        return round(height - 24 - (height - 52) * num_bytes / most, 1)

    path = _area(across, y, timeline.samples, held)
    return _svg(
        height,
        "memory held by the second process in MiB",
        (_level(y(most), f"{most / MIB:.0f}"), f'<path class="held" d="{path}"/>'),
        _phases(timeline, across),
        _clock(across, height),
    )


def modes_chart(timeline: Timeline, across: Across) -> str:
    """The service's mode on top, one band per sequence below, coloured by mode."""
    lanes = _lanes(timeline.samples)
    height = 26 + len(lanes) * (_LANE + _LANE_GAP) + 26
    service = [Stretch(sample.time_s, sample.mode) for sample in timeline.samples]
    parts = [_band(across, "service", _merged(service, across.end_s), 2, 16)]
    for number, lane in enumerate(lanes):
        y = 26 + number * (_LANE + _LANE_GAP)
        parts += [_band(across, id_, stretches, y, _LANE) for id_, stretches in lane]
    label = f'<text class="axis" x="{_LEFT - 8}" y="14">service</text>'
    below = f'<text class="axis" x="{_LEFT - 8}" y="40">sequences</text>'
    return _svg(height, "mode of every sequence", parts, (label, below), _clock(across, height))


def latency_chart(timeline: Timeline, across: Across, height: int = 150) -> str:
    """The wait for a token as clients saw it: median, and the slowest twentieth."""
    buckets = list(_buckets(timeline.gaps))
    times_s = [gap_s for _, *both in buckets for gap_s in both]
    low, high = floor(log10(min(times_s, default=0.01))), ceil(log10(max(times_s, default=0.1)))
    high = max(high, low + 1)

    def y(gap_s: float) -> float:
        return round(height - 24 - (height - 34) * (log10(gap_s) - low) / (high - low), 1)

    grid = (_level(y(10.0**power), _duration(10.0**power)) for power in range(low, high + 1))
    median = _line((across.x(time_s), y(gap_s)) for time_s, gap_s, _ in buckets)
    slowest = _line((across.x(time_s), y(gap_s)) for time_s, _, gap_s in buckets)
    return _svg(
        height,
        "seconds per token",
        (*grid, f'<path class="p95" d="{slowest}"/>', f'<path class="p50" d="{median}"/>'),
        _marks(timeline, across, height),
        _clock(across, height),
    )


@dataclass(frozen=True, slots=True)
class Stretch:
    """From `start_s` on something is in `mode`; to `end_s` where that is known."""

    start_s: float
    mode: str
    end_s: float = 0.0


def _lanes(samples: Sequence[Sample]) -> list[list[tuple[str, list[Stretch]]]]:
    """Sequences, each in the first lane that is free when it begins."""
    seen: dict[str, list[Stretch]] = {}
    for sample, following in pairwise([*samples, *samples[-1:]]):
        for id_, mode in sample.modes.items():
            seen.setdefault(id_, []).append(Stretch(sample.time_s, mode, following.time_s))
    lanes: list[list[tuple[str, list[Stretch]]]] = []
    ends: list[float] = []
    for id_, stretches in seen.items():
        place = next((i for i, end_s in enumerate(ends) if end_s <= stretches[0].start_s), None)
        if place is None:
            place = len(lanes)
            lanes.append([])
            ends.append(0.0)
        lanes[place].append((id_, _merged(stretches, stretches[-1].end_s)))
        ends[place] = stretches[-1].end_s
    return lanes


def _merged(stretches: Sequence[Stretch], end_s: float) -> list[Stretch]:
    """Neighbours of one mode as one, each with its end."""
    if not stretches:
        return []
    firsts = [s for i, s in enumerate(stretches) if i == 0 or stretches[i - 1].mode != s.mode]
    ends = [*(s.start_s for s in firsts[1:]), end_s]
    return [Stretch(s.start_s, s.mode, end) for s, end in zip(firsts, ends, strict=True)]


def _band(across: Across, name: str, stretches: Iterable[Stretch], y: int, height: int) -> str:
    parts = []
    for stretch in stretches:
        x, end = across.x(stretch.start_s), across.x(stretch.end_s)
        told = f"{name}: {stretch.mode}, {stretch.start_s:.1f} to {stretch.end_s:.1f} s"
        parts.append(
            f'<rect class="{escape(kind(stretch.mode))}" x="{x}" y="{y}" '
            f'width="{max(0.5, end - x):.1f}" height="{height}">'
            f"<title>{escape(told)}</title></rect>"
        )
        if height > _LANE and end - x > 8 * len(stretch.mode) + 8:
            parts.append(f'<text class="on" x="{x + 5}" y="{y + 12}">{escape(stretch.mode)}</text>')
    return "".join(parts)


def _buckets(gaps: Iterable[Gap]) -> Iterator[tuple[float, float, float]]:
    """Middle of a bucket, median and 95th percentile of the waits in it."""
    ordered = sorted(gaps, key=lambda gap: gap.time_s)
    times_s = [gap.time_s for gap in ordered]
    start = 0
    while start < len(ordered):
        number = int(times_s[start] / _BUCKET_S)
        stop = bisect_right(times_s, (number + 1) * _BUCKET_S)
        waits_s = [max(gap.gap_s, 1e-4) for gap in ordered[start:stop]]
        cuts = quantiles(waits_s, n=20, method="inclusive") if len(waits_s) > 1 else waits_s * 19
        yield (number + 0.5) * _BUCKET_S, cuts[9], cuts[18]
        start = stop


def _area(
    across: Across, y: Callable[[float], float], samples: Sequence[Sample], values: Sequence[int]
) -> str:
    if not samples:
        return ""
    points = [(across.x(s.time_s), y(value)) for s, value in zip(samples, values, strict=True)]
    return f"{_line([(points[0][0], y(0)), *points, (points[-1][0], y(0))])}Z"


def _line(points: Iterable[tuple[float, float]]) -> str:
    text = "L".join(f"{x:g},{y:g}" for x, y in points)
    return f"M{text}" if text else ""


def _level(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
    return f'{line}<text class="axis" x="{_LEFT - 8}" y="{y + 4}">{label}</text>'


def _marks(timeline: Timeline, across: Across, height: int) -> Iterator[str]:
    """A line wherever the mode of the service changed."""
    for before, after in pairwise(timeline.samples):
        if before.mode != after.mode:
            x = across.x(after.time_s)
            yield f'<line class="mark" x1="{x}" x2="{x}" y1="4" y2="{height - 24}"/>'


def _phases(timeline: Timeline, across: Across) -> Iterator[str]:
    """The names of the parts of the run, where each begins."""
    for phase in timeline.phases:
        yield f'<text class="phase" x="{across.x(phase.time_s) + 4}" y="22">{phase.name}</text>'


def _clock(across: Across, height: int) -> list[str]:
    return [
        f'<text class="time" x="{across.x(time_s)}" y="{height - 6}">{time_s:g} s</text>'
        for time_s in across.ticks()
    ]


def _svg(height: int, title: str, *parts: Iterable[str]) -> str:
    inside = "".join(part for group in parts for part in group)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{inside}</svg>"
    )


def _nice(value: float) -> float:
    """The next round number that four steps divide well."""
    power = 10.0 ** floor(log10(max(value, 4)))
    steps = (1, 1.2, 1.6, 2, 2.4, 2.8, 3.2, 4, 4.8, 5.6, 6.4, 7.2, 8, 10)
    return next(step * power for step in steps if step * power >= value)


def _duration(duration_s: float) -> str:
    return f"{duration_s * 1000:g} ms" if duration_s < 1 else f"{duration_s:g} s"
