"""`adaptive-kv replay` lays policies side by side on a recorded trace."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from matplotlib.image import imread
from traces import make_moment, make_trace, seen

from adaptive_kv.trace import Moment

Run = Callable[..., CompletedProcess[str]]
MIB = 2**20


def _moments(num: int) -> list[Moment]:
    """Two sequences that grow, and memory that is short from half of them on."""
    return [
        make_moment(
            float(i), (400 if i < num / 2 else 60) * MIB, [seen(0, 400 + i), seen(1, 100 + 4 * i)]
        )
        for i in range(num)
    ]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """A minute of a made-up box."""
    return str(make_trace(tmp_path / "short.jsonl.gz", _moments(60)))


def test_the_record_and_every_policy_are_a_column(adaptive_kv: Run, trace: str) -> None:
    done = adaptive_kv("replay", trace, "--policy", "ladder", "--policy", "fair")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["recorded", "ladder", "fair"] in rows
    assert "under the floor" in done.stdout
    assert "tokens in int4" in done.stdout


def test_json_carries_the_same_figures_in_their_units(adaptive_kv: Run, trace: str) -> None:
    done = adaptive_kv("replay", trace, "--policy", "ladder", "--json")
    document = json.loads(done.stdout)
    (ladder,) = document["policies"]
    assert (ladder["policy"], document["recorded"]["policy"]) == ("ladder", "recorded")
    assert ladder["tokens"] == document["recorded"]["tokens"] == 59 * 5
    assert ladder["under_floor_s"] < 2 < document["recorded"]["under_floor_s"]
    assert sum(ladder["share_by_mode"].values()) + ladder["late_share"] == pytest.approx(
        1, abs=1e-3
    )


def test_options_go_to_the_policies_in_turn(adaptive_kv: Run, trace: str) -> None:
    two = ("--policy", "fixed", "--policy", "fixed")
    modes = ("--options", '{"mode": "int4"}', "--options", '{"mode": "int8"}')
    document = json.loads(adaptive_kv("replay", trace, *two, *modes, "--json").stdout)
    int4, int8 = document["policies"]
    assert int4["share_by_mode"]["int4"] > 0.9
    assert int8["share_by_mode"]["int8"] > 0.9
    done = adaptive_kv("replay", trace, "--policy", "fixed", *modes)
    assert (done.returncode, done.stdout) == (78, "")
    assert "--options" in done.stderr


def test_the_plot_has_a_panel_for_the_record_and_every_policy(
    adaptive_kv: Run, trace: str, tmp_path: Path
) -> None:
    heights = []
    for policies in (["ladder"], ["ladder", "fair"]):
        picture = tmp_path / f"{len(policies)}.png"
        named = [part for name in policies for part in ("--policy", name)]
        done = adaptive_kv("replay", trace, *named, "--plot", str(picture))
        assert done.returncode == 0, done.stderr
        pixels = imread(picture)
        assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, 4)}) > 5
        heights.append(pixels.shape[0])
    assert heights[1] > heights[0] * 1.3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.jsonl.gz", "--policy", "ladder"], "cannot be read"),
        (["other.gz", "--policy", "ladder"], "this is no trace"),
        (["short.jsonl.gz", "--policy", "nobody"], "nobody"),
        (["short.jsonl.gz", "--policy", "ladder", "--plot", "no/where.png"], "cannot be written"),
        (["short.jsonl.gz"], "--policy"),
    ],
)
def test_what_cannot_be_replayed_or_drawn_is_told(
    adaptive_kv: Run, trace: str, tmp_path: Path, arguments: list[str], told: str
) -> None:
    with gzip.open(tmp_path / "other.gz", "wb") as other:
        other.write(b'{"something": "else"}\n')
    done = adaptive_kv("replay", *arguments)
    assert done.returncode == 78
    assert told in done.stderr
    assert "Traceback" not in done.stderr
