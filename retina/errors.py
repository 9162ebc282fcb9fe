"""The one exception type of the package."""


class RetinaError(ValueError):
    """What a user can cause and mend: the message says where, what was expected, what came, and what to do.

    The command line prints it as one line and exits with code 2; every other exception is a defect of `retina`.
    """
