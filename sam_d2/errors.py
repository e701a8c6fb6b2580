"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input: the message names the file, the id and the fix, and no traceback is shown.

    Command-line tools catch it in :func:`sam_d2.cli.run_main`, print it to stderr and exit with code 2.

    Args:
        message: what is shown.
        of_all: whether all processes of the run raise the same, so that one of them suffices to say it.
    """

    def __init__(self, message: str, *, of_all: bool = False) -> None:
        self.of_all = of_all
        # torch makes the exception of a loader's worker anew, with the worker's whole traceback as its message.
        name = type(self).__name__
        if message.startswith(f"Caught {name} in "):
            message = message.rpartition(f"{type(self).__module__}.{name}: ")[2].rstrip("\n")
        super().__init__(message)


class BadImageError(UserError):
    """An image file that is missing, unreadable, or of another size than its annotations say."""


class TooLargeImageError(BadImageError):
    """An image file that says that it has more pixels than are read."""
