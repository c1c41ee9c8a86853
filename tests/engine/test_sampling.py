"""Sampling against transformers' own processors, statistics, and its promises to the engine."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adaptive_kv.engine.mailbox import SamplingParams
from adaptive_kv.engine.sampling import (
    LogitsError,
    SamplingState,
    penalized,
    sample,
    truncated,
)

VOCAB = 97
PROMPT = (5, 5, 7, 90)


def started(vocab: int = VOCAB, eos_ids: tuple[int, ...] = (), **params: Any) -> SamplingState:
    return SamplingState.start(SamplingParams(**params), PROMPT, vocab, eos_ids=eos_ids)


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def oracle(scores: Tensor, params: SamplingParams) -> Tensor:
    """What transformers would draw from, for one row."""
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    return chain(torch.LongTensor([PROMPT]), scores[None])[0]


drawing_params = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 2).map(lambda value: round(value, 3)),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.1, 1e-4]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, VOCAB, 10**30]),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3, 2.0]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(drawing_params, min_size=1, max_size=6), st.integers(0, 10**6))
def test_a_ragged_batch_keeps_the_tokens_and_probabilities_that_transformers_keeps(
    rows: list[SamplingParams], seed: int
) -> None:
    logits = random_logits(len(rows), seed=seed)
    states = [SamplingState.start(params, PROMPT, VOCAB) for params in rows]
    ours = truncated(penalized(logits, states), states)
    for row, params in enumerate(rows):
        theirs = oracle(logits[row].clone(), params)
        assert torch.equal(ours[row].isfinite(), theirs.isfinite())
        torch.testing.assert_close(ours[row].softmax(-1), theirs.softmax(-1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_a_nucleus_beyond_the_first_candidates_is_found(top_p: float, scale: float) -> None:
    vocab = 5000
    logits = random_logits(3, vocab, scale=scale)
    states = [started(vocab, top_p=top_p)] * 2 + [started(vocab)]
    kept = truncated(logits.clone(), states).isfinite()
    for row in range(2):
        assert torch.equal(
            kept[row], TopPLogitsWarper(top_p)(None, logits[row : row + 1])[0] > -1e9
        )
    assert kept[2].all()


def test_a_draw_from_a_nucleus_beyond_the_first_candidates_is_from_all_of_it() -> None:
    """As from one that somebody else has cut, next to rows that need no second look."""
    vocab = 5000
    logits = random_logits(40, vocab, scale=0.1)
    logits[::2] *= 40
    states = [started(vocab, top_p=0.99, seed=row) for row in range(40)]
    cut = TopPLogitsWarper(0.99)(None, logits.clone())
    plain = [started(vocab, seed=row) for row in range(40)]
    drawn = [one.token_id for one in sample(logits, states)]
    assert drawn == [one.token_id for one in sample(cut, plain)]
    ranks = [int((logits[row] > logits[row, id_]).sum()) for row, id_ in enumerate(drawn)]
    assert max(ranks) > 2000


def test_presence_and_frequency_count_the_output_alone_as_openai_defines_them() -> None:
    state = started(presence_penalty=0.5, frequency_penalty=0.25)
    for token in (3, 3, 8):
        state.commit(token)
    logits = random_logits(1)
    expected = logits.clone()
    expected[0, 3] -= 0.5 + 2 * 0.25
    expected[0, 8] -= 0.5 + 0.25
    torch.testing.assert_close(penalized(logits, [state]), expected)


def test_repetition_penalty_learns_committed_tokens() -> None:
    state = started(repetition_penalty=1.5)
    state.commit(11)
    logits = random_logits(1)
    changed = (penalized(logits, [state]) != logits)[0].nonzero()[:, 0].tolist()
    assert changed == [5, 7, 11, 90]


def test_penalties_change_what_greedy_takes() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5], logits[0, 6] = 2.0, 1.9
    assert sample(logits, [started(temperature=0.0)])[0].token_id == 5
    assert sample(logits, [started(temperature=0.0, repetition_penalty=1.2)])[0].token_id == 6


def test_no_penalty_keeps_no_table() -> None:
    state = started(temperature=0.7)
    assert state.seen is None
    assert state.counts is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_lowest_id_among_equals(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, VOCAB, dtype=dtype)
    logits[0, [9, 4, 70]] = 1.5
    states = [started(temperature=0.0), started(top_k=1), started(temperature=1e-9)]
    assert [one.token_id for one in sample(logits, states)] == [4, 0, 0]
    mixed = [*states[:2], started(top_k=1, presence_penalty=1.0)]
    assert [one.token_id for one in sample(logits, mixed)] == [4, 0, 0]


def test_draws_follow_the_probabilities() -> None:
    """Chi-square over 20,000 draws at a fixed seed, 15 degrees of freedom, p = 0.001."""
    vocab, draws = 16, 20_000
    logits = random_logits(1, vocab, scale=1.0)
    state = started(vocab, seed=1, temperature=0.8)
    counts = torch.zeros(vocab)
    for _ in range(draws // 100):
        batch = [started(vocab, seed=1, temperature=0.8) for _ in range(100)]
        for one in batch:
            one.num_outputs = state.num_outputs
            state.commit(0)
        for drawn in sample(logits.expand(100, -1), batch):
            counts[drawn.token_id] += 1
    expected = (logits[0] / 0.8).softmax(-1) * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.7


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([1, 5, 128, 129, 1000]), st.integers(1, 5))
def test_a_token_without_probability_is_never_drawn(seed: int, vocab: int, top_k: int) -> None:
    logits = random_logits(50, vocab, seed=seed, scale=30.0)
    states = [started(vocab, top_k=top_k, seed=seed + row) for row in range(50)]
    allowed = truncated(logits.clone(), states).isfinite()
    for row, one in enumerate(sample(logits, states)):
        assert allowed[row, one.token_id]


def test_a_draw_walks_the_probabilities_in_order_of_ids() -> None:
    vocab = 1000
    logits = random_logits(64, vocab)
    states = [started(vocab, seed=row) for row in range(64)]
    sums = logits.double().softmax(-1).cumsum(-1)
    for row, (state, one) in enumerate(zip(states, sample(logits, states), strict=True)):
        assert one.token_id == int((sums[row] <= state.uniform).sum())


def test_a_seeded_sequence_draws_the_same_in_every_batch() -> None:
    def continuation(neighbours: list[SamplingState]) -> list[int]:
        state = started(seed=-7, top_p=0.95, presence_penalty=0.1)
        tokens = []
        for step in range(30):
            logits = torch.cat(
                [random_logits(1, seed=step), random_logits(len(neighbours), seed=99)]
            )
            token = sample(logits, [state, *neighbours])[0].token_id
            state.commit(token)
            tokens.append(token)
        return tokens

    alone = continuation([])
    assert len(set(alone)) > 10
    assert continuation([started(temperature=0.0), started(top_k=3)]) == alone
    assert continuation([started(min_p=0.2, logprobs=3), started(seed=1)]) == alone


def test_a_step_that_is_retried_draws_again_what_it_drew() -> None:
    states = [started(), started(seed=3), started(repetition_penalty=1.2)]
    logits = random_logits(3)
    first = sample(logits, states)
    assert sample(logits, states) == first
    assert all(state.num_outputs == 0 for state in states)


def test_sequences_without_a_seed_differ() -> None:
    logits = torch.zeros(20, VOCAB)
    assert len({one.token_id for one in sample(logits, [started() for _ in range(20)])}) > 5


def test_logprobs_are_log_softmax_of_raw_logits_best_first() -> None:
    logits = random_logits(3)
    states = [
        started(temperature=0.5, top_k=4, repetition_penalty=1.4, logprobs=5),
        started(temperature=0.0, logprobs=0),
        started(temperature=0.0),
    ]
    expected = logits.log_softmax(-1)
    drawn, best, silent = sample(logits, states)
    assert drawn.logprob is not None
    assert drawn.logprob.token_id == drawn.token_id
    assert drawn.logprob.logprob == pytest.approx(float(expected[0, drawn.token_id]))
    values, ids = expected[0].topk(5)
    assert [token for token, _ in drawn.logprob.top] == ids.tolist()
    assert [value for _, value in drawn.logprob.top] == pytest.approx(values.tolist())
    assert best.logprob is not None
    assert best.logprob.logprob == pytest.approx(float(expected[1].max()))
    assert best.logprob.top == ()
    assert silent.logprob is None


def test_impossible_alternatives_are_not_reported() -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 3] = 1.0
    one = sample(logits, [started(logprobs=4)])[0]
    assert one.token_id == 3
    assert one.logprob is not None
    assert one.logprob.top == ((3, 0.0),)


def test_min_tokens_bans_every_stop_until_reached() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 0], logits[0, 4], logits[0, 8] = 9.0, 8.0, 7.0
    state = started(
        temperature=0.0, min_tokens=2, stop_token_ids=(4, 10**9), eos_ids=(0,), ignore_eos=True
    )
    for expected in (8, 8, 0):
        token = sample(logits, [state])[0].token_id
        assert token == expected
        state.commit(token)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params",
    [{"temperature": 0.0}, {}, {"top_p": 0.5}, {"logprobs": 2}, {"top_k": 5, "min_p": 0.1}],
)
def test_broken_logits_name_their_rows(bad: float, params: dict[str, Any]) -> None:
    logits = random_logits(4)
    logits[1, 50] = bad
    logits[3, 0] = bad
    with pytest.raises(LogitsError, match=r"row\(s\) 1, 3") as caught:
        sample(logits, [started(**params) for _ in range(4)])
    assert caught.value.rows == (1, 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banning_every_possible_token_is_an_error_not_a_banned_token(temperature: float) -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 2] = 1.0
    state = started(temperature=temperature, min_tokens=1, eos_ids=(2,))
    with pytest.raises(LogitsError, match="min_tokens"):
        sample(logits, [state])


def test_logits_and_states_are_left_as_they_were() -> None:
    logits = random_logits(2)
    before = logits.clone()
    states = [
        started(top_p=0.5, frequency_penalty=1.0, logprobs=1),
        started(repetition_penalty=2.0),
    ]
    sample(logits, states)
    assert torch.equal(logits, before)
    assert states[0].counts is not None
    assert states[0].counts.sum() == 0
    assert states[1].seen is not None
    assert states[1].seen.sum() == len(set(PROMPT))


def test_an_empty_batch_samples_nothing() -> None:
    assert sample(torch.empty(0, VOCAB), []) == []


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_draws() -> None:
    wanted: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 7}, {"min_p": 0.05, "logprobs": 3},
        {"repetition_penalty": 1.3, "presence_penalty": 0.4, "min_tokens": 3},
    ]  # fmt: skip
    logits = random_logits(len(wanted), 30_000)
    tokens = {}
    for device in ("cpu", "cuda"):
        states = [
            SamplingState.start(
                SamplingParams(seed=row, **params), PROMPT, 30_000, device, eos_ids=(1,)
            )
            for row, params in enumerate(wanted)
        ]
        tokens[device] = [one.token_id for one in sample(logits.to(device), states)]
    assert tokens["cpu"] == tokens["cuda"]
