"""The worker's front desk: mail comes in as sequences, tokens go out as replies and status."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.controller import Controller
from adaptive_kv.engine import refusals
from adaptive_kv.engine.mailbox import (
    BeginDrain,
    Cancel,
    Delta,
    Failed,
    Finished,
    Mail,
    Mailbox,
    PinMode,
    Reconfigure,
    Reply,
    Request,
    TokenLogprob,
    UnpinMode,
)
from adaptive_kv.engine.sampling import Sampled, SamplingState
from adaptive_kv.engine.scheduler import Chunk, Scheduler
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.engine.switcher import Switcher
from adaptive_kv.engine.text import TextStream
from adaptive_kv.errors import Refusal
from adaptive_kv.events import Drain, Event, RequestRejected
from adaptive_kv.policy import CacheMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What of a tokenizer the worker needs."""

    tokenizer: PreTrainedTokenizerBase
    size: int
    eos_ids: frozenset[int]


class Desk:
    """Turns requests into sequences and sampled tokens into replies; worker thread only."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        switcher: Switcher,
        controller: Controller,
        store: PageStore,
        vocabulary: Vocabulary,
        *,
        max_context: int,
        set_floor: Callable[[int], None],
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mailbox = mailbox
        self._scheduler = scheduler
        self._switcher = switcher
        self._controller = controller
        self._store = store
        self._vocabulary = vocabulary
        self._max_context = max_context
        self._set_floor = set_floor
        self._emit = emit
        self._clock = clock
        self._num_requests = 0
        self.is_draining = False

    def take_mail(self, wait_s: float) -> None:
        """Do what the mail says; waits up to `wait_s` for some."""
        for mail in self._mailbox.collect(wait_s):
            self._take(mail)

    def emit(self, chunks: Seq[Chunk], sampled: Seq[Sampled]) -> list[Sequence]:
        """Add sampled tokens to their sequences and reply; returns the sequences that ended."""
        replies: list[Reply] = []
        ended = []
        for chunk, token in zip(chunks, sampled, strict=True):
            sequence = chunk.sequence
            new = self._append(sequence, token)
            replies += new
            if any(isinstance(reply, Finished) for reply in new):
                ended.append(sequence)
        self._mailbox.reply(replies)
        return ended

    def refuse(self, sequence: Sequence, refusal: Refusal) -> None:
        """End a sequence with an error; its neighbours go on."""
        self._end(sequence)
        self._reject(sequence.id, refusal)

    def refuse_broken(self, sequences: Seq[Sequence]) -> None:
        """End sequences whose logits are no numbers; only they are at fault."""
        for sequence in sequences:
            self.refuse(sequence, refusals.broken())

    def fail_everyone(self) -> None:
        """The worker is lost: tell everyone who waits."""
        refusal = refusals.failed()
        ids = [sequence.id for sequence in self._scheduler.everyone]
        ids += [mail.id for mail in self._mailbox.collect() if isinstance(mail, Request)]
        self._mailbox.reply([Failed(request_id=id_, refusal=refusal) for id_ in ids])

    def _take(self, mail: Mail) -> None:
        match mail:
            case Request():
                self._open(mail)
            case Cancel(request_id):
                if sequence := self._scheduler.find(request_id):
                    sequence.retire()
                    self._end(sequence)
            case PinMode(mode):
                self._controller.pin(mode)
            case UnpinMode():
                self._controller.unpin()
            case BeginDrain():
                self.is_draining = True
                self._emit(Drain(running=len(self._scheduler.everyone)))
            case Reconfigure():
                self._reconfigure(mail)

    def _reconfigure(self, mail: Reconfigure) -> None:
        self._set_floor(mail.floor_bytes)
        self._controller.reload(
            mail.policy,
            mail.policy_name,
            ladder=mail.ladder,
            min_dwell_s=mail.min_dwell_s,
            deadline_s=mail.deadline_s,
        )

    def _open(self, request: Request) -> None:
        mode = self._controller.mode_for(request.allow, self._controller.mode)
        if self.is_draining:
            self._reject(request.id, refusals.draining())
        elif mode is None:
            self._reject(request.id, refusals.no_mode(request))
        elif len(request.prompt_ids) >= self._max_context:
            self._reject(request.id, refusals.too_long(request, self._max_context))
        else:
            self._scheduler.add(self._make_sequence(request, mode))

    def _make_sequence(self, request: Request, mode: CacheMode) -> Sequence:
        self._num_requests += 1
        tokens = list(request.prompt_ids)
        vocabulary = self._vocabulary
        return Sequence(
            request=request,
            cache=SequenceCache(self._store, mode, tokens),
            sampling=SamplingState.start(
                request.sampling,
                request.prompt_ids,
                vocab_size=vocabulary.size,
                eos_ids=vocabulary.eos_ids,
                device=self._store.device,
            ),
            text=TextStream(
                vocabulary.tokenizer,
                request.prompt_ids,
                request.sampling.stop,
                request.sampling.min_tokens,
            ),
            number=self._num_requests,
            since_s=self._clock(),
            tokens=tokens,
        )

    def _append(self, sequence: Sequence, token: Sampled) -> list[Reply]:
        """The replies of one more token."""
        if sequence.num_output == 0:
            sequence.num_cached = sequence.cache.num_adopted
        sequence.tokens.append(token.token_id)
        sequence.sampling.commit(token.token_id)
        sequence.tokens_by_mode[sequence.mode] += 1
        is_stop_token = self._is_stop_token(sequence, token.token_id)
        text, is_stop_string = "", False
        if not is_stop_token:
            added = sequence.text.push(token.token_id)
            text, is_stop_string = added.text, added.is_stopped
        reason = "stop" if is_stop_token or is_stop_string else self._length_reason(sequence)
        if reason is not None and not is_stop_string:
            text += sequence.text.finish()
            reason = "stop" if sequence.text.is_stopped else reason
        logprobs = () if token.logprob is None else (token.logprob,)
        replies = [_delta(sequence, text, token.token_id, logprobs)]
        if reason is not None:
            usage = sequence.usage()
            return [*replies, Finished(request_id=sequence.id, reason=reason, usage=usage)]
        return replies

    def _is_stop_token(self, sequence: Sequence, token_id: int) -> bool:
        params = sequence.request.sampling
        is_eos = token_id in self._vocabulary.eos_ids and not params.ignore_eos
        return is_eos or token_id in params.stop_token_ids

    def _length_reason(self, sequence: Sequence) -> str | None:
        is_long = sequence.num_output >= sequence.request.sampling.max_tokens
        return "length" if is_long or len(sequence.tokens) >= self._max_context else None

    def _end(self, sequence: Sequence) -> None:
        sequence.drop()
        self._switcher.forget(sequence)
        self._scheduler.remove(sequence)

    def _reject(self, request_id: str, refusal: Refusal) -> None:
        self._emit(RequestRejected(request=request_id, code=refusal.code or refusal.type))
        self._mailbox.reply([Failed(request_id=request_id, refusal=refusal)])


def _delta(
    sequence: Sequence, text: str, token_id: int, logprobs: tuple[TokenLogprob, ...]
) -> Reply:
    return Delta(request_id=sequence.id, text=text, token_ids=(token_id,), logprobs=logprobs)
