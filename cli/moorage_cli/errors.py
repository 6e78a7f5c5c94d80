"""What can go wrong, each with the exit code that a script sees."""

import click

from moorage_cli import clean


class MoorageError(click.ClickException):
    """A sentence for standard error, cleaned. Exit code 1: it was done, and failed, or was refused."""

    def __init__(self, message: str) -> None:
        super().__init__(clean.text(message))


class NotLoggedInError(MoorageError):
    """No token, or one that doesn't count any more."""

    exit_code = 3


class UnknownNameError(MoorageError):
    """Nothing, or more than one thing, has that name."""

    exit_code = 4


class UnreachableError(MoorageError):
    """The controller doesn't answer: whether something was done isn't known."""

    exit_code = 5
