"""The one exception that is meant for the person at the keyboard."""


class InputError(Exception):
    """Something given from outside cannot be used.

    The message is one line that names the file or key, says what is wrong and what would be right. Commands print it
    without a traceback and go on with the other inputs; see :func:`preprocessing.console.run_command`.
    """
