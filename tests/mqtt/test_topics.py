import pytest

from adaptive_kv.errors import ConfigError
from adaptive_kv.mqtt.topics import Topics


def test_topics_are_those_of_the_contract() -> None:
    topics = Topics("site/lab", "edge-07")
    assert topics.availability == "site/lab/v1/edge-07/availability"
    assert topics.info == "site/lab/v1/edge-07/info"
    assert topics.state == "site/lab/v1/edge-07/state"
    assert topics.event == "site/lab/v1/edge-07/event"


def test_a_client_id_has_no_slash() -> None:
    assert Topics("site/lab", "edge-07").client_id == "site-lab-edge-07"


@pytest.mark.parametrize(
    "node", ["", "Edge", "-a", "_a", "a/b", "a+", "#", "$sys", "a b", "ä", "a" * 64, "a\n"]
)
def test_a_node_that_would_leave_its_place_is_refused(node: str) -> None:
    with pytest.raises(ConfigError, match="no name for a node"):
        Topics("adaptive-kv", node)


@pytest.mark.parametrize("base", ["", "/a", "a/", "a//b", "+", "a/#", "$SYS", "a b", "a\0"])
def test_a_base_that_is_no_plain_topic_is_refused(base: str) -> None:
    with pytest.raises(ConfigError, match="cannot begin topics"):
        Topics(base, "edge-07")
