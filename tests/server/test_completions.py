"""What a well-behaved client gets."""

import json
from typing import Any

import pytest
from openai import APIError, OpenAI
from server.scripted import MAX_CONTEXT, TEXT, Served

from adaptive_kv.engine.mailbox import SamplingParams
from adaptive_kv.policy import CacheMode

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def events_of(lines: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in lines.split("\n\n") if line]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


@pytest.fixture
def openai(served: Served) -> Any:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_client_chats(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model="demo", messages=ASK["messages"])
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_the_openai_client_streams_a_chat(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model="demo",
        messages=ASK["messages"],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_openai_client_streams_a_completion(openai: OpenAI) -> None:
    with openai.completions.create(model="demo", prompt="hi", stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_openai_client_learns_of_a_failure_within_a_stream(openai: OpenAI) -> None:
    stream = openai.completions.create(model="demo", prompt="FALTER", stream=True)
    with stream, pytest.raises(APIError, match="waited too long"):
        assert [chunk.choices[0].text for chunk in stream] == ["one"]


def test_the_openai_client_lists_models(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == ["demo"]
    assert openai.models.retrieve("demo").created == 1_700_000_000


def test_a_chat_has_the_keys_that_strict_clients_ask_for(served: Served) -> None:
    answer = served.post("/v1/chat/completions", **ASK).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "demo"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


def test_usage_tells_in_which_modes_tokens_were_served(served: Served) -> None:
    usage = served.post("/v1/completions", prompt="four", n=2).json()["usage"]
    assert usage == {
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
        "adaptive_kv": {"tokens_by_mode": {"full": 4, "int4": 2}, "switches": 2, "exact": False},
    }


def test_cached_tokens_are_those_of_every_prompt_once(served: Served) -> None:
    asked = {"prompt": ["four", "fourfour"], "n": 2}
    usage = served.post("/v1/completions", **asked).json()["usage"]
    assert usage["prompt_tokens"] == 12
    assert usage["prompt_tokens_details"] == {"cached_tokens": 6}


def test_a_stream_ends_with_the_same_usage(served: Served) -> None:
    asked = {"prompt": "four", "stream": True, "stream_options": {"include_usage": True}}
    chunks = events_of(served.post("/v1/completions", **asked).text)
    assert chunks[-1]["usage"]["adaptive_kv"]["tokens_by_mode"] == {"full": 2, "int4": 1}
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_a_stream_can_count_along(served: Served) -> None:
    asked = {"prompt": "four", "stream": True, "stream_options": {"continuous_usage_stats": True}}
    chunks = events_of(served.post("/v1/completions", **asked).text)
    assert [chunk["usage"]["total_tokens"] for chunk in chunks] == [5, 6, 7, 7]


def test_each_prompt_gets_its_choices_in_order(served: Served) -> None:
    asked = {"prompt": ["a", "b"], "n": 2, "echo": True}
    choices = served.post("/v1/completions", **asked).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"] for choice in choices] == [f"{prompt}{TEXT}" for prompt in "aabb"]


def test_token_ids_are_echoed_as_text(served: Served) -> None:
    answer = served.post("/v1/completions", prompt=[97, 98], echo=True).json()
    assert answer["choices"][0]["text"] == f"ab{TEXT}"


def test_streamed_choices_are_told_apart_by_index(served: Served) -> None:
    asked = {"prompt": "a", "n": 2, "echo": True, "stream": True}
    texts = ["", ""]
    for chunk in events_of(served.post("/v1/completions", **asked).text):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [f"a{TEXT}"] * 2


@pytest.mark.parametrize(
    ("prompt", "all_ids"),
    [
        ("ab", [(97, 98)]),
        ([97, 98], [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_a_prompt_is_text_or_token_ids_one_or_many(
    served: Served, prompt: object, all_ids: list[tuple[int, ...]]
) -> None:
    _forget_requests(served)
    assert served.post("/v1/completions", prompt=prompt).is_success
    assert [served.next_request().prompt_ids for _ in all_ids] == all_ids


def test_token_ids_come_with_the_text_where_asked(served: Served) -> None:
    asked = {**ASK, "return_token_ids": True}
    whole = served.post("/v1/chat/completions", **asked).json()
    assert whole["choices"][0]["token_ids"] == [65, 66, 67]
    chunks = events_of(served.post("/v1/chat/completions", **asked, stream=True).text)
    streamed = [id_ for chunk in chunks for id_ in chunk["choices"][0].get("token_ids", [])]
    assert streamed == [65, 66, 67]


def test_logprobs_of_a_chat(served: Served) -> None:
    asked = {**ASK, "logprobs": True, "top_logprobs": 2}
    whole = served.post("/v1/chat/completions", **asked).json()["choices"][0]["logprobs"]
    assert [token["token"] for token in whole["content"]] == ["A", "B", "C"]
    assert whole["content"][0]["top_logprobs"] == [
        {"token": "A", "logprob": -0.5, "bytes": [65]},
        {"token": "B", "logprob": -9999.0, "bytes": [66]},
    ]
    chunks = events_of(served.post("/v1/chat/completions", **asked, stream=True).text)
    shown = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [each["content"][0]["token"] for each in shown if each] == ["A", "B", "C"]


def test_logprobs_of_a_completion(served: Served) -> None:
    answer = served.post("/v1/completions", prompt="x", logprobs=2).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["A", "B", "C"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"A": -0.5, "B": -9999.0}] * 3,
        "text_offset": [0, 1, 2],
    }


def test_what_is_asked_for_reaches_the_engine(served: Served) -> None:
    _forget_requests(served)
    asked = {
        "prompt": "x",
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "seed": 5,
        "stop": ["end", "fin"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "logprobs": 3,
        "adaptive_kv": {"allow": ["full", "window:64"], "priority": 3},
    }
    assert served.post("/v1/completions", **asked).is_success
    request = served.next_request()
    assert request.allow == frozenset({CacheMode("full"), CacheMode("window:64")})
    assert request.priority == 3
    assert request.sampling == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=1.0,
        seed=5,
        stop=("end", "fin"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
        logprobs=3,
    )


@pytest.mark.parametrize(
    ("asked", "max_tokens"),
    [
        ({}, 16),
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"min_tokens": 20}, 20),
        ({"prompt": "x" * (MAX_CONTEXT - 5)}, 5),
    ],
)
def test_a_completion_has_16_tokens_unless_told(
    served: Served, asked: dict[str, Any], max_tokens: int
) -> None:
    _forget_requests(served)
    assert served.post("/v1/completions", **{"prompt": "x", **asked}).is_success
    assert served.next_request().sampling.max_tokens == max_tokens


def test_a_chat_may_fill_the_context_unless_told(served: Served) -> None:
    _forget_requests(served)
    assert served.post("/v1/chat/completions", **ASK).is_success
    request = served.next_request()
    assert request.sampling.max_tokens == MAX_CONTEXT - len(request.prompt_ids)


def test_choices_of_one_seed_differ(served: Served) -> None:
    _forget_requests(served)
    assert served.post("/v1/completions", prompt="x", n=2, seed=7).is_success
    assert [served.next_request().sampling.seed for _ in range(2)] == [7, 8]


@pytest.mark.parametrize(
    "content", ["hi", [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]]
)
def test_content_is_text_or_text_parts(served: Served, content: object) -> None:
    _forget_requests(served)
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None},
        {"role": "user", "content": content, "type": "text"},
    ]
    assert served.post("/v1/chat/completions", messages=messages).is_success
    prompt = bytes(served.next_request().prompt_ids).decode()
    assert prompt == "system: be kind\nassistant: yes\nuser: hi\n"


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"stream_options": None},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tools": None, "tool_choice": "auto"},
        {"logit_bias": {}},
        {"top_k": -1},
        {"stop": None, "seed": None, "temperature": None, "n": None, "max_tokens": None},
        {"model": None},
        {"model": "demo"},
        {"adaptive_kv": None},
        {"adaptive_kv": {"allow": ["int8", "full"]}},
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_accepted(served: Served, harmless: dict[str, Any]) -> None:
    assert served.post("/v1/chat/completions", **ASK, **harmless).status_code == 200


def test_json_is_read_whatever_its_content_type_says(served: Served) -> None:
    body = json.dumps({"prompt": "x"})
    answer = served.http.post("/v1/completions", content=body, headers={"content-type": "a/b"})
    assert answer.json()["choices"][0]["text"] == TEXT


def _forget_requests(served: Served) -> None:
    while not served.worker.requests.empty():
        served.worker.requests.get()
