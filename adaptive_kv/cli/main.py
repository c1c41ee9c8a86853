"""`adaptive-kv`: the commands put together, and what their failures become."""

import sys

import typer

from adaptive_kv import __version__
from adaptive_kv.cli.calibrate import calibrate
from adaptive_kv.cli.demo import demo
from adaptive_kv.cli.doctor import doctor
from adaptive_kv.cli.generate import generate
from adaptive_kv.cli.plan import plan
from adaptive_kv.cli.policy import policy
from adaptive_kv.cli.replay import replay
from adaptive_kv.cli.serve import serve
from adaptive_kv.cli.watch import watch
from adaptive_kv.errors import AdaptiveKVError, ConfigError, ModelError, PolicyError, TraceError

EXIT_FAILURE = 1
EXIT_CONFIG = 78
"""EX_CONFIG: trying again changes nothing; the systemd unit does not restart on it."""
_EXIT_USAGE = 2
_NO_TORCH = (
    f"torch is not installed; install the build that fits this box: {sys.executable} -m pip "
    "install torch, with the index that pytorch.org or the maker of the box names"
)

app = typer.Typer(
    name="adaptive-kv",
    help="Serve a language model whose KV cache changes form instead of falling over.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(generate)
app.command()(demo)
app.command()(watch)
app.command()(plan)
app.command()(replay)
app.command()(calibrate)
app.command()(doctor)
app.add_typer(policy, name="policy")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Keep the options that come before a command."""


def main() -> None:
    """Run the command line. Exit status: 0 success, 78 bad configuration or model, 1 otherwise."""
    try:
        app()
    except (ConfigError, ModelError, PolicyError, TraceError) as error:
        _fail(error, EXIT_CONFIG)
    except AdaptiveKVError as error:
        _fail(error, EXIT_FAILURE)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        _fail(ConfigError(_NO_TORCH), EXIT_CONFIG)
    except SystemExit as end:
        # A flag that does not exist is bad configuration like a key that does not exist.
        sys.exit(EXIT_CONFIG if end.code == _EXIT_USAGE else end.code)


def _fail(error: AdaptiveKVError, status: int) -> None:
    typer.echo(f"adaptive-kv: {error}", err=True)
    sys.exit(status)
