"""`adaptive-kv generate`."""

from typing import Annotated, Any

import typer

from adaptive_kv.cli import options


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer, or to continue.")],
    config: options.ConfigFile = None,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.DType = None,
    memory_budget: options.MemoryBudget = None,
    memory_source: options.MemorySource = None,
    mode: options.Mode = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes chance repeatable.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Answer as in a chat, or continue bare text.")
    ] = True,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log, and end with what it cost, on stderr.")
    ] = False,
) -> None:
    """Stream the answer to a prompt to stdout, without a server.

    Example: `adaptive-kv generate "What does itertools.chain do?" --mode int4`
    """
    from adaptive_kv.config import load_settings
    from adaptive_kv.log import adopt_transformers, configure_logging

    pinned = options.parse_mode(mode)
    flags: dict[str, Any] = options.engine_flags(
        model=model,
        device=device,
        dtype=dtype,
        memory_budget=memory_budget,
        memory_source=memory_source,
    )
    flags["log"] = {"level": None if verbose else "error"}
    settings = load_settings(config, flags)
    configure_logging(settings.log)
    adopt_transformers()

    from adaptive_kv.cli.answer import answer
    from adaptive_kv.engine.mailbox import SamplingParams

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    summary = answer(settings, prompt, sampling, pinned, as_chat=chat)
    if verbose:
        typer.echo(summary, err=True)
