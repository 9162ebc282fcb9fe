"""`retina config`: prints a configuration, or explains the settings."""

from __future__ import annotations

import json
import shutil
from typing import Annotated

import typer

from retina import config as configuration
from retina.commands.options import Overrides, config_arguments
from retina.config import reference
from retina.config.schema import json_schema
from retina.errors import RetinaError

# Longer lines are hard to read, however wide the terminal is.
_WIDEST = 100


def config(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file; without one, the digits demo. With --explain: a key.")
    ] = None,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain keys such as loss.box.beta, or without one all settings.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configurations.")] = False,
) -> None:
    """Print the resolved configuration, every default spelled out; or explain its settings."""
    keys = [key for key in (config, *(overrides or [])) if key is not None]
    if schema and (explain or keys):
        raise RetinaError("--schema: expected nothing beside it; leave out the configuration, keys and --explain")
    if schema:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    elif explain:
        _explain(keys)
    else:
        file, settings = config_arguments(config, overrides)
        print(configuration.to_yaml(configuration.load(file, settings)), end="")


def _explain(keys: list[str]) -> None:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for heading, text in reference.explained(keys, width):
        typer.echo(f"{typer.style(heading, bold=True)}\n{text}\n")
