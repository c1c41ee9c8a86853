"""A model is calibrated once, and again when anything that decides the result has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import EOS, MIB, make_settings, tokenizer
from models import prepared
from schemas import validate
from structlog.testing import capture_logs

from adaptive_kv.cli.service import _info
from adaptive_kv.config import Settings
from adaptive_kv.documents import DocumentMaker
from adaptive_kv.engine import calibration_record as record
from adaptive_kv.engine.calibrating import calibrated, calibrated_at_load, known_calibration
from adaptive_kv.engine.loading import LoadedModel, embedded_model, load_model
from adaptive_kv.engine.losses import Calibration
from adaptive_kv.engine.planning import outline
from adaptive_kv.engine.service import start_engine
from adaptive_kv.errors import ConfigError
from adaptive_kv.events import EventLog

MADE_UP = 0.0625


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where systemd would have this unit keep what can be made again."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


def settings_of(model: Path | None = None, **cache: Any) -> Settings:
    given = {"ladder": ("full", "int8", "int4"), "recent": 128, **cache}
    path = None if model is None else str(model)
    # A short text, because these tests are not about its length.
    return make_settings(model={"path": path, "device": "cpu", "max_context": 320}, cache=given)


def the_record(records: Path) -> Path:
    (file,) = records.glob("[!.]*")
    return file


def falsify(file: Path) -> None:
    """Have a record say what nobody would measure."""
    found = json.loads(file.read_text())
    found["formats"]["int8"]["kl_divergence"] = MADE_UP
    file.write_text(json.dumps(found))


def kl(found: Calibration | None) -> float:
    assert found is not None
    return found.formats["int8"].kl_divergence


def test_what_was_measured_is_not_measured_again_unless_asked_to(records: Path) -> None:
    settings = settings_of()
    loaded = load_model(settings.model)
    first = calibrated(settings, loaded)
    assert calibrated(settings, loaded) == first
    falsify(the_record(records))
    assert kl(calibrated(settings, loaded)) == MADE_UP
    assert kl(calibrated(settings, loaded, is_forced=True)) == kl(first)
    assert kl(calibrated(settings, loaded)) == kl(first)


def test_plan_finds_it_without_the_weights(records: Path) -> None:
    settings = settings_of()
    _, outlined = outline(settings.model)
    assert known_calibration(settings, outlined) is None
    measured = calibrated(settings, load_model(settings.model))
    assert known_calibration(settings, outlined) == measured


def test_other_weights_are_another_model(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_model(), folder)
    settings = settings_of(folder)
    calibrated(settings, load_model(settings.model))
    falsify(the_record(records))
    weights = folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1000] ^= 1
    weights.write_bytes(changed)
    assert kl(calibrated(settings, load_model(settings.model))) != MADE_UP
    assert len(list(records.iterdir())) == 2


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"num_tokens": "many"}', "\udcff"])
def test_a_broken_record_is_measured_anew_and_mended(records: Path, broken: str) -> None:
    settings = settings_of()
    loaded = load_model(settings.model)
    first = calibrated(settings, loaded)
    file = the_record(records)
    file.write_bytes(broken.encode("utf-8", "surrogateescape"))
    with capture_logs() as logs:
        assert calibrated(settings, loaded) == first
    assert [log["event"] for log in logs] == ["calibration_unreadable", "calibrating"]
    assert json.loads(file.read_text())["num_tokens"] == 320


def test_where_nothing_can_be_kept_it_is_measured_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "file"))
    settings = settings_of()
    loaded = load_model(settings.model)
    with capture_logs() as logs:
        first, second = calibrated(settings, loaded), calibrated(settings, loaded)
    assert first is not None
    assert first == second
    assert [log["event"] for log in logs] == 2 * ["calibrating", "calibration_not_kept"]


def test_what_memory_cut_short_is_used_and_not_kept(records: Path) -> None:
    settings = settings_of(slab=64 * 1024)
    loaded = load_model(settings.model)
    limit = loaded.model.weights_bytes + 6 * MIB
    tight = settings.model_copy(
        update={"memory": settings.memory.model_copy(update={"budget": limit})}
    )
    found = calibrated(tight, loaded)
    assert found is not None
    assert found.num_tokens == 160
    assert not records.exists()


def test_a_model_that_cannot_be_packed_has_nothing_to_calibrate(records: Path) -> None:
    loaded = LoadedModel(
        name="tiny",
        model=prepared("deepseek_v3"),
        tokenizer=tokenizer(),
        eos_ids=frozenset({EOS}),
    )
    assert calibrated(settings_of(), loaded) is None


def test_a_ladder_without_packed_rungs_needs_no_calibration(records: Path) -> None:
    settings = settings_of(ladder=("full", "window:64", "disabled"))
    assert calibrated_at_load(settings, load_model(settings.model)) is None
    assert not records.exists()


# From the calibration to the ladder


def test_a_format_past_the_limit_is_neither_on_the_ladder_nor_in_the_info(records: Path) -> None:
    ladder = ("full", "int8", "int4", "window:64+int4", "window:64", "disabled")
    settings = settings_of(ladder=ladder, max_kl=1e-4)
    engine = start_engine(settings, EventLog())
    try:
        assert engine.ladder == ("full", "int8", "window:64", "disabled")
        documents = DocumentMaker(lambda: engine.mailbox.status, node="box", boot_id="00c0ffee")
        info = json.loads(_info(engine, documents, settings, engine.ladder).to_json())
    finally:
        engine.stop()
    validate("info", info)
    assert info["ladder"] == list(engine.ladder)
    assert info["calibration"]["max_kl"] == 1e-4
    struck = {name: loss["struck"] for name, loss in info["calibration"]["formats"].items()}
    assert struck == {"int8": False, "int4": True}


def test_a_ladder_of_struck_formats_alone_is_bad_configuration(records: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.max_kl"):
        start_engine(settings_of(ladder=("int4",), max_kl=1e-9), EventLog())


def test_the_log_tells_whoever_waits_and_warns_of_what_is_struck(records: Path) -> None:
    settings = settings_of(max_kl=1e-4)
    loaded = load_model(settings.model)
    with capture_logs() as logs:
        calibrated_at_load(settings, loaded)
    assert [(log["event"], log.get("format"), log["log_level"]) for log in logs] == [
        ("calibrating", None, "info"),
        ("format_calibrated", "int8", "info"),
        ("format_struck", "int4", "warning"),
    ]


# Where records are kept, and under which name


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"CACHE_DIRECTORY": "/a:/b", "XDG_CACHE_HOME": "/x"}, "/a/calibration"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/adaptive-kv/calibration"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/adaptive-kv/calibration"),
    ],
)
def test_records_are_kept_where_the_system_wants_them(
    given: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert record.records_folder() == Path(wanted)


def _sparse(folder: Path) -> None:
    """A shard of 64 MiB of zeros, which is sampled."""
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(64 * MIB)


def _write(name: str, at: int, content: bytes = b"x") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(at)
            file.write(content)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    _sparse(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        _write("config.json", 0),
        _write("tokenizer.json", 0),
        _write("model.safetensors", 0),
        _write("model.safetensors", 64 * MIB - 1),
        _write("model.safetensors", 64 * MIB),
        _write("model.safetensors", 40 * MIB, bytes(range(256)) * 1024),
        lambda folder: (folder / "more.safetensors").write_bytes(b""),
    ],
    ids=["config", "tokenizer", "header", "end", "longer", "some of the middle", "another file"],
)
def test_the_name_of_a_record_changes_with_the_files(
    folder: Path, change: Callable[[Path], None]
) -> None:
    before = record.fingerprint(folder, dtype="float32")
    assert record.fingerprint(folder, dtype="float32") == before
    change(folder)
    assert record.fingerprint(folder, dtype="float32") != before


def test_what_does_not_decide_the_result_changes_no_name(folder: Path, tmp_path: Path) -> None:
    before = record.fingerprint(folder, dtype="float32")
    (folder / "README.md").write_text("about it")
    moved = folder.rename(tmp_path.with_name("moved"))
    assert record.fingerprint(moved, dtype="float32") == before
    assert record.fingerprint(moved, dtype="bfloat16") != before
