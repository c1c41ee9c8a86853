"""How the next token of each sequence is chosen from its logits.

The order is vLLM's and transformers': log-probabilities from the raw logits; then `min_tokens`
bans, repetition penalty, frequency and presence penalties, temperature, top_k, top_p, min_p.

Every random number is a function of a sequence's seed and of how many tokens it has, so a
sequence draws the same tokens in any batch, and a step that is retried draws them again.
"""

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaptive_kv.engine.mailbox import SamplingParams, TokenLogprob
from adaptive_kv.errors import AdaptiveKVError
from adaptive_kv.sending import to_device

_MIN_TEMPERATURE = 1e-5
"""Below it a draw could only pick the best token; dividing by it would only lose digits."""

_NUM_CANDIDATES = 1024
"""A nucleus is looked for among so many best tokens before the whole vocabulary is sorted."""

_BROKEN, _UNDECIDED = -1, -2
"""In place of a token: there is none, or more candidates are wanted."""

_BLOCK = 128
"""Token ids per block of the two-step draw."""


class LogitsError(AdaptiveKVError, FloatingPointError):
    """The model gave no usable logits for `rows`; the other rows can be sampled without them."""

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            f"logits of row(s) {', '.join(map(str, rows))} are NaN or infinite, or min_tokens bans "
            "every token; check the weights and the dtype"
        )
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen for one sequence; `logprob` only where its parameters ask for it."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(slots=True, eq=False)
class SamplingState:
    """What sampling remembers of one sequence. Made by `start`, advanced by `commit` only."""

    params: SamplingParams
    seed: int
    stop_ids: tuple[int, ...]
    """Token ids banned until `min_tokens` are there."""
    seen: Tensor | None
    """`[vocab]` bool: in the prompt or the output; kept for a repetition penalty only."""
    counts: Tensor | None
    """`[vocab]` float32: times in the output; kept for the other two penalties only."""
    num_outputs: int = 0

    @classmethod
    def start(
        cls,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        vocab_size: int,
        device: torch.device | str = "cpu",
        eos_ids: Iterable[int] = (),
    ) -> Self:
        """The state before the first output token; `eos_ids` end a sequence of this model."""
        seen = counts = None
        if params.repetition_penalty != 1.0:
            seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            known = sorted({token for token in prompt_ids if token < vocab_size})
            seen[to_device(known, seen.device, torch.long)] = True
        if params.presence_penalty or params.frequency_penalty:
            counts = torch.zeros(vocab_size, device=device)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        stop_ids = {token for token in (*eos_ids, *params.stop_token_ids) if token < vocab_size}
        return cls(params, seed, tuple(sorted(stop_ids)), seen, counts)

    def commit(self, token_id: int) -> None:
        """Count a token that now belongs to the sequence."""
        self.num_outputs += 1
        if self.seen is not None:
            self.seen[token_id] = True
        if self.counts is not None:
            self.counts[token_id] += 1

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Token ids that the next token must not be."""
        return self.stop_ids if self.num_outputs < self.params.min_tokens else ()

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken, not drawn."""
        return self.params.temperature < _MIN_TEMPERATURE or self.params.top_k == 1

    @property
    def is_plain(self) -> bool:
        """Whether the token is simply the best of the raw logits."""
        is_unpenalized = self.seen is None and self.counts is None
        return self.is_greedy and is_unpenalized and not self.banned_ids

    @property
    def uniform(self) -> float:
        """The random number in [0, 1) of the next token, a multiple of 2**-48."""
        digest = blake2b(f"{self.seed}:{self.num_outputs}".encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big") / 2**48


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
    """One token per row of `logits` (`[n, vocab]`, any float type), row i by `states[i]`.

    Changes neither logits nor states. Greedy ties go to the lowest id; tokens that tie at the
    border of top_k or top_p are all kept. Raises `LogitsError`.

    The device is asked once, for the tokens; again only where a nucleus is unusually large.
    """
    assert len(logits) == len(states)
    if not states:
        return []
    found = _sample(logits, states, _NUM_CANDIDATES)
    if any(one.token_id == _UNDECIDED for one in found):
        found = _sample(logits, states, logits.shape[-1])
    broken = tuple(row for row, one in enumerate(found) if one.token_id == _BROKEN)
    if broken:
        raise LogitsError(broken)
    return found


def _sample(logits: Tensor, states: Sequence[SamplingState], num_candidates: int) -> list[Sampled]:
    """As `sample`, but that tokens may be broken or undecided."""
    best, chosen = logits.max(dim=-1)
    if not all(state.is_plain for state in states):
        chosen = _choose(logits.float(), states, num_candidates)
    chosen = chosen.where(best.abs() < math.inf, _BROKEN)  # false for NaN, too
    if any(state.params.logprobs is not None for state in states):
        return _with_logprobs(logits, chosen, states)
    return [Sampled(token_id) for token_id in chosen.tolist()]


def _choose(raw: Tensor, states: Sequence[SamplingState], num_candidates: int) -> Tensor:
    """Token ids `[n]`; broken where every token is impossible."""
    scores = penalized(raw, states)
    best, chosen = scores.max(dim=-1)
    rows = [row for row, state in enumerate(states) if not state.is_greedy]
    if rows:
        index = to_device(rows, raw.device, torch.long)
        drawing = [states[row] for row in rows]
        kept, is_enough = _truncate(scores[index], drawing, num_candidates)
        chosen[index] = _draw(kept, drawing).where(is_enough, _UNDECIDED)
    return chosen.where(best.abs() < math.inf, _BROKEN)


def penalized(raw: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """A copy of float32 logits `[n, vocab]` with bans and penalties applied."""
    scores = raw.clone()
    bans = [(row, token) for row, state in enumerate(states) for token in state.banned_ids]
    if bans:
        rows, tokens = to_device(bans, raw.device, torch.long).unbind(dim=1)
        scores[rows, tokens] = float("-inf")
    for row, state in enumerate(states):
        _penalize(scores[row], state)
    return scores


def _penalize(row: Tensor, state: SamplingState) -> None:
    params = state.params
    if state.seen is not None:
        penalty = params.repetition_penalty
        repeated = torch.where(row < 0, row * penalty, row / penalty)
        row.copy_(torch.where(state.seen, repeated, row))
    if state.counts is not None:
        row.sub_(state.counts, alpha=params.frequency_penalty)
        row.sub_((state.counts > 0).float(), alpha=params.presence_penalty)


def truncated(scores: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Scores `[n, vocab]` at their temperatures, best at 0; -inf where cut by top_k, top_p, min_p.

    Overwrites `scores`.
    """
    return _truncate(scores, states, scores.shape[-1])[0]


def _truncate(
    scores: Tensor, states: Sequence[SamplingState], num_candidates: int
) -> tuple[Tensor, Tensor]:
    """As `truncated`, and `[n]`: whether a nucleus was found among so many best tokens."""

    def column(value: Callable[[SamplingParams], float], dtype: torch.dtype) -> Tensor:
        values = [value(state.params) for state in states]
        return to_device(values, scores.device, dtype)[:, None]

    vocab = scores.shape[-1]
    is_enough = torch.ones(len(states), dtype=torch.bool, device=scores.device)
    scores -= scores.amax(dim=-1, keepdim=True)
    scores /= column(lambda params: params.temperature, torch.float32)
    if any(state.params.top_k > 0 for state in states):
        most = min(max(state.params.top_k for state in states), vocab)
        _cut_top_k(scores, column(lambda params: min(params.top_k, vocab), torch.long), most)
    if any(state.params.top_p < 1 for state in states):
        top_p = column(lambda params: params.top_p, torch.float64)
        is_enough = _cut_top_p(scores, top_p, min(num_candidates, vocab))
    if any(state.params.min_p > 0 for state in states):
        least = column(lambda params: params.min_p, torch.float32).log()
        scores.masked_fill_(scores < least, float("-inf"))
    return scores, is_enough


def _cut_top_k(scores: Tensor, top_k: Tensor, most: int) -> None:
    """Keep the `top_k` (`[n, 1]`, `most` at most; all where below 1) best of each row."""
    cutoff = scores.topk(most).values.gather(-1, (top_k - 1).clamp(min=0))
    scores.masked_fill_((scores < cutoff) & (top_k > 0), float("-inf"))


def _cut_top_p(scores: Tensor, top_p: Tensor, num_candidates: int) -> Tensor:
    """Keep the fewest best of each row that together reach `top_p` (`[n, 1]` float64).

    Answers `[n]`: whether these are among the `num_candidates` best; else they are not all kept.
    """
    is_all = num_candidates == scores.shape[-1]
    total = scores.logsumexp(dim=-1, keepdim=True)
    values = (scores.sort(descending=True) if is_all else scores.topk(num_candidates)).values
    shares, sums = _shares(values, total)
    num_kept = (sums - shares < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
    cutoff = values.gather(-1, num_kept - 1)
    scores.masked_fill_((scores < cutoff) & (top_p < 1), float("-inf"))
    reached = sums[:, -1] >= top_p[:, 0]
    return reached | (top_p[:, 0] >= 1) | is_all


def _shares(values: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    shares = (values - total).exp().double()
    return shares, shares.cumsum(dim=-1)


def _draw(scores: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Token ids `[n]`: where the running sum of probabilities, in order of ids, passes `uniform`.

    In order of ids, because the order of a sort among equals may change with the batch. First the
    block is found, then the token in it: double precision without a table of doubles.
    """
    numbers = [state.uniform for state in states]
    uniforms = to_device(numbers, scores.device, torch.float64)
    shares = pad(scores.softmax(dim=-1), (0, -scores.shape[-1] % _BLOCK))
    blocks = shares.view(len(states), -1, _BLOCK)
    block, rest = _pick(blocks.sum(dim=-1, dtype=torch.float64), uniforms)
    inside = blocks[torch.arange(len(states), device=scores.device), block].double()
    return block * _BLOCK + _pick(inside, rest)[0]


def _pick(shares: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Where `uniforms` `[n]` fall among `shares` `[n, m]` (float64), and how far into that share.

    Both uniforms are in [0, 1), and a share of 0 is never picked. NaN shares give any index.
    """
    sums = shares.cumsum(dim=-1)
    at = uniforms * sums[:, -1]
    picked = torch.searchsorted(sums, at[:, None], right=True).clamp(max=shares.shape[-1] - 1)
    share = shares.gather(-1, picked)[:, 0]
    start = sums.gather(-1, picked)[:, 0] - share
    return picked[:, 0], ((at - start) / share).clamp(0, 1 - 2**-48)


def _with_logprobs(
    logits: Tensor, chosen: Tensor, states: Sequence[SamplingState]
) -> list[Sampled]:
    """Tokens and log-probabilities in one copy to the host; float64 holds every id exactly."""
    wanted = max(state.params.logprobs or 0 for state in states)
    all_logprobs = logits.float().log_softmax(dim=-1)
    own = all_logprobs.gather(-1, chosen.clamp(min=0)[:, None])
    top, top_ids = all_logprobs.topk(min(wanted, logits.shape[-1]))
    table = torch.cat([part.double() for part in (chosen[:, None], own, top, top_ids)], dim=-1)
    found = zip(table.tolist(), states, strict=True)
    return [_sampled(row, state.params.logprobs) for row, state in found]


def _sampled(row: list[float], wanted: int | None) -> Sampled:
    token_id, own, *rest = row
    if wanted is None:
        return Sampled(int(token_id))
    half = len(rest) // 2
    pairs = zip(map(int, rest[half:]), rest[:half], strict=True)
    ranked = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:wanted]
    top = tuple(pair for pair in ranked if pair[1] > float("-inf"))
    return Sampled(int(token_id), TokenLogprob(token_id=int(token_id), logprob=own, top=top))
