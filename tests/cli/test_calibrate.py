"""`adaptive-kv calibrate` measures once, says what it found, and tells the others."""

import json
from pathlib import Path

import pytest
from cli.conftest import Run
from engines import tokenizer
from models import make_module

FLAGS = ("--device", "cpu")


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, str]:
    """An environment with a cache of its own."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_it_shows_every_format_with_its_verdict(adaptive_kv: Run, kept: dict[str, str]) -> None:
    done = adaptive_kv("calibrate", *FLAGS, ADAPTIVE_KV_CACHE__MAX_KL="1e-4", **kept)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.rstrip() for line in done.stdout.splitlines() if line.split()}
    assert rows["full"].split()[-1] == "exact"
    assert rows["int8"].split()[-1] == "kept"
    assert rows["int4"].endswith("struck: KL over 0.0001")


def test_its_json_is_kept_and_plan_shows_it(adaptive_kv: Run, kept: dict[str, str]) -> None:
    before = adaptive_kv("plan", "--json", *FLAGS, **kept)
    assert json.loads(before.stdout)["calibration"] is None
    done = adaptive_kv("calibrate", "--json", *FLAGS, **kept)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["formats"]["int8"]["top1_agreement"] >= 0.99
    assert found["max_kl"] == 0.1
    assert json.loads(adaptive_kv("plan", "--json", *FLAGS, **kept).stdout)["calibration"] == found
    table = adaptive_kv("plan", *FLAGS, **kept).stdout
    assert "same top token" in table


def test_force_measures_again(adaptive_kv: Run, kept: dict[str, str]) -> None:
    first = adaptive_kv("calibrate", "--json", *FLAGS, **kept).stdout
    (file,) = Path(kept["XDG_CACHE_HOME"]).rglob("*.json")
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"perplexity": 1.5}))
    again = adaptive_kv("calibrate", "--json", *FLAGS, **kept).stdout
    assert json.loads(again)["perplexity"] == 1.5
    assert adaptive_kv("calibrate", "--json", "--force", *FLAGS, **kept).stdout == first


def test_a_model_that_is_not_packed_fails_and_says_why(adaptive_kv: Run, tmp_path: Path) -> None:
    make_module("deepseek_v3", vocab_size=4096).save_pretrained(tmp_path / "latent")
    tokenizer().save_pretrained(str(tmp_path / "latent"))
    done = adaptive_kv("calibrate", "--model", "latent", *FLAGS)
    assert done.returncode == 1
    assert "latent cannot be calibrated" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", [("--model", "./nowhere"), ("--memory-budget", "lots")])
def test_bad_configuration_exits_with_78(adaptive_kv: Run, wrong: tuple[str, ...]) -> None:
    done = adaptive_kv("calibrate", *wrong, *FLAGS)
    assert done.returncode == 78
    assert done.stderr.startswith("adaptive-kv: ")
