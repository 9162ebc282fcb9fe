"""The exceptions of the package."""


class RetinaError(ValueError):
    """A fault that a user can cause and fix: the message says where, what was expected, what came, and what to do.

    The command line prints it as one line and exits with code 2; every other exception is a defect of `retina`.
    `details` names each of many faults where the message shows the first few: all of a table's invalid boxes; then
    `images` are the ids of the images they are in.

    Example:

    >>> try:
    ...     retina.load("runs/none")
    ... except retina.RetinaError as error:
    ...     print(error)
    runs/none: ...
    """

    details: tuple[str, ...] = ()
    images: tuple[int | str, ...] = ()


class RunFailed(RetinaError):
    """A run that could not be finished though its input was good: the disk is full, or no longer there.

    The command line exits with code 1.
    """


class Interrupted(Exception):
    """A run stopped by a signal after its checkpoint was written; the message gives the command that goes on.

    The command line exits with code 75, which schedulers don't take for finished.
    """


def install_hint(extra: str) -> str:
    """The command that installs an optional dependency; PyPI's `retina` is a stranger's package."""
    return f'pip install "retina-detection[{extra}]" (in a checkout: pip install -e ".[{extra}]")'
