"""The command line: parses, calls one function per command, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retina.errors import Interrupted, RetinaError

if TYPE_CHECKING:
    from rich.console import Console

    from retina.inference import Detections

FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 1, 2, 75, 130
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

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

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that replace the file's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Checkpoint = Annotated[str, typer.Option(help="best, latest or step_N.")]
Split = Literal["train", "validation", "test"]


def main() -> None:
    """Entry point: one clear line on standard error and exit code 2 for bad input; `--debug` shows the traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
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


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and what the user reads of it."""
    if isinstance(error, (RetinaError, Interrupted, FloatingPointError)):
        codes = {RetinaError: BAD_INPUT, Interrupted: RESUMABLE, FloatingPointError: FAILED}
        return next(code for kind, code in codes.items() if isinstance(error, kind)), str(error)
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "retina"
        return BAD_INPUT, f"{error.format_message()} See `{command} --help`."
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted"
    return FAILED, f"unexpected {type(error).__name__}: {error} (a defect of retina: `--debug` shows where)"


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A YAML file; without one, the digits demo.")] = None,
    overrides: Overrides = None,
    run_dir: Annotated[Path, typer.Option(help="A new folder for everything the run writes.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
) -> None:
    """Train a detector and evaluate it on the validation data."""
    from retina import config as configuration

    file, settings = _config_arguments(config, overrides)
    if resume and file is None:
        file = str(run_dir / "config.yaml")
    # Read before TensorFlow is imported, which takes seconds: a typo is told at once.
    resolved = configuration.load(file, settings)
    _train()(resolved, run_dir, resume=resume)
    console = _console()
    console.print(f"The run is in {run_dir}. Look at it:", markup=False)
    console.print(f"  retina evaluate {run_dir}\n  retina predict {run_dir} IMAGE…", markup=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help="Which of the config's data to evaluate on.")] = "validation",
    checkpoint: Checkpoint = "best",
    out: Annotated[Path | None, typer.Option(help="Also write metrics, detections and pictures here.")] = None,
    as_json: Json = False,
) -> None:
    """Print the COCO metrics of a trained run."""
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.evaluation.tables import class_table, metrics_table, to_json
    from retina.report.evaluation import write_evaluation
    from retina.training.loading import evaluate as evaluate_run

    metrics, table, dataset = evaluate_run(run, split, checkpoint=checkpoint, overrides=overrides or ())
    if out is not None:
        write_evaluation(out, dataset, table, metrics, pictures=9)
    if as_json:
        print(json.dumps({"run": str(run), "split": split, "checkpoint": checkpoint, **to_json(metrics)}, indent=2))
        return
    console = _console()
    for note in dataset.notes:
        console.print(note, markup=False)
    console.print(metrics_table(metrics))
    console.print(class_table(metrics))
    if out is not None:
        console.print(f"Metrics, detections and pictures are in {out}.", markup=False)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and detections.json.")] = Path("predictions"),
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out detections below this score.")] = 0.4,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Detect objects in images; writes pictures with boxes, and the detections."""
    files = _image_files(images)
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.report.predictions import write_predictions
    from retina.training.loading import load

    predictor = load(run, checkpoint)
    lowest = predictor.config.inference.score_threshold
    if score < lowest:
        raise RetinaError(
            f"--score {score}: the run's inference.score_threshold is {lowest}; nothing below it is found"
        )
    # Everything is detected before anything is written: a broken image leaves no half-filled folder.
    found = [detections.above(score) for detections in predictor.predict(files)]
    pictures = write_predictions(out, files, found, predictor.class_names)
    if as_json:
        print(json.dumps([_as_tree(file, detections) for file, detections in zip(files, found, strict=True)], indent=2))
        return
    for file, detections, picture in zip(files, found, pictures, strict=True):
        print(f"{file}: {_in_words(detections)}  →  {picture}")


@app.command("config")
def show_config(
    config: Annotated[str | None, typer.Argument(help="A YAML file; without one, the digits demo.")] = None,
    overrides: Overrides = None,
) -> None:
    """Print the resolved configuration, every default spelled out."""
    from retina import config as configuration

    file, settings = _config_arguments(config, overrides)
    print(configuration.to_yaml(configuration.load(file, settings)), end="")


@app.command()
def version() -> None:
    """Print the version."""
    import retina

    print(retina.__version__)


def _train() -> Any:
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.training.train import train as train_run

    return train_run


def _config_arguments(config: str | None, overrides: list[str] | None) -> tuple[str | None, list[str]]:
    """`retina train run.seed=1` has no CONFIG: what looks like an override is one."""
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *(overrides or [])]
    return config, overrides or []


def _image_files(paths: list[Path]) -> list[Path]:
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise RetinaError(
                    f"{path}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise RetinaError(f"{path}: no such image")
    return files


def _as_tree(file: Path, detections: Detections) -> dict[str, Any]:
    return {"image": str(file), "detections": detections.to_list()}


def _in_words(detections: Detections) -> str:
    counts: dict[str, int] = {}
    for name in detections.names:
        counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda c: -c[1])) or "nothing found"
    )


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


if __name__ == "__main__":
    main()
