"""The command line: a table of commands, each imported when it is called; errors as one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import io
import os
import re
import sys
import traceback
from typing import NamedTuple

import typer

from retina.errors import Interrupted, RetinaError, RunFailed
from retina.files import refuse_scheme
from retina.output import guarded

FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 1, 2, 75, 130
HELP = ("-h", "--help")
# An override, or an option with its value.
_SETTING = re.compile(r"[\w.-]+=")

# What to do where the system refuses a path, which is input, and where a disk or the machine gives out.
_ALLOWED = "it may not be read or written here; change its permissions, or choose another place"
_OF_PATHS = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of this path is a file; check the path",
    errno.EISDIR: "expected a file, it is a folder; give a file's name",
    errno.EEXIST: "there is something already; remove it, or choose another place",
    errno.ENOTEMPTY: "there is something already; remove it, or choose another place",
    errno.EACCES: _ALLOWED,
    errno.EPERM: _ALLOWED,
    errno.EROFS: _ALLOWED,
}
_OF_DISKS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or choose another place")
# TensorFlow's errors of reading and writing.
_OF_SYSTEM = (
    "PermissionDeniedError",
    "NotFoundError",
    "FailedPreconditionError",
    "AlreadyExistsError",
    "DataLossError",
)


class Command(NamedTuple):
    """A command: heading and line of `retina --help`, and its function, which stands in the module of the same name."""

    group: str
    help: str
    function: str


_TRAIN, _JUDGE, _DATA, _USE, _LOOK_UP = "Train", "Judge", "Data", "Use a detector", "Look up"

COMMANDS = {
    "init": Command(_TRAIN, "Write a configuration for a folder of your images.", "init"),
    "train": Command(_TRAIN, "Train a detector on a folder or by a configuration.", "train"),
    "ablate": Command(_TRAIN, "Compare settings of the loss, or of anything, over seeds.", "ablate"),
    "import-weights": Command(_TRAIN, "Turn another ecosystem's detector or backbone into a run.", "import_weights"),
    "evaluate": Command(_JUDGE, "Print how good a run is, how sure that is, and what lacks.", "evaluate"),
    "report": Command(_JUDGE, "Write the page of a run, of a study, or of several runs.", "report"),
    "compare": Command(_JUDGE, "Tell which of two detectors is better on the same images.", "compare"),
    "score": Command(_JUDGE, "Score anybody's detections against anybody's ground truth.", "score"),
    "doctor": Command(_DATA, "Examine data, alone or through a configuration's anchors.", "doctor"),
    "browse": Command(_DATA, "Write one page to look through a dataset and its defects.", "browse"),
    "convert": Command(_DATA, "Write a dataset in another format, and check what was written.", "convert"),
    "predict": Command(_USE, "Detect objects in images; draw them, and list them.", "predict"),
    "export": Command(_USE, "Write a detector for serving; prove that it scores the same.", "export"),
    "export-weights": Command(_USE, "Write a run's weights as a state dict of torchvision.", "export_weights"),
    "benchmark": Command(_USE, "Time detection from encoded images to boxes.", "benchmark"),
    "guide": Command(_LOOK_UP, "Show the manual, a page a topic.", "guide"),
    "config": Command(_LOOK_UP, "Print a configuration in full, or explain its settings.", "config"),
    "version": Command(_LOOK_UP, "Print the version.", "version"),
}


def main() -> None:
    """Run the command line: an error is one line on standard error and an exit code; `--debug` adds the traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    _never_fail_to_print()
    try:
        code = run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, text = _explain(error)
        print(f"retina: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(_end_output(code or 0, arguments[0] if arguments else ""))


def run(arguments: list[str]) -> int | None:
    """The exit code of a command line without the word `retina`; None stands for 0.

    Raises:
        RetinaError: there is no such command.
    """
    if not arguments:
        print(overview(), file=sys.stderr)
        return BAD_INPUT
    name, *rest = arguments
    if name in HELP:
        print(overview())
        return None
    if name == "--completion":
        print(completion(*rest), end="")
        return None
    if name == "--version":
        name = "version"
    for word in rest:
        refuse_scheme(word.partition("=")[2] if _SETTING.match(word) else word)
    return app_of(name)(args=rest, prog_name=f"retina {name}", standalone_mode=False)


def app_of(name: str) -> typer.Typer:
    """The application of one command, which is imported now.

    Raises:
        RetinaError: there is no such command.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean `retina {near[0]}`?" if near else "`retina --help` lists them"
        raise RetinaError(f"No such command '{name}'; {remedy}")
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": list(HELP)},
    )
    function = COMMANDS[name].function
    module = importlib.import_module(f"retina.commands.{function}")
    app.command(cls=getattr(module, "PARSER", None))(getattr(module, function))
    return app


def overview() -> str:
    """The text of `retina --help`: every command under its heading."""
    lines = [
        "Usage: retina COMMAND [ARGUMENTS]",
        "",
        "  Trains, evaluates and runs RetinaNet-style object detectors.",
    ]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        for name, command in COMMANDS.items():
            if command.group == group:
                lines.append(f"  {name:<15} {command.help}")
    return "\n".join([*lines, "", "`retina COMMAND --help` explains one; `--debug` adds the traceback to an error."])


_COMPLETION = """{opening}_retina() {{
    local words="{commands} --help --version"
    if ((COMP_CWORD > 1)); then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -o bashdefault -F _retina retina
"""


def completion(shell: str = "bash", *_: str) -> str:
    """Return a script for bash or zsh that completes commands and options, and files where none of them fits.

    Raises:
        RetinaError: it is another shell.
    """
    if shell not in ("bash", "zsh"):
        raise RetinaError(f"--completion: expected bash or zsh, got '{shell}'")
    opening = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    cases = "\n".join(f'            {name}) words="{" ".join(_options_of(name))}" ;;' for name in COMMANDS)
    return _COMPLETION.format(opening=opening, commands=" ".join(COMMANDS), cases=cases)


def _options_of(name: str) -> list[str]:
    parameters = typer.main.get_command(app_of(name)).params
    return [option for parameter in parameters for option in parameter.opts if option.startswith("--")] + ["--help"]


def _never_fail_to_print() -> None:
    """Let no output end a command: a terminal that lacks a character shows a question mark, that of one that went is
    lost."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = guarded(sys.stdout), guarded(sys.stderr)


def _end_output(code: int, command: str) -> int:
    """Flush what was printed, and return the exit code: a command that was to print, and could not, has failed.

    A command that trains has not: what it made lies in a folder.
    """
    output = guarded(sys.stdout)
    output.flush()
    if output.lost is None:
        return code
    if not isinstance(output.lost, BrokenPipeError):  # after `| head` nobody misses it
        text = f"retina: standard output could not be written ({output.lost}); give it another place"
        print(text, file=sys.stderr)
    # What is left in the buffer must not fail again at the exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return code or (0 if command in COMMANDS and COMMANDS[command].group == _TRAIN else FAILED)


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and what the user reads of it."""
    if isinstance(error, (RetinaError, Interrupted, FloatingPointError)):
        codes = {RunFailed: FAILED, RetinaError: BAD_INPUT, Interrupted: RESUMABLE, FloatingPointError: FAILED}
        return next(code for kind, code in codes.items() if isinstance(error, kind)), str(error)
    if isinstance(error, typer.TyperException):  # wrong usage of a command's options
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "retina"
        return BAD_INPUT, f"{error.format_message()} See `{command} --help`."
    if isinstance(error, OSError) and error.strerror:
        return _explain_system(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("retina"):
        return BAD_INPUT, f"{_said(error)}: a package is missing or damaged; install it again, with the extra it is in"
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # NumPy's, and TensorFlow's
        return FAILED, f"there is no room left: {_said(error)}; free memory or disk, or take smaller batches or images"
    if type(error).__module__.startswith("tensorflow.") and type(error).__name__ in _OF_SYSTEM:
        return FAILED, f"{_said(error)}; check the place that is read or written"
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted"
    return FAILED, f"unexpected {type(error).__name__}: {error} (a defect of retina: `--debug` shows where)"


def _explain_system(error: OSError) -> tuple[int, str]:
    """The exit code and the words of what the system refused: a place of the user's, or a disk that is full."""
    if error.errno == errno.ENAMETOOLONG:  # wherever a path of the user's is first used
        return BAD_INPUT, f"{error.filename}: cannot look for this file or folder: {error.strerror}; check the path"
    place = error.filename2 or error.filename  # of a renaming, the target
    where = "" if place is None else f"{str(place).replace('.partial.', '')}: "
    code = BAD_INPUT if error.errno in _OF_PATHS else FAILED
    remedy = _OF_PATHS.get(error.errno or 0) or _OF_DISKS.get(error.errno or 0, "check the system")
    return code, f"{where}{error.strerror}; {remedy} (`--debug` shows where)"


def _said(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


if __name__ == "__main__":
    main()
