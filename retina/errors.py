"""The exceptions of the package."""


class RetinaError(ValueError):
    """What a user can cause and fix: the message says where, what was expected, what came, and what to do.

    The command line prints it as one line and exits with code 2; every other exception is a defect of `retina`.
    `details` names each of many faults where the message shows the first few: all of a table's invalid boxes; then
    `images` are the ids of the images they are in.
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


def missing_extra(where: str, package: str, extra: str, otherwise: str = "") -> RetinaError:
    """The error of an optional package that `where` needs and that is not installed, with the commands that install it.

    `otherwise` says what can be done without it.
    """
    return RetinaError(
        f'{where}: {package} is not installed; pip install "retina-detection[{extra}]", or in a checkout '
        f'pip install -e ".[{extra}]"{otherwise and f"; or {otherwise}"}'
    )
