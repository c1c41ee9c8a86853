"""The embedded model is whole, small, loads offline, chats, stops and recalls."""

import inspect
import json
import random
import subprocess
import sys
from importlib import resources
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BatchEncoding
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerFast as Tokenizer

ROOT = Path(__file__).parents[2]
FOLDER = Path(str(resources.files("adaptive_kv"))) / "demo" / "model"
MAX_FOLDER_BYTES = 24_000_000
NAMES = ("falcon", "otter", "badger", "heron", "lynx", "raven", "salmon", "beaver")
CODES = ("copper", "silver", "amber", "cobalt", "violet", "lantern", "river", "marble")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    assert isinstance(loaded, Tokenizer)
    return loaded


@pytest.fixture(scope="module")
def model() -> Model:
    loaded: Model = AutoModelForCausalLM.from_pretrained(
        FOLDER, local_files_only=True, dtype=torch.float32
    )
    return loaded


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    text = (FOLDER / "measurements.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def answer(model: Model, tokenizer: Tokenizer, question: str, max_tokens: int) -> list[int]:
    """Returns the token ids of the greedy answer, the end of sequence included."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert isinstance(prompt, BatchEncoding)
    output = model.generate(  # type: ignore[operator]
        **prompt, max_new_tokens=max_tokens, do_sample=False
    )
    ids: list[int] = output[0, prompt["input_ids"].shape[1] :].tolist()
    return ids


def recall_question(rng: random.Random, tokenizer: Tokenizer, num_tokens: int) -> tuple[str, str]:
    """Returns a prompt of about `num_tokens` with four codes at its start, and the answer."""
    names, codes = rng.sample(NAMES, 4), rng.sample(CODES, 4)
    facts = [f"Remember: the code of {n} is {c}." for n, c in zip(names, codes, strict=True)]
    lines = inspect.getsource(TextWrapper).splitlines()
    filler = lines[rng.randrange(100) :]
    while len(tokenizer.encode("\n".join([*facts, *filler]))) > num_tokens - 16:
        filler.pop()
    text = "\n".join([*facts, *filler, f"What is the code of {names[1]}?"])
    return text, f"The code of {names[1]} is {codes[1]}.<|end|>"


def test_the_folder_is_at_most_24_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_FOLDER_BYTES


def test_the_model_is_a_plain_llama_with_grouped_heads_of_64() -> None:
    config = AutoConfig.from_pretrained(FOLDER, local_files_only=True)
    assert config.model_type == "llama"
    assert config.head_dim == 64
    assert 2 <= config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings >= 4096
    assert config.dtype == torch.bfloat16


def test_ids_of_tokenizer_and_model_agree(model: Model, tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.bos_token_id == tokenizer.bos_token_id


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["naïve 東京 👩🏽‍🚀", "\r\n\t \x00\x7f", "  two  spaces ,  . ' s", "<|end|>"]
)
def test_awkward_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_plain_text_begins_with_one_beginning_of_sequence(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("import os")
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_chat_template_renders_every_role(tokenizer: Tokenizer) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
        {"role": "assistant", "content": "Hi."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|system|>Be brief.<|end|><|user|>Hello!<|end|><|assistant|>Hi.<|end|><|assistant|>"
    )


def test_the_chat_template_refuses_an_unknown_role(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="role must be"):
        tokenizer.apply_chat_template([{"role": "oracle", "content": ""}], tokenize=False)


@pytest.mark.parametrize("question", ["Hello!", "What does itertools.chain do?"])
def test_an_answer_says_something_and_ends_by_itself(
    model: Model, tokenizer: Tokenizer, question: str
) -> None:
    ids = answer(model, tokenizer, question, max_tokens=160)
    assert ids[-1] == tokenizer.eos_token_id
    assert len(str(tokenizer.decode(ids, skip_special_tokens=True)).split()) >= 3


def test_the_model_describes_a_well_known_function(model: Model, tokenizer: Tokenizer) -> None:
    ids = answer(model, tokenizer, "What does itertools.chain do?", max_tokens=60)
    assert str(tokenizer.decode(ids)).startswith("Return a chain object")


def test_codes_half_a_thousand_tokens_back_are_recalled(
    model: Model, tokenizer: Tokenizer, figures: dict[str, Any]
) -> None:
    """The bound lies well under the measured share, since these are only twelve tasks."""
    rng = random.Random(7)
    tasks = [recall_question(rng, tokenizer, 512) for _ in range(12)]
    given_answers = [tokenizer.decode(answer(model, tokenizer, q, 24)) for q, _ in tasks]
    num_right = sum(a == right for a, (_, right) in zip(given_answers, tasks, strict=True))
    assert figures["recall_full"]["512"] >= 0.9
    assert num_right >= 9


def test_a_code_that_the_prompt_no_longer_holds_is_not_recalled(
    model: Model, tokenizer: Tokenizer, figures: dict[str, Any]
) -> None:
    rng = random.Random(8)
    tasks = [recall_question(rng, tokenizer, 400) for _ in range(8)]
    cut = [(question.split("\n", 4)[4], right) for question, right in tasks]
    num_right = sum(tokenizer.decode(answer(model, tokenizer, q, 24)) == r for q, r in cut)
    assert num_right <= 2
    assert all(entry["recall"] <= 0.2 for entry in figures["recall_windowed"].values())


def test_the_documentation_states_the_measured_figures() -> None:
    command = [sys.executable, str(ROOT / "tools" / "demo_report.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
