import pytest
from adaptive_kv_policies.fixed import Fixed

from adaptive_kv.errors import UnknownModeError
from adaptive_kv.testing import make_reading


def test_it_wants_the_same_whatever_happens() -> None:
    policy = Fixed("int4")
    assert policy(make_reading()).mode == policy(make_reading(free_bytes=0)).mode == "int4"
    assert Fixed()(make_reading()).mode == "full"


def test_an_unknown_mode_is_refused_when_it_is_made() -> None:
    with pytest.raises(UnknownModeError):
        Fixed("int3")
