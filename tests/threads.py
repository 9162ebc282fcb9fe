"""The environment of processes that stand for a user's: with all threads, whose order must not show in a run's bits."""

import os

LIMITS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
"""What `scripts/test` sets, to have a thread a process."""


def without_limits() -> dict[str, str]:
    """Return this process' environment without its limits on threads."""
    return {name: value for name, value in os.environ.items() if name not in LIMITS}
