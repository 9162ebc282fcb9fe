"""`retina report`: parses, writes the page of a run, a study or several runs, opens it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from retina.commands.options import Split, console
from retina.errors import RetinaError
from retina.files import is_file_name

_COMPARISON = Path("comparison.html")


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY.PATH=VALUE]...", help="A run, a study, or runs to compare; data.* settings."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default RUN/report/index.html, STUDY/study.html, comparison.html.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which of the config's data to judge on.")] = "validation",
    checkpoint: Annotated[str, typer.Option(help="best, latest or step_N.")] = "best",
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write one page that says how good a run is and why; or a study's, or several runs' side by side."""
    overrides = [word for word in runs if "=" in word and not is_file_name(word)]
    paths = [Path(word) for word in runs if word not in overrides]
    if not paths:
        raise RetinaError(f"report: expected a run or a study first, got the override '{overrides[0]}'")
    page = _write(paths, out, split, checkpoint, overrides)
    console().print(f"The page is {page}.", markup=False, soft_wrap=True)
    if show:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())


def _write(paths: list[Path], out: Path | None, split: Split, checkpoint: str, overrides: list[str]) -> Path:
    if len(paths) == 1 and (paths[0] / "study.yaml").is_file():
        if overrides or split != "validation" or checkpoint != "best":
            raise RetinaError(
                f"{paths[0]}: a study's page takes neither --split, --checkpoint nor overrides; leave them out"
            )
        from retina.pages.study import write

        return write(paths[0], out or paths[0] / "study.html")
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    if len(paths) > 1:
        from retina.pages.comparison import write as compare

        return compare(paths, out or _COMPARISON, split=split, checkpoint=checkpoint, overrides=overrides)
    from retina.pages.run_page import write_report

    return write_report(paths[0], out, split=split, checkpoint=checkpoint, overrides=overrides)


def report_of_training(run: Path) -> Path | None:
    """The page at the end of a training.

    The run is whole by then: whatever goes wrong here is told in one line on standard error, and loses nothing.

    Returns:
        The page; None where it could not be written.
    """
    from retina.pages.run_page import write_report
    from retina.runs.directory import shown

    page, figures = run / "report" / "index.html", run / "metrics.jsonl"
    try:
        if page.is_file() and page.stat().st_mtime >= figures.stat().st_mtime:
            return page  # a finished run that was resumed stays as it is
        return write_report(run)
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        print(
            f"retina: warning: {what} (the run is complete; its report is not written: `retina report {shown(run)}`)",
            file=sys.stderr,
        )
        return None
