"""`retina ablate`: parses, and calls one function per form of the command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retina import api
from retina import config as configuration
from retina.ablation.execute import seconds_of
from retina.ablation.loss_distribution import EASY, easy_background_share, write
from retina.ablation.loss_distribution import table as distribution_table
from retina.ablation.loss_distribution import to_json as distribution_to_json
from retina.ablation.pilots import SHARE, read_search
from retina.ablation.plan import make_plan, number_pairs, numbers, numbers_or_none, seed_counts
from retina.ablation.results import StudyResult, to_json
from retina.ablation.tables import table
from retina.errors import RetinaError
from retina.files import is_file_name
from retina.output import console

_DISTRIBUTION = "loss-distribution"
_OUT = Path("runs/ablation")


def ablate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY.PATH=VALUE]...",
            help="A YAML file (none: the digits demo) and settings that replace its own; or loss-distribution RUN.",
        ),
    ] = None,
    gamma: Annotated[str | None, typer.Option(help="Values of γ: 0,0.5,1,2,5.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Values of α, each with each γ: 0.25,0.5,none.")] = None,
    pairs: Annotated[str | None, typer.Option(help="Pairs γ:α instead: 0:0.75,2:0.25.")] = None,
    grid: Annotated[Path | None, typer.Option(help="YAML file: settings of any keys.")] = None,
    preset: Annotated[
        Literal["table1a", "table1b", "table1d"] | None, typer.Option(help="A table of arXiv:1708.02002.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Trainings of each setting (3), of single ones after it: 3,NAME=5.")
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(help="Values that short pilots choose from for each setting: optimizer.learning_rate=1e-3,2e-3."),
    ] = None,
    pilot: Annotated[float | None, typer.Option(help="A pilot's share of the training's length (0.25).")] = None,
    limit: Annotated[
        str | None, typer.Option("--for", help="Stop after this time, as 90m; the same command goes on.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Name of the setting to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study (runs/ablation), or of the figure.")] = None,
    report: Annotated[Path | None, typer.Option(help="Only rebuild the outputs of the study in this folder.")] = None,
    executor: Annotated[Literal["local", "ray"] | None, typer.Option(help="Where trials run (local).")] = None,
    retries: Annotated[int | None, typer.Option(help="Further attempts at a trial that fails (1).")] = None,
    replicates: Annotated[
        int | None, typer.Option(help="Resamples of seeds and images (1000, or more for many settings).")
    ] = None,
    images: Annotated[int | None, typer.Option(help="loss-distribution: validation images to look at (all).")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="loss-distribution: best, latest or step_N (best).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare settings of the loss, or of anything, over several seeds; the same command goes on after a kill.

    `retina ablate loss-distribution RUN [--gamma 0,0.5,1,2] [--images N] [--checkpoint C] [--out DIR]` draws
    figure 4 of the paper instead: how the focal loss spreads over easy and hard anchors.
    """
    words = arguments or []
    varied: dict[str, Any] = {
        "gamma": gamma, "alpha": alpha, "pairs": pairs, "grid": grid, "preset": preset, "seeds": seeds,
        "baseline": baseline, "executor": executor, "retries": retries, "tune": tune, "pilot": pilot, "for": limit,
    }  # fmt: skip
    if report is not None:
        _refuse("--report", {**varied, "out": out, "images": images, "checkpoint": checkpoint}, words)
        _print(api.summarise_study(report, replicates=replicates, say=_say), report, as_json)
    elif words[:1] == [_DISTRIBUTION]:
        del varied["gamma"]
        _refuse(_DISTRIBUTION, {**varied, "replicates": replicates}, words[2:])
        if len(words) != 2:
            raise RetinaError(f"ablate {_DISTRIBUTION}: expected a run directory, got none")
        choice = {"images": images, "checkpoint": checkpoint or "best"}
        _draw_distribution(Path(words[1]), "0,0.5,1,2" if gamma is None else gamma, choice, out, as_json)
    else:
        _refuse("a study", {"images": images, "checkpoint": checkpoint}, [])
        _run(words, varied, out or _OUT, replicates, as_json)


def _refuse(form: str, options: dict[str, Any], words: list[str]) -> None:
    for name, value in options.items():
        if value is not None:
            raise RetinaError(f"ablate: --{name} has no effect on {form}; leave it out")
    if words:
        raise RetinaError(f"ablate: '{words[0]}' has no effect on {form}; leave it out")


def _run(words: list[str], varied: dict[str, Any], out: Path, replicates: int | None, as_json: bool) -> None:
    file = words[0] if words and ("=" not in words[0] or is_file_name(words[0])) else None
    config = configuration.load(file, words[0 if file is None else 1 :])
    seeds, seeds_of = seed_counts("3" if varied["seeds"] is None else varied["seeds"])
    plan = make_plan(
        config,
        gammas=numbers("--gamma", varied["gamma"]) if varied["gamma"] is not None else (),
        alphas=numbers_or_none("--alpha", varied["alpha"]) if varied["alpha"] is not None else (),
        pairs=number_pairs("--pairs", varied["pairs"]) if varied["pairs"] is not None else (),
        grid=varied["grid"],
        preset=varied["preset"],
        baseline=varied["baseline"],
        seeds=seeds,
        seeds_of=seeds_of,
    )
    if varied["pilot"] is not None and not varied["tune"]:
        raise RetinaError("ablate: --pilot has no effect without --tune; leave it out")
    share = SHARE if varied["pilot"] is None else varied["pilot"]
    study = api.ablate(
        plan,
        out,
        search=read_search(varied["tune"], share) if varied["tune"] else None,
        seconds=seconds_of("--for", varied["for"]) if varied["for"] is not None else None,
        executor=varied["executor"] or "local",
        retries=1 if varied["retries"] is None else varied["retries"],
        replicates=replicates,
        say=_say,
        again=shlex.join(["retina", *sys.argv[1:]]),
    )
    _print(study, out, as_json)


def _print(study: StudyResult, path: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(to_json(study), indent=2, ensure_ascii=False))
    else:
        terminal = console()
        terminal.print(table(study, terminal.width))
        for line in (*study.conclusions, "", *study.notes):
            terminal.print(line, markup=False, soft_wrap=True)
        terminal.print(
            f"\nTable, plots and page are in {path}: study.html, study.csv, study.json.", markup=False, soft_wrap=True
        )
    if study.failed:
        trial = study.failed[0]
        print(
            f"retina: {len(study.failed)} of {len(study.trials)} trials failed, the first is {trial.name}: "
            f"{trial.outcome.error}; see {path / 'trials' / trial.name}.log and repeat the command",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    if study.empty:
        trial = study.trials[0]
        print(
            f"retina: all {len(study.trials)} trials diverged, the first is {trial.name}: {trial.outcome.error}; "
            "lower the learning rate or the loss's weights, and choose another --out",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _draw_distribution(run: Path, gamma: str, choice: dict[str, Any], out: Path | None, as_json: bool) -> None:
    gammas, folder = numbers("--gamma", gamma), out or run / "report"  # before Keras is imported
    samples, distributions = api.loss_distribution(run, gammas, **choice)
    write(folder, samples, distributions)
    if as_json:
        print(json.dumps(distribution_to_json(samples, distributions), indent=2))
        return
    terminal = console()
    terminal.print(distribution_table(samples, distributions))
    for gamma_, kinds in distributions.items():
        terminal.print(
            f"γ = {gamma_:g}: the hardest 10 % carry {kinds['foreground'].shares[0.1]:.1%} of the foreground's loss "
            f"and {kinds['background'].shares[0.1]:.1%} of the background's; background below {EASY:g} carries "
            f"{easy_background_share(samples, gamma_):.1%} of the classification loss, with the run's α.",
            markup=False,
            soft_wrap=True,
        )
    terminal.print(f"The figure is {folder / 'loss_distribution.png'}.", markup=False, soft_wrap=True)


def _say(text: str) -> None:
    """Print a line of progress on standard error, so that `--json` stays clean."""
    console(stderr=True).print(text, markup=False, soft_wrap=True)
