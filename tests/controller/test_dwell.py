"""The wait before a way up grows with mistakes, and only with mistakes."""

from adaptive_kv.controller.dwell import MAX_FACTOR, Dwell


def _up_and_down(dwell: Dwell, time_s: float, lasting_s: float) -> None:
    dwell.note_up(time_s)
    dwell.note_down(time_s + lasting_s)


def test_every_way_up_that_does_not_last_doubles_the_wait_up_to_a_limit() -> None:
    dwell, waits_s = Dwell(5.0), []
    for number in range(6):
        _up_and_down(dwell, 1000.0 * number, lasting_s=9.0)
        waits_s.append(dwell.wait_s)
    assert waits_s == [10.0, 20.0, 40.0, 80.0, 5.0 * MAX_FACTOR, 5.0 * MAX_FACTOR]


def test_a_way_up_that_lasted_is_no_mistake_however_long_the_wait_has_become() -> None:
    dwell = Dwell(5.0)
    for number in range(4):
        _up_and_down(dwell, 1000.0 * number, lasting_s=1.0)
    _up_and_down(dwell, 9000.0, lasting_s=11.0)
    assert dwell.wait_s == 5.0


def test_the_way_up_is_open_once_the_wait_has_passed() -> None:
    dwell = Dwell(5.0)
    assert dwell.has_passed(0.0)
    _up_and_down(dwell, 100.0, lasting_s=1.0)
    assert not dwell.has_passed(110.9)
    assert dwell.has_passed(111.0)
