from adaptive_kv.testing import make_readings


def test_the_same_readings_every_time() -> None:
    assert list(make_readings(50)) == list(make_readings(50))
    assert list(make_readings(50)) != list(make_readings(50, seed=1))


def test_time_never_goes_back_and_steps_count() -> None:
    readings = list(make_readings(200))
    times = [reading.time_s for reading in readings]
    assert times == sorted(times)
    assert [reading.step for reading in readings] == list(range(200))


def test_they_reach_into_every_corner() -> None:
    readings = list(make_readings(2000))
    assert any(reading.memory.headroom_bytes < 0 for reading in readings)
    assert any(reading.memory.total_bytes == 0 for reading in readings)
    assert any(reading.pressure == float("inf") for reading in readings)
    assert any(len(reading.ladder) == 1 for reading in readings)
    assert any(reading.mode not in reading.ladder for reading in readings)
    assert any(not reading.sequences for reading in readings)
    assert any(len(reading.sequences) >= 40 for reading in readings)
    assert any(reading.latency.p95_s is None for reading in readings)
    assert any(reading.seconds_to_floor == 0 for reading in readings)
    assert any(not s.permits("int8") for reading in readings for s in reading.sequences)


def test_every_mode_in_use_has_its_cost_and_is_permitted() -> None:
    for reading in make_readings(500):
        assert {*reading.ladder, reading.mode} <= reading.costs.keys()
        assert all(sequence.permits(sequence.mode) for sequence in reading.sequences)
