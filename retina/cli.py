"""The command line: parses, calls one function per command, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import io
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retina.ablation.command import ablate
from retina.errors import Interrupted, RetinaError
from retina.export.benchmark_command import benchmark
from retina.export.command import export
from retina.files import IMAGE_SUFFIXES, exists, is_file_name

if TYPE_CHECKING:
    from rich.console import Console

    from retina.inference import Detections

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

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that replace the file's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Checkpoint = Annotated[str, typer.Option(help="best, latest or step_N.")]
Split = Literal["train", "validation", "test"]
ProtocolOption = Annotated[Literal["coco", "voc07", "voc10", "pascal-devkit"], typer.Option(help="Whose rules.")]
Replicates = Annotated[
    int | None, typer.Option(help="Resamples of the images for coco's intervals: 1000; 0 for none.", min=0)
]


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
        codes = {RetinaError: BAD_INPUT, Interrupted: RESUMABLE, FloatingPointError: FAILED}
        return next(code for kind, code in codes.items() if isinstance(error, kind)), str(error)
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "retina"
        return BAD_INPUT, f"{error.format_message()} See `{command} --help`."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # wherever a path of the user's is first used
        return BAD_INPUT, f"{error.filename}: cannot look for this file or folder: {error.strerror}; check the path"
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
    run: Annotated[Path, typer.Argument(help="A run directory, or an export.")],
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help="Which of the config's data to evaluate on.")] = "validation",
    checkpoint: Checkpoint = "best",
    protocol: ProtocolOption = "coco",
    replicates: Replicates = None,
    out: Annotated[Path | None, typer.Option(help="Also write metrics, detections, plots and pictures here.")] = None,
    as_json: Json = False,
) -> None:
    """Print the metrics of a trained run, how sure they are, and what keeps them down."""
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.export.loading import detect_split
    from retina.report.evaluation import write_sheet
    from retina.report.score import print_score, write_score
    from retina.scoring import judge

    detected = detect_split(run, split, checkpoint=checkpoint, overrides=overrides or ())
    result = judge(
        detected.truth,
        detected.found,
        protocol=protocol,
        settings=detected.config.evaluation,
        replicates=replicates,
    )
    if out is not None:
        write_score(out, result, detected.dataset.images)
        write_sheet(out, detected.dataset, detected.table, pictures=9)
    if as_json:
        print(json.dumps({"run": str(run), "split": split, "checkpoint": checkpoint, **result.to_json()}, indent=2))
        return
    console = _console()
    for note in detected.dataset.notes:
        console.print(note, markup=False)
    print_score(console, result)
    if out is not None:
        console.print(f"All of it, with pictures, is in {out}.", markup=False, soft_wrap=True)


@app.command()
def score(
    ground_truth: Annotated[Path, typer.Option(help="COCO JSON, VOC folder, text folder, configuration or run.")],
    detections: Annotated[Path, typer.Option(help="COCO results JSON, or a folder of text files.")],
    protocol: ProtocolOption = "coco",
    engine: Annotated[Literal["hotcoco", "pycocotools"] | None, typer.Option(help="Of coco; equal figures.")] = None,
    max_detections: Annotated[str | None, typer.Option(help="Of coco, per class and image: 1,10,100.")] = None,
    area_ranges: Annotated[
        str | None, typer.Option(help="Of coco, in square pixels: s=0:1024,m=1024:9216,l=9216:1e10.")
    ] = None,
    replicates: Replicates = None,
    iou: Annotated[list[float] | None, typer.Option(help="Of the others, repeatable; 0.5 if left out.")] = None,
    difficult: Annotated[Literal["ignore", "use"], typer.Option(help="VOC's difficult boxes.")] = "ignore",
    pixels: Annotated[
        Literal["inclusive", "continuous"] | None,
        typer.Option(help="Meaning of the numbers; VOC protocols: inclusive, coco: continuous."),
    ] = None,
    gt_pixels: Annotated[
        Literal["inclusive", "continuous"] | None, typer.Option(help="The same for the ground truth alone.")
    ] = None,
    gt_format: Annotated[
        Literal["auto", "coco", "voc", "config", "xywh", "xyxy", "yolo"], typer.Option(help="Of the ground truth.")
    ] = "auto",
    dt_format: Annotated[
        Literal["auto", "coco", "voc", "xywh", "xyxy", "yolo", "ultralytics"], typer.Option(help="Of the detections.")
    ] = "auto",
    splits: Annotated[str | None, typer.Option(help="Of the ground truth: 2007/test,2012/val or validation.")] = None,
    names: Annotated[Path | None, typer.Option(help="Class names, one a line, where files hold indices.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, where text files need their sizes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write metrics, detections and plots here.")] = None,
    as_json: Json = False,
) -> None:
    """Score anybody's detections against anybody's ground truth, without a model."""
    from retina.report.score import print_score, write_score
    from retina.scoring import score as score_files
    from retina.startup import import_tensorflow_quietly

    result = score_files(
        ground_truth,
        detections,
        protocol=protocol,
        engine=engine,
        max_detections=None if max_detections is None else _whole_numbers("--max-detections", max_detections),
        area_ranges=None if area_ranges is None else _ranges("--area-ranges", area_ranges),
        replicates=replicates,
        iou=iou or None,
        difficult=difficult,
        pixels=pixels,
        gt_pixels=gt_pixels,
        gt_format=gt_format,
        dt_format=dt_format,
        splits=splits.split(",") if splits else (),
        names=names,
        images=images,
    )
    if out is not None:
        if result.pictures is not None:  # TensorFlow decodes them
            import_tensorflow_quietly()
        write_score(out, result)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
        return
    console = _console()
    print_score(console, result)
    if out is not None:
        console.print(f"All of it is in {out}.", markup=False, soft_wrap=True)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A run directory, or a COCO results file.")],
    b: Annotated[Path, typer.Argument(help="Another one, on the same ground truth.")],
    ground_truth: Annotated[
        Path | None, typer.Option(help="What results files are scored against; runs bring their own.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which data to compare on; of runs validation if left out, of a VOC folder any.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Of both runs: best (default), latest or step_N.")] = None,
    replicates: Annotated[int, typer.Option(help="Resamples of the images.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Tell whether B is better than A on the same images, with intervals from a paired bootstrap."""
    from retina.evaluation.comparison import class_comparison_table, comparison_table, to_json, verdict
    from retina.training.comparing import compare as compare_detectors

    compared = compare_detectors(
        a,
        b,
        ground_truth=ground_truth,
        split=split,
        checkpoint=checkpoint,
        replicates=replicates,
        seed=seed,
        level=level,
    )
    if as_json:
        print(json.dumps({"a": str(a), "b": str(b), **to_json(compared)}, indent=2))
        return
    console = _console()
    console.print(f"A: {a}\nB: {b}", markup=False, soft_wrap=True)
    console.print(comparison_table(compared, console.width))
    console.print(class_comparison_table(compared, console.width))
    console.print(verdict(compared), markup=False, soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run directory, or an export.")],
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
    from retina.export.loading import load
    from retina.report.predictions import write_predictions

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


app.command()(ablate)
app.command()(export)
app.command()(benchmark)


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
    if config is not None and "=" in config and not is_file_name(config):
        return None, [config, *(overrides or [])]
    return config, overrides or []


def _image_files(paths: list[Path]) -> list[Path]:
    files = []
    for path in paths:
        if not exists(path):
            raise RetinaError(f"{path}: no such image")
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
            raise RetinaError(f"{path}: no such image; expected a file or a folder, got a device, a pipe or a socket")
    return files


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    # Python's int would also take 1_0 and digits of other scripts, and stop at those too long to convert.
    if not all(part.isascii() and part.isdecimal() and len(part) <= 100 for part in map(str.strip, parts)):
        raise RetinaError(f"{option}: expected whole numbers such as 1,10,100, got '{text}'")
    return [int(part) for part in parts]


def _ranges(option: str, text: str) -> dict[str, tuple[float, float]]:
    try:
        named = dict(part.split("=", 1) for part in text.split(","))
        return {name: (float(low), float(high)) for name, (low, high) in ((n, r.split(":")) for n, r in named.items())}
    except ValueError:
        raise RetinaError(f"{option}: expected names and ranges such as s=0:1024,m=1024:9216, got '{text}'") from None


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
