"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input: the message names the file, the id and the fix, and no traceback is shown.

    Command-line tools catch it in :func:`sam_d2.cli.run_main`, print it to stderr and exit with code 2.
    """
