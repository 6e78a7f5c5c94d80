"""The command line's errors, each with its exit code."""

import click

from moorage_cli import clean


class MoorageError(click.ClickException):
    """A sentence for standard error, cleaned. Exit code 1: the command failed or was refused."""

    def __init__(self, message: str) -> None:
        super().__init__(clean.text(message))


class NotLoggedInError(MoorageError):
    """There is no token, or it isn't valid any more."""

    exit_code = 3


class UnknownNameError(MoorageError):
    """The name is unknown or ambiguous."""

    exit_code = 4


class UnreachableError(MoorageError):
    """The controller doesn't answer: the result is unknown."""

    exit_code = 5
