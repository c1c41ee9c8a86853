"""The document about modes and switches, made of the figures alone."""

from collections.abc import Mapping
from typing import Any

Switches = Mapping[tuple[str, str], Mapping[str, Any]]

_INTRODUCTION = """\
A mode is how a sequence's cache is kept; a switch brings its pages from one mode to another between
two tokens, a bounded amount of work per step, while the sequence goes on. The token ids of a
sequence are never dropped: whatever a mode has lost can be computed again from them."""

_METHOD = """\
All figures are measured on the embedded model (float32, {cpu}, {threads} thread, torch {torch}) by
`benchmarks/modes.py`, and tests hold this page against new measurements. A sequence reads
{before_tokens} tokens of the text that models are calibrated on in one mode, switches, and reads
{after_tokens} more in the other. What it expects after each of these is compared with a sequence
that was always `full`: *KL* is the mean divergence in nats, *same top token* how often both hold
the same token for the likeliest. *Moved* is read and written, *took* the time for all of it, which
the engine spreads over steps. The first {sinks} tokens (sinks) and the newest {recent} are never
packed. Another model loses more or less: `adaptive-kv calibrate` measures yours."""

_MODES = """\
Full pages are in float32 here; in a 16-bit type they weigh half as much, packed ones the same.
What a window loses is more than any packing, because it is whole tokens; here they are text that
the embedded model hardly uses, and in a question about something that was dropped all would be
lost. `window:N+int8` and `window:N+int4` lose both."""

_KINDS: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "full",
        "int8",
        "blocks of pages are packed, the oldest first, each into one page that is free",
        "rounding to 8 bits, and what the rounded past makes of later tokens",
        "heal",
    ),
    ("full", "int4", "the same; keys are rotated first", "rounding to 4 bits", "heal"),
    (
        "int8",
        "int4",
        "codes are read and packed again",
        "as much as from `full` at once",
        "heal",
    ),
    ("int4", "int8", "unpacked and packed again", "stays lost", "heal"),
    ("int8", "full", "dequantized into pages of full size", "stays lost", "heal"),
    ("int4", "full", "dequantized into pages of full size", "stays lost", "heal"),
    (
        "full",
        "window:512",
        "pages between sinks and window are freed; none is read",
        "the tokens in them",
        "heal: the gap is filled only by computing again",
    ),
    (
        "full",
        "window:512+int4",
        "pages are freed first, then what is left is packed",
        "the tokens, and rounding of the rest",
        "heal",
    ),
    (
        "window:512",
        "full",
        "nothing: the cache grows on",
        "the gap stays, and matters less as new tokens come",
        "heal",
    ),
    (
        "full",
        "disabled",
        "all pages are freed; each later step runs the whole sequence",
        "nothing; every token now costs compute, and activations of the whole sequence",
        "re-prefill",
    ),
    (
        "int4",
        "disabled",
        "the same",
        "nothing any more: it is computed from token ids",
        "re-prefill",
    ),
    (
        "disabled",
        "full",
        "re-prefill: {recomputed} tokens run again, in chunks",
        "nothing",
        "is one",
    ),
    (
        "disabled",
        "int4",
        "re-prefill, packed as it grows",
        "as in `int4` from the start",
        "heal, once `full`",
    ),
)
"""From, to, what is done, what is lost, how that comes back."""

_WAYS_BACK = """\
- **Dequantize** (`int8`, `int4` to a larger format): at once and cheap, and the loss stays. Tokens
  that were generated meanwhile saw the rounded past, so even their own full pages are inexact.
- **Heal** (`cache.heal`): when a sequence may be `full` again, memory has room and nobody waits,
  all of it is computed anew from token ids, some tokens per step beside the decoding, into a second
  cache that takes the place of the first. What follows equals a fresh `full` run up to the rounding
  of sums. Tokens that were already sent stay as they were.
- **Re-prefill** (from `disabled`, or after parking): the same computation in one piece, before the
  next token. Exact.
- **Parking**, where nothing smaller fits: all pages are freed, decoding stops, and the sequence
  resumes by re-prefill when it fits again. It moves no bytes and loses nothing but time; past
  `server.max_wait_s` the request gets 503.

`usage.adaptive_kv.exact` of a request is true only if none of its tokens saw anything lossy; events
tell every switch with the bytes it freed and how long it took."""

_CALIBRATION = """\
Over {num_positions} positions of the built-in text, as the service measures it when it first loads
the model. In bfloat16 the rounding of every product alone decides a near tie now and then."""


def render(report: Mapping[str, Any]) -> str:
    """`docs/modes.md` for the report that `modes.py` wrote."""
    found = {(s["from_mode"], s["to_mode"]): s for s in report["switches"]}
    modes = report["modes"]
    calibrations = report["calibrations"]
    pairs = [_KINDS_HEAD, *(_kind(found[kind[:2]], kind) for kind in _KINDS if kind[:2] in found)]
    parts = [
        "# Modes and switches",
        "<!-- made of benchmarks/modes.json by `make bench`; do not edit -->",
        _INTRODUCTION,
        _METHOD.format(**report["machine"], **report),
        "## What a mode weighs and loses",
        _modes(found, modes),
        _MODES,
        "## What each kind of switch costs and loses",
        "\n".join(pairs),
        "## Every pair",
        "KiB of pages that a switch reads and writes (rows: from; columns: to).",
        _matrix(modes, found, lambda s: f"{s['moved_bytes'] / 1024:.0f}"),
        "KiB of pages that it frees; negative where the cache grows.",
        _matrix(modes, found, lambda s: f"{(s['before_bytes'] - s['after_bytes']) / 1024:.0f}"),
        "KL divergence from `full` afterwards.",
        _matrix(modes, found, lambda s: _kl(s["kl_divergence"])),
        "## Ways back",
        _WAYS_BACK,
        "## Calibration of the embedded model",
        _CALIBRATION.format(**calibrations["float32"]),
        _losses(calibrations),
    ]
    return "\n\n".join(parts) + "\n"


_KINDS_HEAD = """\
| switch | what is done | moved | frees | took | lost | KL, same top token | way back |
|---|---|---|---|---|---|---|---|"""


def _kind(found: Mapping[str, Any], kind: tuple[str, str, str, str, str]) -> str:
    from_mode, to_mode, done, lost, back = kind
    cells = (
        f"`{from_mode}` to `{to_mode}`",
        done.format(recomputed=found["recomputed_tokens"]),
        _kib(found["moved_bytes"]),
        _kib(found["before_bytes"] - found["after_bytes"]),
        f"{found['took_ms']:.1f} ms",
        lost,
        f"{_kl(found['kl_divergence'])}, {_percent(found['top1_agreement'])}",
        back,
    )
    return f"| {' | '.join(cells)} |"


def _modes(found: Switches, modes: list[str]) -> str:
    largest = max(found[mode, mode]["after_bytes"] for mode in modes)
    lines = ["| mode | pages | of `full` | lost: KL | same top token |", "|---" * 5 + "|"]
    for mode in modes:
        row = found[mode, mode]
        lines.append(
            f"| `{mode}` | {_kib(row['after_bytes'])} | {row['after_bytes'] / largest:.0%} "
            f"| {_kl(row['kl_divergence'])} | {_percent(row['top1_agreement'])} |"
        )
    return "\n".join(lines)


def _matrix(modes: list[str], found: Switches, cell: Any) -> str:
    lines = [f"| | {' | '.join(f'`{mode}`' for mode in modes)} |", "|---" * (len(modes) + 1) + "|"]
    for row in modes:
        cells = " | ".join(cell(found[row, column]) for column in modes)
        lines.append(f"| `{row}` | {cells} |")
    return "\n".join(lines)


def _losses(calibrations: Mapping[str, Any]) -> str:
    lines = [
        "| weights and cache | format | KL | same top token | perplexity |",
        "|---" * 5 + "|",
    ]
    for dtype, found in calibrations.items():
        lines.append(f"| {dtype} | `full` | 0 | 100 % | {found['perplexity']:.2f} |")
        for name, loss in found["formats"].items():
            lines.append(
                f"| {dtype} | `{name}` | {_kl(loss['kl_divergence'])} "
                f"| {_percent(loss['top1_agreement'])} | {loss['perplexity']:.2f} |"
            )
    return "\n".join(lines)


def _kib(num_bytes: int) -> str:
    return f"{num_bytes / 1024:.0f} KiB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 1 else "100 %"


def _kl(kl: float) -> str:
    """Two digits; below what float32 sums can tell, nothing."""
    return "0" if kl < 1e-9 else f"{kl:.2g}"
