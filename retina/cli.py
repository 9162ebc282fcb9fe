"""The command line: parses, calls one function per command, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import io
import sys
import traceback
from typing import Annotated, Any

import typer

from retina.commands.ablate import ablate
from retina.commands.benchmark import benchmark
from retina.commands.browse import browse
from retina.commands.compare import compare
from retina.commands.convert import convert
from retina.commands.doctor import doctor
from retina.commands.evaluate import evaluate
from retina.commands.export import export
from retina.commands.export_weights import export_weights
from retina.commands.guide import guide
from retina.commands.import_weights import import_weights
from retina.commands.options import Overrides, config_arguments
from retina.commands.predict import predict
from retina.commands.report import report
from retina.commands.score import score
from retina.commands.train import train
from retina.errors import Interrupted, RetinaError, RunFailed

FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 1, 2, 75, 130

# Typer brings its own copy of click or takes the installed one, by its version: this is the right one's.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Trains, evaluates and runs RetinaNet-style object detectors.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: one clear line on standard error and exit code 2 for bad input; `--debug` shows the traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    _never_fail_to_print()
    try:
        sys.exit(app(args=arguments, prog_name="retina", standalone_mode=False))
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        if type(error).__name__ == "NoArgsIsHelpError":  # `retina` alone: its message is the help
            print(error, file=sys.stderr)
            sys.exit(BAD_INPUT)
        code, text = _explain(error)
        print(f"retina: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(code)


def _never_fail_to_print() -> None:
    """A terminal that can't show a character shows a question mark, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and what the user reads of it."""
    if isinstance(error, (RetinaError, Interrupted, FloatingPointError)):
        codes = {RunFailed: FAILED, RetinaError: BAD_INPUT, Interrupted: RESUMABLE, FloatingPointError: FAILED}
        return next(code for kind, code in codes.items() if isinstance(error, kind)), str(error)
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "retina"
        return BAD_INPUT, f"{error.format_message()} See `{command} --help`."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # wherever a path of the user's is first used
        return BAD_INPUT, f"{error.filename}: cannot look for this file or folder: {error.strerror}; check the path"
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted"
    return FAILED, f"unexpected {type(error).__name__}: {error} (a defect of retina: `--debug` shows where)"


_COMMANDS = (
    train, evaluate, report, score, compare, convert, doctor, browse, predict, ablate, export, benchmark,
    import_weights, export_weights, guide,
)  # fmt: skip

for command in _COMMANDS:
    app.command()(command)


@app.command("config")
def show_config(
    config: Annotated[str | None, typer.Argument(help="A YAML file; without one, the digits demo.")] = None,
    overrides: Overrides = None,
) -> None:
    """Print the resolved configuration, every default spelled out."""
    from retina import config as configuration

    file, settings = config_arguments(config, overrides)
    print(configuration.to_yaml(configuration.load(file, settings)), end="")


@app.command()
def version() -> None:
    """Print the version."""
    import retina

    print(retina.__version__)


if __name__ == "__main__":
    main()
