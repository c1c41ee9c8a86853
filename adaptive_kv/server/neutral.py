"""Parameters that we cannot honour: accepted where they ask for nothing, refused otherwise.

So nothing is silently ignored, and clients that spell out every default are served.
"""

from collections.abc import Collection, Mapping
from typing import Any

from adaptive_kv.server.refusals import refuse

_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)
"""Hints that change nothing about an answer."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Known, not supported: the values, beside null, that ask for nothing."""

_NEUTRAL_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
    "type": ("text", "message"),
}
"""So that a message we answered can be sent back as it is."""


def without_neutral(body: dict[str, Any]) -> dict[str, Any]:
    """`body` less what asks for nothing. Raises `RequestError` for what asks for too much."""
    body = _without(body, _NEUTRAL, _HARMLESS)
    if isinstance(body.get("messages"), list):
        body["messages"] = [
            _without(message, _NEUTRAL_IN_MESSAGE, place=f"messages[{place}].")
            for place, message in enumerate(body["messages"])
        ]
    return body


def _without(
    given: Any,
    neutral: Mapping[str, tuple[object, ...]],
    harmless: Collection[str] = (),
    place: str = "",
) -> Any:
    if not isinstance(given, dict):
        return given
    for name in given.keys() & neutral.keys():
        if given[name] is not None and given[name] not in neutral[name]:
            param = f"{place}{name}"
            message = f"{param} is not supported; leave it out"
            raise refuse(message, param=param, code="unsupported_parameter")
    return {k: v for k, v in given.items() if k not in neutral and k not in harmless}
