"""Recording is compact and bounded, survives its process, and never makes anybody wait."""

import gzip
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from traces import growing, make_header, make_orders, record

from adaptive_kv.errors import TraceError
from adaptive_kv.policy import CacheMode, Cost
from adaptive_kv.tables import CostTable
from adaptive_kv.testing import make_reading, make_sequence
from adaptive_kv.trace import Recorder, read_trace
from adaptive_kv.trace.segments import Segments

KIB = 2**10


def tokens(path: Path) -> list[int]:
    return [moment.sequences[0].num_tokens for moment in read_trace(path).moments()]


def test_what_is_recorded_can_be_read(tmp_path: Path) -> None:
    record(tmp_path, growing(200), hz=100)
    trace = read_trace(tmp_path)
    assert trace.header == make_header()
    assert tokens(tmp_path) == list(range(100, 300))
    assert [m.time_s for m in trace.moments()] == pytest.approx([0.05 * i for i in range(200)])


def test_while_nothing_changes_so_many_a_second_are_kept(tmp_path: Path) -> None:
    record(tmp_path, growing(200, period_s=0.05), hz=1)
    assert tokens(tmp_path) == list(range(100, 300, 20))


def test_every_change_is_kept(tmp_path: Path) -> None:
    calm = growing(100)
    one, two = make_sequence("a"), make_sequence("b")
    changes = [
        make_reading(time_s=2000.01, sequences=[one], waiting=1),
        make_reading(time_s=2000.02, sequences=[one, two], waiting=0),
        make_reading(time_s=2000.03, sequences=[two], waiting=0),
        make_reading(time_s=2000.04, sequences=[make_sequence("b", mode="int8")], waiting=0),
    ]
    record(tmp_path, [*calm, *changes], hz=1)
    kept = list(read_trace(tmp_path).moments())[-4:]
    assert [m.waiting for m in kept] == [1, 0, 0, 0]
    assert [len(m.sequences) for m in kept] == [1, 2, 1, 1]
    assert kept[-1].sequences[0].mode == "int8"


def test_memory_that_moves_is_kept_more_often_than_memory_that_does_not(tmp_path: Path) -> None:
    total_bytes = 8 * 2**30
    for name, share in (("still", 0.0), ("ramp", 0.01)):
        readings = [
            make_reading(
                time_s=1000 + 0.05 * i, free_bytes=int(total_bytes * (0.9 - share * 0.2 * i))
            )
            for i in range(200)
        ]
        record(tmp_path / name, readings, hz=1)
    still, ramp = (len(tokens(tmp_path / name)) for name in ("still", "ramp"))
    assert still == 10
    assert 20 < ramp <= 100


def test_its_files_never_take_more_than_they_may_and_the_newest_stay(tmp_path: Path) -> None:
    limit_bytes = 64 * KIB
    readings = growing(6000)
    record(tmp_path, readings, max_bytes=limit_bytes, hz=100)
    files = sorted(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) <= limit_bytes
    assert files[0].name != "trace-00000001.jsonl.gz"
    kept = tokens(tmp_path)
    assert kept == list(range(6100 - len(kept), 6100))
    assert len(kept) > 1000


def test_a_new_run_goes_on_beside_the_old_one(tmp_path: Path) -> None:
    record(tmp_path, growing(3), hz=100)
    record(tmp_path, growing(3, start_s=5.0), hz=100)
    assert len(list(tmp_path.iterdir())) == 2
    assert tokens(tmp_path) == [100, 101, 102] * 2


def test_other_files_in_its_folder_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "notes.gz"
    mine.write_bytes(b"x" * 100 * KIB)
    record(tmp_path, growing(3000), max_bytes=16 * KIB, hz=100)
    assert mine.stat().st_size == 100 * KIB


def test_what_was_flushed_can_be_read_although_the_process_died(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    record(whole, growing(400), hz=100)
    (file,) = whole.iterdir()
    content = file.read_bytes()
    num_read = []
    for share in (0.3, 0.6, 0.9, 0.999):
        cut = tmp_path / "cut.jsonl.gz"
        cut.write_bytes(content[: int(share * len(content))])
        kept = tokens(cut)
        assert kept == list(range(100, 100 + len(kept)))
        num_read.append(len(kept))
    assert num_read == sorted(num_read)
    assert num_read[0] > 0


def test_what_is_open_can_be_read_up_to_the_last_flush(tmp_path: Path) -> None:
    segments = Segments(tmp_path, make_header().to_json(), KIB)
    (file,) = tmp_path.iterdir()
    assert list(read_trace(file).moments()) == []
    segments.write("{}")
    segments.flush()
    assert len(gzip_lines(file)) == 2
    segments.close()


def gzip_lines(file: Path) -> list[bytes]:
    lines: list[bytes] = []
    with suppress(EOFError), gzip.open(file) as packed:
        lines.extend(packed)
    return lines


def test_whoever_shows_readings_waits_for_nothing(tmp_path: Path) -> None:
    """The thread that writes hangs, on a cost table that hangs; what comes then is counted."""
    may_go_on = threading.Event()

    def hangs(_: CacheMode) -> Cost:
        may_go_on.wait()
        return Cost(bytes=1)

    recorder = Recorder(tmp_path, make_header(), max_bytes=2**20, hz=1)
    table = CostTable([CacheMode("full")], hangs)
    for number in range(1000):
        reading = replace(make_reading(time_s=float(number)), costs=table)
        recorder.note(reading, make_orders())
    num_dropped = recorder.num_dropped
    may_go_on.set()
    recorder.close()
    assert 1000 - 256 - 2 <= num_dropped <= 1000 - 256
    assert len(tokens(tmp_path)) == 1000 - num_dropped


def test_a_disk_that_fails_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    recorder = Recorder(folder, make_header(), max_bytes=KIB, hz=100)
    (file,) = folder.iterdir()
    file.unlink()
    folder.rmdir()
    for reading in growing(600):
        recorder.note(reading, make_orders())
    recorder.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense\n", b"{}\n", b'{"schema": "adaptive-kv.state/1"}\n', b"\x1f\x8bnonsense"],
)
def test_what_is_no_trace_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(TraceError, match="this is no trace"):
        read_trace(file)


def test_a_missing_file_and_an_empty_folder_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "missing")
    with pytest.raises(TraceError, match=r"trace\.path"):
        read_trace(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    record(tmp_path / "good", growing(3), hz=100)
    (file,) = (tmp_path / "good").iterdir()
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    bad = tmp_path / "bad"
    bad.write_bytes(b"".join([*lines[:2], b'{"t": 1, "seqs": [[1]]}\n', *lines[3:]]))
    with pytest.raises(TraceError, match="line 3 is damaged"):
        list(read_trace(bad).moments())


def test_of_a_folder_the_newest_stretch_recorded_alike_is_read(tmp_path: Path) -> None:
    for policy, start in (("fair", 0.0), ("ladder", 100.0), ("ladder", 200.0)):
        header = make_header(policy=policy, began_s=start)
        recorder = Recorder(tmp_path, header, max_bytes=2**20, hz=100)
        for reading in growing(2, start_s=7.0):
            recorder.note(reading, make_orders())
        recorder.close()
    trace = read_trace(tmp_path)
    assert trace.header.policy == "ladder"
    assert [m.time_s for m in trace.moments()] == pytest.approx([0, 0.05, 100, 100.05])
