"""The plan of a study: settings × seeds, from γ and α, pairs, a grid file or a table of the paper."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from retina import config as configuration
from retina.ablation.presets import PRESETS, Setting, focal
from retina.config import Config
from retina.config.differences import changed_keys, differing
from retina.config.reading import read_yaml
from retina.errors import RetinaError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_NAME_LENGTH = 100  # with a seed and a suffix it must stay below the 255 that file systems take
# A setting may change anything but the data and rules of its figures.
_SHARED = (
    "evaluation",
    "data.validation",
    "data.root",
    "data.classes",
    "data.relabel",
    "data.difficult",
    "data.invalid_boxes",
)


@dataclass(frozen=True)
class Trial:
    """A training: `index` counts the seeds from 0, `seed` is `run.seed`."""

    setting: str
    index: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting}_{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole study.

    Attributes:
        config: the configuration that the settings are variations of.
        settings: at least one, distinct by name and by configuration.
        seeds: number of seeds of a setting that names no other; trial s of a setting has `run.seed` + s.
        baseline: the name of the setting that the others are compared with.
        preset: the preset whose figures of the paper are shown next to ours, or None.
        tuning: sentences on the values that pilots chose for the settings; empty without pilots.
    """

    config: Config
    settings: tuple[Setting, ...]
    seeds: int
    baseline: str
    preset: str | None = None
    tuning: tuple[str, ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials, seed by seed: a study that is cut short has compared all settings with the seeds it has."""
        first = self.config.run.seed
        return tuple(
            Trial(setting.name, index, first + index)
            for index in range(self.most_seeds)
            for setting in self.settings
            if index < self.seeds_of(setting)
        )

    @property
    def most_seeds(self) -> int:
        """The number of seeds of the setting that has the most."""
        return max(map(self.seeds_of, self.settings))

    def seeds_of(self, setting: Setting) -> int:
        return self.seeds if setting.seeds is None else setting.seeds

    def setting(self, name: str) -> Setting:
        return next(setting for setting in self.settings if setting.name == name)

    def setting_config(self, setting: Setting) -> Config:
        """Return the configuration with the setting's overrides.

        Raises:
            RetinaError: they are not valid; the message names the setting.
        """
        return _resolved(self.config, setting)

    def trial_config(self, trial: Trial) -> Config:
        """Return the configuration of a trial: the setting's overrides and its seed, no report of its own, and one
        checkpoint (beside the best) where `run.keep` does not ask for more than is usual."""
        overrides = [f"run.seed={trial.seed}", "run.report=false"]
        if self.config.run.keep <= configuration.Run.model_fields["keep"].default:
            overrides.append("run.keep=1")
        return configuration.override(self.setting_config(self.setting(trial.setting)), overrides)

    def to_tree(self) -> dict[str, Any]:
        """Return plain values for YAML; `from_tree` reads them."""
        return {
            "preset": self.preset,
            "baseline": self.baseline,
            "seeds": self.seeds,
            "tuning": list(self.tuning),
            "settings": [asdict(setting) for setting in self.settings],
            "config": self.config.model_dump(mode="json"),
        }

    @classmethod
    def from_tree(cls, tree: Any, where: str) -> Plan:
        """Return the plan that `to_tree` wrote.

        Args:
            where: the file, for errors.

        Raises:
            RetinaError: it is not a study's plan.
        """
        try:
            settings = tuple(Setting(**entry) for entry in tree["settings"])
            return cls(
                configuration.parse(tree["config"], where),
                settings,
                tree["seeds"],
                tree["baseline"],
                tree["preset"],
                tuple(tree.get("tuning", ())),
            )
        except (KeyError, TypeError):
            raise RetinaError(
                f"{where}: expected the plan of a study; restore the file or take another folder"
            ) from None


def make_plan(
    config: Config,
    *,
    gammas: Sequence[float] = (),
    alphas: Sequence[float | None] = (),
    pairs: Sequence[tuple[float, float | None]] = (),
    grid: Path | None = None,
    preset: str | None = None,
    baseline: str | None = None,
    seeds: int = 3,
    seeds_of: Mapping[str, int] = MappingProxyType({}),
) -> Plan:
    """Return the plan of a study: settings in this order, preset, γ × α, pairs, grid.

    Args:
        config: the configuration that the settings vary.
        gammas, alphas: their product; where one is empty, the configuration's own value.
        pairs: (γ, α).
        grid: a YAML file, see `read_grid`.
        preset: `table1a`, `table1b` or `table1d`.
        baseline: the name of a setting; None takes the preset's, else the first with γ 0, else the first.
        seeds: trainings of each setting.
        seeds_of: trainings of single settings, by their names.

    Returns:
        The plan, for `retina.ablate`: `settings`, `trials`, `baseline`.

    Raises:
        RetinaError: there is nothing to vary, a setting is not valid or stands twice, changes the validation data, or
            there is no such baseline.

    Example:

    >>> config = retina.load_config()
    >>> plan = retina.make_plan(config, gammas=(0.0, 2.0), seeds=3)
    >>> [setting.label for setting in plan.settings], len(plan.trials)
    (['γ 0, α 0.25', 'γ 2, α 0.25'], 6)
    """
    config = configuration.with_absolute_root(config)
    if config.data.validation is None:
        raise RetinaError("ablate: data.validation: expected a split to compare the settings on, got null; set it")
    settings = list(PRESETS[preset].settings) if preset else []
    if gammas or alphas:
        loss = config.loss.classification
        if not (gammas and alphas) and loss.kind != "focal":
            raise RetinaError(f"the config's loss.classification is '{loss.kind}': give both --gamma and --alpha")
        all_gammas = gammas or (loss.gamma,)  # type: ignore[union-attr]
        all_alphas = alphas or (loss.alpha,)  # type: ignore[union-attr]
        settings += [focal(gamma, alpha) for gamma, alpha in itertools.product(all_gammas, all_alphas)]
    settings += [focal(gamma, alpha) for gamma, alpha in pairs]
    settings += read_grid(grid) if grid else []
    if not settings:
        raise RetinaError("nothing to vary: give --gamma, --alpha, --pairs, --grid or --preset")
    _check_names([setting.name for setting in settings])
    if baseline is None:
        baseline = PRESETS[preset].baseline if preset else _natural_baseline(config, settings)
    if strangers := [name for name in seeds_of if name not in {setting.name for setting in settings}]:
        names = ", ".join(setting.name for setting in settings)
        raise RetinaError(f"--seeds: expected one of the settings {names}, got '{strangers[0]}'")
    counted = tuple(replace(setting, seeds=seeds_of.get(setting.name)) for setting in settings)
    plan = Plan(config, counted, seeds, baseline, preset)
    check(plan)
    return plan


def read_grid(path: Path) -> list[Setting]:
    """Read settings from a YAML file.

    A mapping of dotted keys to lists of values gives their product. In a list each entry is a setting,
    `{name: …, overrides: {dotted.key: value}}`, or a product, `{product: {dotted.key: [values]}}`.

    Raises:
        RetinaError: the file can't be read, or an entry has another form.
    """
    tree = read_yaml(path, str(path))
    entries = [{"product": tree}] if isinstance(tree, dict) and tree else tree
    if not isinstance(entries, list) or not entries:
        raise RetinaError(f"{path}: expected a mapping of keys to lists of values, or a list of settings")
    settings = []
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        keys = set(entry) if isinstance(entry, dict) else None
        try:
            json.dumps(entry)
        except (TypeError, ValueError, RecursionError) as error:
            raise RetinaError(
                f"{where}: expected numbers, text, true, false, null, lists and mappings; {error}; "
                "put dates into quotes"
            ) from None
        if keys == {"name", "overrides"} and isinstance(entry["overrides"], dict):
            settings.append(Setting(str(entry["name"]), str(entry["name"]), entry["overrides"], {}))
        elif keys == {"product"} and isinstance(entry["product"], dict) and entry["product"]:
            settings += _product(entry["product"], where)
        else:
            raise RetinaError(
                f"{where}: expected {{name, overrides}} with a mapping, or {{product}} with keys and lists"
            )
    return settings


def changes(before: Plan, after: Plan) -> list[str]:
    """Return what a study of the plan `before` can't go on with in the plan `after`, each in words.

    More seeds and further settings are no such change: the trials that there are stay what they are.
    """
    out = []
    old, new = ({setting.name: setting for setting in plan.settings} for plan in (before, after))
    for name, setting in old.items():
        if name not in new:
            out.append(f"setting '{name}' is gone")
        elif replace(new[name], seeds=setting.seeds) != setting:
            out.append(f"setting '{name}' differs")
        elif (now := after.seeds_of(new[name])) < (once := before.seeds_of(setting)):
            out.append(f"seeds of '{name}' ({once} → {now})")
    if not out and [name for name in new if name in old] != list(old):
        out.append("the order of the settings")
    for key in ("baseline", "preset"):
        if (first := getattr(before, key)) != (second := getattr(after, key)):
            out.append(f"{key} ({first} → {second})")
    trees = [plan.config.model_dump(mode="json") for plan in (before, after)]
    return out + list(changed_keys(*trees).values())


def plain_loss(config: Config) -> tuple[float, float | None] | None:
    """Return (γ, α) if the classification loss is focal loss or, with γ 0, cross-entropy; else None."""
    loss = config.loss.classification
    if loss.kind == "cross_entropy":
        return 0.0, loss.alpha
    return (loss.gamma, loss.alpha) if loss.kind == "focal" else None


def varied(plan: Plan) -> list[str]:
    """Return the dotted keys in which the settings' configurations differ from the first, in the order of their names.

    If they differ in the kind of a section, the section's name replaces all of its keys. Cross-entropy counts as focal
    loss with γ 0.
    """
    trees = []
    for setting in plan.settings:
        config = plan.setting_config(setting)
        tree = config.model_dump(mode="json")
        if (pair := plain_loss(config)) is not None:
            tree["loss"]["classification"] = {"gamma": pair[0], "alpha": pair[1], "kind": "focal"}
        trees.append(tree)
    keys = {key for tree in trees for key in differing(trees[0], tree)}
    whole = {key.rpartition(".")[0] for key in keys if key.rpartition(".")[2] in ("kind", "format")}
    return sorted({next((section for section in whole if key.startswith(f"{section}.")), key) for key in keys})


def numbers(option: str, text: str) -> list[float]:
    """Return `0,0.5,1` as numbers.

    Raises:
        RetinaError: names the option and the word that is not a number.
    """
    return [_number(option, word) for word in text.split(",")]


def numbers_or_none(option: str, text: str) -> list[float | None]:
    """Return `0.25,none` as numbers, with None for `none`."""
    return [None if word.strip() == "none" else _number(option, word) for word in text.split(",")]


def seed_counts(text: str) -> tuple[int, dict[str, int]]:
    """Return `3,gamma2_alpha0.25=5` as the number of seeds of every setting and those of single ones."""
    first, *others = text.split(",")
    pairs = [word.rpartition("=") for word in others]
    if not all(name and count.strip().isdecimal() for name, count in [("all", first), *((p[0], p[2]) for p in pairs)]):
        raise RetinaError(f"--seeds: expected a number, then NAME=NUMBER for single settings, got '{text}'")
    return int(first), {name.strip(): int(count) for name, _, count in pairs}


def number_pairs(option: str, text: str) -> list[tuple[float, float | None]]:
    """Return `0:0.75,2:0.25` as pairs; the second number may be `none`."""
    out = []
    for word in text.split(","):
        first, colon, second = word.partition(":")
        if not colon:
            raise RetinaError(f"{option}: expected GAMMA:ALPHA such as 2:0.25, got '{word}'")
        out.append((_number(option, first), numbers_or_none(option, second)[0]))
    return out


def _number(option: str, word: str) -> float:
    try:
        value = float(word) + 0.0  # -0 is 0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RetinaError(f"{option}: expected numbers such as 0,0.5,2, got '{word}'")
    return value


def _product(keys: dict[str, Any], where: str) -> list[Setting]:
    for key, values in keys.items():
        if not isinstance(values, list) or not values:
            raise RetinaError(f"{where}: '{key}': expected a list of values, got {values!r}; put it into brackets")
    settings = []
    for values in itertools.product(*keys.values()):
        overrides = dict(zip(keys, values, strict=True))
        parts = [f"{str(key).rpartition('.')[2]}={compact(value)}" for key, value in overrides.items()]
        settings.append(Setting(setting_name("", overrides), ", ".join(parts), overrides, {}))
    return settings


def setting_name(start: str, overrides: Mapping[str, Any]) -> str:
    """Return the name of a setting with these overrides after `start`: what its folder is called."""
    parts = [f"{str(key).rpartition('.')[2]}={compact(value)}" for key, value in overrides.items()]
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", "_".join([start, *parts] if start else parts))


def compact(value: Any) -> str:
    """Return a value as text in a line: text as it is, else JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _texts(overrides: dict[str, Any]) -> list[str]:
    """Overrides as `retina.config` takes them; a choice of kind comes first, as it clears the other kind's keys."""
    order = sorted(overrides, key=lambda key: str(key).rpartition(".")[2] not in ("kind", "format"))
    return [f"{key}={json.dumps(overrides[key], ensure_ascii=False)}" for key in order]


def _natural_baseline(config: Config, settings: Sequence[Setting]) -> str:
    for setting in settings:
        pair = plain_loss(_resolved(config, setting))
        if pair is not None and pair[0] == 0:
            return setting.name
    return settings[0].name


def _resolved(config: Config, setting: Setting) -> Config:
    try:
        return configuration.override(config, _texts(setting.overrides))
    except RetinaError as error:
        raise RetinaError(f"setting '{setting.name}': {error}") from None


def _check_names(names: list[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise RetinaError(
                f"setting '{name}': expected a name of letters, digits and ._=+- for its folder; rename it"
            )
        if len(name) > _NAME_LENGTH:
            raise RetinaError(
                f"setting '{name[:40]}…': expected a name of at most {_NAME_LENGTH} characters for its folder, got "
                f"{len(name)}; name it yourself in the grid: {{name: …, overrides: …}}"
            )
        if names.count(name) > 1:
            raise RetinaError(f"setting '{name}' is given {names.count(name)} times; give it once")


def check(plan: Plan) -> None:
    """Raise RetinaError if two settings are the same, one is not valid or can't be compared, or seeds are missing."""
    _check_names([setting.name for setting in plan.settings])
    if (fewest := min(plan.seeds, *map(plan.seeds_of, plan.settings))) < 1:
        raise RetinaError(f"--seeds: expected at least 1, got {fewest}; 3 is usual")
    last = plan.config.run.seed + plan.most_seeds - 1
    if last >= 2**32:
        raise RetinaError(f"run.seed: expected seeds below 2**32, got up to {last}; lower run.seed")
    names = [setting.name for setting in plan.settings]
    if plan.baseline not in names:
        raise RetinaError(f"baseline '{plan.baseline}': expected one of the settings {', '.join(names)}")
    base, first_named = plan.config.model_dump(mode="json"), dict[str, str]()
    for setting in plan.settings:
        resolved = plan.setting_config(setting)
        tree = resolved.model_dump(mode="json")
        if resolved.run.seed != plan.config.run.seed:
            raise RetinaError(f"setting '{setting.name}': the study sets run.seed; remove it, give --seeds")
        for key in _SHARED:
            if _at(tree, key) != _at(base, key):
                raise RetinaError(
                    f"setting '{setting.name}': changes {key}, so that its figures can't be compared; remove it"
                )
        twin = first_named.setdefault(json.dumps(tree, sort_keys=True), setting.name)
        if twin != setting.name:
            raise RetinaError(f"settings '{twin}' and '{setting.name}' are the same configuration; give one of them")


def _at(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node[part]
    return node
