"""What launchers tell a process of its place among the hosts, as a section `run.hosts`.

The configuration reads no environment; a launcher is named on the command line (`--launcher`), and its variables stand
in one dictionary here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import ValidationError

from retina import config
from retina.errors import RetinaError

Launcher = Literal["slurm", "env"]


def hosts_of(launcher: Launcher, variables: Mapping[str, str]) -> config.Hosts | None:
    """The section `run.hosts` that a launcher's variables mean; None where it started one process alone.

    - `slurm`: SLURM_NTASKS, SLURM_PROCID, SLURM_STEP_NODELIST (or SLURM_JOB_NODELIST), SLURM_JOB_ID, which gives the
      port, and SLURM_STEP_NUM_NODES (or SLURM_NNODES): one task a node.
    - `env`: MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, as torchrun and most operators of Kubernetes set them;
      LOCAL_WORLD_SIZE, where it is set, must be 1: a process takes all devices of its host. Under torchrun's
      TORCHELASTIC_USE_AGENT_STORE the port is the next one.

    Raises:
        RetinaError: a variable is missing or no number, or several processes share a host.
    """
    if launcher not in get_args(Launcher):
        raise RetinaError(
            f"--launcher: expected {' or '.join(get_args(Launcher))}, got '{launcher}'; choose one of them"
        )
    return _slurm(variables) if launcher == "slurm" else _env(variables)


def _slurm(variables: Mapping[str, str]) -> config.Hosts | None:
    count, index = _number(variables, "slurm", "SLURM_NTASKS"), _number(variables, "slurm", "SLURM_PROCID")
    if count == 1:
        return None
    nodes = _number(variables, "slurm", "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    if nodes != count:
        raise RetinaError(
            f"--launcher slurm: expected one task a node, got {count} tasks on {nodes} nodes; start it with "
            "--ntasks-per-node=1"
        )
    first = first_node(_text(variables, "slurm", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    # The same on every node, and seldom that of another job: above what Linux gives to clients by itself.
    port = 61000 + _number(variables, "slurm", "SLURM_JOB_ID") % 4000
    return _hosts("slurm", f"{first}:{port}", count, index)


def _env(variables: Mapping[str, str]) -> config.Hosts | None:
    count, index = _number(variables, "env", "WORLD_SIZE"), _number(variables, "env", "RANK")
    if variables.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise RetinaError(
            f"--launcher env: expected one process a host (LOCAL_WORLD_SIZE 1), got {variables['LOCAL_WORLD_SIZE']}; "
            "start it with --nproc-per-node=1: a process takes all devices of its host"
        )
    if count == 1:
        return None
    # torchrun itself listens at its port where it lends its store to the processes.
    port = _number(variables, "env", "MASTER_PORT") + (variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    return _hosts("env", f"{_text(variables, 'env', 'MASTER_ADDR')}:{port}", count, index)


def first_node(nodes: str) -> str:
    """The first of SLURM's list of nodes.

    Example: `gpu[003-005,9],login1` begins with gpu003.
    """
    name = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert name is not None  # it matches the empty text
    return "".join(part or "" for part in name.groups())


def _hosts(launcher: str, coordinator: str, count: int, index: int) -> config.Hosts:
    try:
        return config.Hosts(coordinator=coordinator, count=count, index=index)
    except ValidationError as error:
        raise RetinaError(
            f"--launcher {launcher}: expected variables of one run, got process {index} of {count} at {coordinator}: "
            f"{error.errors()[0]['msg'].removeprefix('Value error, ')}; look at how the launcher was started"
        ) from None


def _text(variables: Mapping[str, str], launcher: str, *names: str) -> str:
    for name in names:
        if variables.get(name):
            return variables[name]
    raise RetinaError(
        f"--launcher {launcher}: expected the variable {' or '.join(names)}, got none; start it by the launcher, or "
        "give run.hosts instead"
    )


def _number(variables: Mapping[str, str], launcher: str, *names: str) -> int:
    text = _text(variables, launcher, *names)
    if not text.isdecimal():
        raise RetinaError(f"--launcher {launcher}: expected a number in {' or '.join(names)}, got '{text}'; correct it")
    return int(text)
