"""Streamed text is what the tokenizer decodes at once; stop strings and prompts."""

import threading
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import adaptive_kv
from adaptive_kv.engine.detokenizer import Detokenizer
from adaptive_kv.engine.text import PromptEncoder, StopMatcher, TextStream
from adaptive_kv.errors import RequestError

CORPUS = [
    "Grüße, naïve café — “quoted” text. The cache is full; the cache is not full.",
    "漢字とかな、한국어, привет мир, 👩‍👩‍👧 🎉🎉 e\u0301 \ufffd",
    "def main():\n\treturn   1  # two  spaces\n\n",
] * 4
SPECIALS = ["<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def wrapped(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerBase:
    make: Callable[..., PreTrainedTokenizerBase] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        **names,
    )


def byte_level() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return wrapped(tokenizer)


def llama_like() -> PreTrainedTokenizerBase:
    """BPE over words that begin with a mark, unknown characters as bytes: Llama 2, Gemma, Phi-3."""
    pieces = [
        "<unk>",
        *SPECIALS,
        *BYTES,
        *"▁abcdefghijklmnoprstuü.,",
        "th",
        "he",
        "▁a",
        "▁th",
        "▁▁",
    ]
    merges = [("t", "h"), ("h", "e"), ("▁", "a"), ("▁", "th"), ("▁", "▁")]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(SPECIALS)
    return wrapped(tokenizer, unk_token="<unk>")


def unigram() -> PreTrainedTokenizerBase:
    letters = "▁abcdefghijklmnopqrstuvwxyzü.,\ufffd"
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("ing", -1.5)]
    vocab = [*pieces, *((letter, -4.0) for letter in letters), *((byte, -9.0) for byte in BYTES)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(SPECIALS)
    return wrapped(tokenizer, unk_token="<unk>")


TOKENIZERS = {make.__name__: make() for make in (byte_level, llama_like, unigram)}
each_tokenizer = pytest.mark.parametrize(
    "tokenizer", [pytest.param(one, id=name) for name, one in TOKENIZERS.items()]
)
DEMO = AutoTokenizer.from_pretrained(Path(adaptive_kv.__file__).parent / "demo" / "model")

texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("the  aü\ufffd漢🎉\n")))


def decoded(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int]) -> str:
    text = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def streamed(
    tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int], prompt_ids: tuple[int, ...] = ()
) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt_ids)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def id_of(tokenizer: PreTrainedTokenizerBase, piece: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(piece)
    assert isinstance(token_id, int)
    return token_id


@each_tokenizer
@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_the_stream_joined_is_the_whole_decoded(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    token_ids = ids_of(tokenizer, text)
    parts = streamed(tokenizer, token_ids)
    assert "".join(parts) == decoded(tokenizer, token_ids)


@each_tokenizer
@settings(max_examples=150, deadline=None)
@given(prompt=texts, text=texts)
def test_after_a_prompt_the_stream_is_what_the_output_adds(
    tokenizer: PreTrainedTokenizerBase, prompt: str, text: str
) -> None:
    prompt_ids = ids_of(tokenizer, f"the {prompt} the")
    token_ids = ids_of(tokenizer, text)
    whole = decoded(tokenizer, [*prompt_ids, *token_ids])
    parts = streamed(tokenizer, token_ids, tuple(prompt_ids))
    assert decoded(tokenizer, prompt_ids) + "".join(parts) == whole


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZERS["byte_level"]) + 2), max_size=40))
def test_byte_level_streams_any_token_ids_exactly(token_ids: list[int]) -> None:
    """Broken UTF-8, special tokens, added tokens and ids past the vocabulary included."""
    tokenizer = TOKENIZERS["byte_level"]
    assert "".join(streamed(tokenizer, token_ids)) == decoded(tokenizer, token_ids)


@pytest.mark.parametrize("part", [slice(0, 1), slice(1, 2), slice(0, 2), slice(0, 3), slice(1, 4)])
def test_bytes_that_never_become_a_character_do_not_hold_the_stream(part: slice) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("𝄞")[0][0]
    token_ids = [id_of(tokenizer, piece) for piece in spelling[part]] * 100
    detokenizer = Detokenizer(tokenizer)
    shown = 0
    for place, token_id in enumerate(token_ids, start=1):
        shown += len(detokenizer.push(token_id))
        assert shown >= len(decoded(tokenizer, token_ids[:place])) - 4
        assert len(detokenizer._window) <= 8


@each_tokenizer
def test_a_character_in_several_tokens_comes_out_whole_with_its_last(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    token_ids = ids_of(tokenizer, "a𝄞b")
    parts = streamed(tokenizer, token_ids)
    assert parts[-3:-1] == ["𝄞", "b"]
    assert all("\ufffd" not in part for part in parts)


@each_tokenizer
def test_a_genuine_replacement_character_comes_out(tokenizer: PreTrainedTokenizerBase) -> None:
    token_ids = ids_of(tokenizer, "a" + "\ufffd" * 30 + "b")
    parts = streamed(tokenizer, token_ids)
    assert "".join(parts) == decoded(tokenizer, token_ids)
    assert "".join(parts[: len(token_ids) // 2]).count("\ufffd") >= 10


def test_a_character_begun_in_the_prompt_is_completed_in_the_output() -> None:
    for name in ("byte_level", "llama_like"):
        tokenizer = TOKENIZERS[name]
        token_ids = ids_of(tokenizer, "a𝄞b")
        first = len(token_ids) - 5
        for split in range(first + 1, first + 4):
            parts = streamed(tokenizer, token_ids[split:], tuple(token_ids[:split]))
            assert "".join(parts) == "𝄞b"


def test_text_after_stray_bytes_is_not_repeated() -> None:
    tokenizer = TOKENIZERS["llama_like"]
    euro = [id_of(tokenizer, f"<0x{value:02X}>") for value in "€".encode()]
    token_ids = [*euro, euro[0], *ids_of(tokenizer, "the")]
    assert "".join(streamed(tokenizer, token_ids)).count("€") == 1


@each_tokenizer
def test_tokens_without_text_cost_nothing_however_many(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer)
    for _ in range(200):
        assert detokenizer.push(tokenizer.eos_token_id) == ""
        assert detokenizer.push(len(tokenizer) + 5) == ""
    assert len(detokenizer._window) < 10
    assert "".join(map(detokenizer.push, ids_of(tokenizer, "the a"))) == "the a"


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_stops_cut_at_their_earliest_place_however_the_text_is_chunked(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [text.find(stop) for stop in stops if stop in text]
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher = StopMatcher(tuple(stops))
    shown = ""
    for start, end in pairwise(borders):
        safe, is_stopped = matcher.push(text[start:end])
        shown += safe
        assert text[: min(places, default=len(text))].startswith(shown)
        if is_stopped:
            break
    shown += matcher.flush()
    assert shown == text[: min(places, default=len(text))]
    assert matcher.is_stopped == bool(places)


def test_a_matcher_holds_no_more_than_could_begin_a_stop() -> None:
    matcher = StopMatcher(("END", "\n\n"))
    assert matcher.push("the E") == ("the ", False)
    assert matcher.push("N") == ("", False)
    assert matcher.push("V\n") == ("ENV", False)
    assert matcher.push("x") == ("\nx", False)
    assert matcher.push("y\n\nz") == ("y", True)
    assert matcher.push("more") == ("", True)


def test_a_stop_string_over_token_borders_ends_the_stream_before_it() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    stream = TextStream(tokenizer, stops=("漢字x",))
    steps = [stream.push(token_id) for token_id in ids_of(tokenizer, "a漢b漢字xyz")]
    assert "".join(step.text for step in steps) + stream.finish() == "a漢b"
    assert stream.is_stopped
    assert [step.is_stopped for step in steps].index(True) > 3


def test_finishing_gives_what_only_began_a_stop() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    stream = TextStream(tokenizer, stops=("aaab",))
    shown = "".join(stream.push(token_id).text for token_id in ids_of(tokenizer, "aaa"))
    assert shown == ""
    assert stream.finish() == "aaa"
    assert not stream.is_stopped


def test_stops_do_not_count_among_the_first_min_tokens() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = ids_of(tokenizer, "x" * 6)
    stream = TextStream(tokenizer, stops=("x",), min_tokens=4)
    steps = [stream.push(token_id) for token_id in token_ids]
    assert [step.is_stopped for step in steps[:5]] == [False] * 4 + [True]
    assert "".join(step.text for step in steps) == "xxxx"


def test_a_bare_prompt_gets_the_special_tokens_of_its_tokenizer() -> None:
    encoder = PromptEncoder(DEMO)
    token_ids = encoder.encode_text("What does map do?")
    assert token_ids[0] == DEMO.bos_token_id
    assert encoder.decode(token_ids) == "<|bos|>What does map do?"


def test_a_chat_is_encoded_as_its_template_says() -> None:
    messages = [{"role": "user", "content": "Hi 漢"}]
    expected: list[int] = DEMO.apply_chat_template(  # type: ignore[assignment]
        messages, add_generation_prompt=True, return_dict=False
    )
    encoder = PromptEncoder(DEMO)
    assert encoder.encode_chat(messages) == tuple(expected)
    assert encoder.decode(expected[-1:]) == "<|assistant|>"


def test_messages_that_the_template_refuses_are_the_clients_fault() -> None:
    with pytest.raises(RequestError, match="role must be") as caught:
        PromptEncoder(DEMO).encode_chat([{"role": "wizard", "content": "Hi"}])
    assert caught.value.refusal.code == "invalid_messages"
    assert caught.value.refusal.status == 400


def test_no_messages_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        PromptEncoder(DEMO).encode_chat([])
    assert caught.value.refusal.code == "invalid_messages"


def test_a_model_without_chat_template_says_so() -> None:
    with pytest.raises(RequestError, match="/v1/completions") as caught:
        PromptEncoder(TOKENIZERS["unigram"]).encode_chat([{"role": "user", "content": "Hi"}])
    assert caught.value.refusal.code == "chat_template_missing"


@each_tokenizer
def test_single_tokens_keep_their_leading_space(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = PromptEncoder(tokenizer)
    token_ids = encoder.encode_text("the a the")
    spelled = "".join(encoder.decode([token_id]) for token_id in token_ids)
    assert spelled.removeprefix(" ") == "the a the"
    assert encoder.token_text(tokenizer.eos_token_id) == "</s>"


def test_a_prompt_is_never_cut_by_what_the_tokenizer_was_saved_with() -> None:
    tokenizer = byte_level()
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=50)
    assert len(PromptEncoder(tokenizer).encode_text("漢字 " * 20)) > 50


def test_encoding_and_decoding_in_several_threads_do_not_disturb_each_other() -> None:
    tokenizer = byte_level()
    encoder = PromptEncoder(tokenizer)
    text = "漢字 the cache 🎉 " * 50
    expected = ids_of(tokenizer, text)
    outcomes: list[object] = []

    def repeated(work: Callable[[], object]) -> None:
        try:
            outcomes.extend(work() for _ in range(30))
        except BaseException as error:
            outcomes.append(error)
            raise

    encode = threading.Thread(target=repeated, args=(lambda: encoder.encode_text(text),))
    again = threading.Thread(target=repeated, args=(lambda: encoder.encode_text(text),))
    stream = threading.Thread(
        target=repeated, args=(lambda: "".join(streamed(tokenizer, expected)),)
    )
    for thread in (encode, again, stream):
        thread.start()
    for thread in (encode, again, stream):
        thread.join()
    assert outcomes.count(tuple(expected)) == 60
    assert outcomes.count(text) == 30
