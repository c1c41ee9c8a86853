"""Every kind of wrong input has its clear, OpenAI-shaped answer, and disturbs nobody."""

import json
from typing import Any

import pytest
from server.scripted import MAX_CONTEXT, Served

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
DEEP = "[" * 100_000


def error_of(answer: Any) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


OUT_OF_RANGE: list[tuple[str, object]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("top_p", 0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("top_k", -2),
    ("presence_penalty", 2.1),
    ("presence_penalty", -2.1),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0),
    ("n", 0),
    ("n", 9),
    ("max_tokens", 0),
    ("max_tokens", -3),
    ("max_completion_tokens", 0),
    ("min_tokens", -1),
    ("seed", 2**63),
    ("stop", ""),
    ("stop", ["x"] * 17),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [256]),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize(("param", "value"), OUT_OF_RANGE, ids=str)
def test_out_of_range_is_refused_by_name(
    served: Served, path: str, param: str, value: object
) -> None:
    answer = served.post(path, **_asking(path), **{param: value})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"].partition("[")[0] == param
    assert error["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("max_tokens", "5"),
        ("max_tokens", 1.5),
        ("stream", "yes"),
        ("stop", 3),
        ("ignore_eos", 1),
        ("n", [1]),
        ("model", 3),
        ("adaptive_kv", "full"),
        ("stream_options", True),
    ],
    ids=str,
)
def test_a_wrong_type_is_refused_by_name(served: Served, param: str, value: object) -> None:
    answer = served.post(COMPLETION, prompt="x", **{param: value})
    assert answer.status_code == 400
    assert error_of(answer)["param"].partition("[")[0] == param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("logit_bias", {"1": 5}),
        ("prediction", {"type": "content"}),
        ("reasoning_effort", "high"),
        ("service_tier", "priority"),
        ("store", True),
        ("web_search_options", {}),
        ("best_of", 3),
        ("suffix", "."),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_what_is_not_supported_is_not_ignored(
    served: Served, path: str, param: str, value: object
) -> None:
    answer = served.post(path, **_asking(path), **{param: value})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


WRONG: list[tuple[str, dict[str, Any], str | None, str]] = [
    (CHAT, {"frobnicate": 1}, "frobnicate", "unknown_parameter"),
    (CHAT, {"prompt": "x"}, "prompt", "unknown_parameter"),
    (CHAT, {"stream_options": {"more": 1}}, "stream_options.more", "unknown_parameter"),
    (CHAT, {"messages": []}, "messages", "invalid_value"),
    (CHAT, {"messages": "hi"}, "messages", "invalid_type"),
    (CHAT, {"messages": ["hi"]}, "messages[0]", "invalid_type"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [{"role": "elf", "content": "x"}]}, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "messages", ""),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
        "unsupported_content",
    ),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    (CHAT, {"logprobs": 3}, "logprobs", "invalid_type"),
    (COMPLETION, {"messages": []}, "messages", "unknown_parameter"),
    (COMPLETION, {"logprobs": 21}, "logprobs", "invalid_value"),
    (COMPLETION, {"echo": True, "logprobs": 1}, "logprobs", "unsupported_parameter"),
    (COMPLETION, {"prompt": ""}, "prompt", "empty_prompt"),
    (COMPLETION, {"prompt": []}, "prompt", "empty_prompt"),
    (COMPLETION, {"prompt": ["a", ""]}, "prompt[1]", "empty_prompt"),
    (COMPLETION, {"prompt": [[]]}, "prompt[0]", "empty_prompt"),
    (COMPLETION, {"prompt": None}, "prompt", "invalid_type"),
    (COMPLETION, {"prompt": {"text": "a"}}, "prompt", "invalid_type"),
    (COMPLETION, {"prompt": [True]}, "prompt[0]", "invalid_type"),
    (COMPLETION, {"prompt": [1, "a"]}, "prompt[0]", "invalid_type"),
    (COMPLETION, {"prompt": [[["a"]]]}, "prompt[0]", "invalid_type"),
    (COMPLETION, {"prompt": [1, 256]}, "prompt", "invalid_value"),
    (COMPLETION, {"prompt": [-1]}, "prompt", "invalid_value"),
    (COMPLETION, {"prompt": ["a"] * 81}, "prompt", "too_many_prompts"),
    (COMPLETION, {"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
    (
        COMPLETION,
        {"max_tokens": 5, "max_completion_tokens": 4},
        "max_tokens",
        "invalid_value",
    ),
    (COMPLETION, {"adaptive_kv": {"allow": ["int3"]}}, "adaptive_kv.allow", "invalid_mode"),
    (COMPLETION, {"adaptive_kv": {"allow": [4]}}, "adaptive_kv.allow", "invalid_mode"),
    (COMPLETION, {"adaptive_kv": {"allow": "full"}}, "adaptive_kv.allow", "invalid_type"),
    (COMPLETION, {"adaptive_kv": {"allow": []}}, "adaptive_kv.allow", "invalid_value"),
    (COMPLETION, {"adaptive_kv": {"allow": ["int8"]}}, "adaptive_kv.allow", "mode_not_supported"),
    (COMPLETION, {"adaptive_kv": {"modes": []}}, "adaptive_kv.modes", "unknown_parameter"),
    (COMPLETION, {"adaptive_kv": {"priority": 1001}}, "adaptive_kv.priority", "invalid_value"),
]


@pytest.mark.parametrize(("path", "wrong", "param", "code"), WRONG, ids=str)
def test_wrong_input_is_refused_with_its_place_and_a_code(
    served: Served, path: str, wrong: dict[str, Any], param: str, code: str
) -> None:
    answer = served.post(path, **{**_asking(path), **wrong})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"] or "") == (param, code)


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_what_is_required_is_named(served: Served, path: str) -> None:
    error = error_of(served.post(path))
    assert error["code"] == "missing_required_parameter"
    assert error["param"] in {"messages", "prompt"}


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ' + DEEP.encode(),
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b"[]",
        b'"text"',
        b"null",
    ],
    ids=lambda body: body[:20],
)
def test_a_body_that_is_no_json_object_is_refused(served: Served, path: str, body: bytes) -> None:
    answer = served.http.post(path, content=body)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_json"


@pytest.mark.parametrize("number", ["1e400", "-1e400"])
def test_numbers_that_overflow_are_refused_by_name(served: Served, number: str) -> None:
    body = f'{{"prompt": "x", "temperature": {number}}}'
    answer = served.http.post(COMPLETION, content=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "temperature"


def test_an_error_never_quotes_the_prompt(served: Served) -> None:
    answer = served.post(CHAT, messages=[{"role": "user", "content": {"secret": "word"}}])
    assert answer.status_code == 400
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_an_unknown_model_is_404(served: Served, path: str) -> None:
    answer = served.post(path, **_asking(path), model="gpt-😀")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "x" * MAX_CONTEXT},
        {"prompt": "x" * 500, "max_tokens": 13},
        {"prompt": "x", "max_tokens": MAX_CONTEXT},
        {"prompt": "x" * 500, "min_tokens": 13},
    ],
)
def test_too_long_says_the_limit_and_what_was_asked(served: Served, asked: dict[str, Any]) -> None:
    answer = served.post(COMPLETION, **asked)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    wanted = asked.get("max_tokens") or asked.get("min_tokens") or 1
    for number in (MAX_CONTEXT, len(asked["prompt"]), wanted):
        assert f" {number} " in error["message"]


def test_a_chat_too_long_is_told_so(served: Served) -> None:
    answer = served.post(CHAT, messages=[{"role": "user", "content": "x" * MAX_CONTEXT}])
    assert error_of(answer)["code"] == "context_length_exceeded"
    assert error_of(answer)["param"] == "messages"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failure_before_the_first_token_keeps_its_status(served: Served, is_stream: bool) -> None:
    answer = served.post(COMPLETION, prompt="FAIL", stream=is_stream)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"
    assert error_of(answer)["code"] == "timeout"


def test_a_failure_within_a_stream_ends_it_with_the_error(served: Served) -> None:
    answer = served.post(COMPLETION, prompt="FALTER", stream=True)
    last = json.loads(answer.text.rstrip("\n").rpartition("data: ")[2])
    assert answer.status_code == 200
    assert last["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/v1/models/org/other", 404, "model_not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/admin/mode", 405, "method_not_allowed"),
    ],
)
def test_routes_and_methods_that_are_not_there(
    served: Served, method: str, path: str, status: int, code: str
) -> None:
    answer = served.http.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert ("allow" in answer.headers) == (status == 405)


def test_the_service_works_on_after_all_this(served: Served) -> None:
    for path, wrong, _, _ in WRONG:
        served.post(path, **{**_asking(path), **wrong})
    assert served.post(COMPLETION, prompt="x").status_code == 200
    assert served.client.num_in_flight == 0


def _asking(path: str) -> dict[str, Any]:
    if path == CHAT:
        return {"messages": [{"role": "user", "content": "hi"}]}
    return {"prompt": "hi"}
