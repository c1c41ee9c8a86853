import pytest
from adaptive_kv_policies.latency_guard import LatencyGuard

from adaptive_kv.errors import PolicyError
from adaptive_kv.policy import Cost, Decision, Policy, Reading
from adaptive_kv.testing import make_reading

LADDER = ("full", "int8", "int4", "disabled")
TOKEN_S = {"full": 0.060, "int8": 0.045, "int4": 0.030, "disabled": 0.900}
BYTES = {"full": 1000, "int8": 530, "int4": 280, "disabled": 120}


def at(p95_s: float | None, mode: str = "full", **token_s: float | None) -> Reading:
    costs = {
        each: Cost(bytes=BYTES[each], token_s=(TOKEN_S | token_s)[each]) for each in LADDER
    }  # fmt: skip
    return make_reading(p95_s=p95_s, mode=mode, ladder=LADDER, costs=costs)


def wanting(mode: str | None) -> Policy:
    return lambda _: Decision(mode, "inner", {"a": "int8"}, admit=False) if mode else None


def wanted(inner: str | None, now: Reading) -> str | None:
    decision = LatencyGuard(0.05, wanting(inner))(now)
    return decision.mode if decision else None


@pytest.mark.parametrize(
    ("inner", "now", "mode"),
    [
        (None, at(0.04), None),
        (None, at(None), None),
        (None, at(0.06), "int4"),
        (None, at(0.06, int8=0.040), "int8"),
        (None, at(0.06, int8=0.055, int4=0.050), "int4"),
        (None, at(0.06, "int4"), None),
        ("int4", at(0.06), "int4"),
        ("int8", at(0.01, "int4"), "int4"),
        ("int8", at(0.01, "int4", int8=0.039), "int8"),
        ("disabled", at(0.01), "disabled"),
        (None, at(0.06, full=None), None),
        ("int8", at(0.01, "int4", int8=None), "int8"),
        (None, at(0.06, int8=None, int4=None), None),
        ("window:9", at(0.06), "window:9"),
    ],
)
def test_slow_tokens_are_answered_with_a_faster_mode_of_no_more_bytes(
    inner: str | None, now: Reading, mode: str | None
) -> None:
    assert wanted(inner, now) == mode


def test_what_else_was_decided_is_kept() -> None:
    decision = LatencyGuard(0.05, wanting("full"))(at(0.06))
    assert decision is not None
    assert (decision.mode, decision.sequences, decision.admit) == ("int4", {"a": "int8"}, False)
    assert "full is too slow" in decision.reason


def test_it_wraps_a_policy_by_its_name() -> None:
    assert LatencyGuard(0.05, "fixed", {"mode": "int8"})(at(0.01)) == Decision(
        "int4", "int8 is too slow"
    )
    assert LatencyGuard()(at(0.01)) is None
    with pytest.raises(PolicyError):
        LatencyGuard(policy="no_such")


@pytest.mark.parametrize("options", [{"target_s": 0.0}, {"margin": 0.0}, {"margin": 1.1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="target_s"):
        LatencyGuard(**options)  # type: ignore[arg-type]
