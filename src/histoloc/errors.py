"""The one exception that a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, an option, a folder.

    The message is one sentence or more naming the file or option, the problem and the remedy. The command line
    prints it without a traceback and ends with exit code 2.
    """
