"""What packed formats lose on a model, as a table for people."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adaptive_kv.documents import CalibrationState


def losses_table(model: str, state: CalibrationState) -> Table:
    """A row for `full` and for every packed format, with the verdict."""
    title = f"{model}: {state.num_positions} positions of {state.num_tokens} tokens compared"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title)
    table.add_column("format", no_wrap=True)
    for column in ("KL from full", "same top token", "perplexity"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_row("full", "0", "100 %", _number(state.perplexity), "exact")
    for name, loss in state.formats.items():
        table.add_row(
            name,
            _number(loss.kl_divergence),
            f"{100 * loss.top1_agreement:.2f} %",
            _number(loss.perplexity),
            f"struck: KL over {state.max_kl:g}" if loss.struck else "kept",
        )
    return table


def _number(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.4g}"
