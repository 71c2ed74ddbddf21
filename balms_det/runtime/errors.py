"""The exception of all errors that a user can correct."""


class InputError(ValueError):
    """Something the user supplied is wrong: a file, a value, a combination of settings.

    The message is one sentence that says what is wrong, where, which value it has, and what to do.
    The command-line tools print it without a traceback and exit with status 2.
    """
