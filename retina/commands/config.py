"""`retina config`: parses, resolves, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from retina import config as configuration
from retina.commands.options import Overrides, config_arguments


def config(
    config: Annotated[str | None, typer.Argument(help="A YAML file; without one, the digits demo.")] = None,
    overrides: Overrides = None,
) -> None:
    """Print the resolved configuration, every default spelled out."""
    file, settings = config_arguments(config, overrides)
    print(configuration.to_yaml(configuration.load(file, settings)), end="")
