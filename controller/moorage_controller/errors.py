"""The errors that callers receive: a class for the kind, a stable code, one sentence.

The API maps the classes to HTTP (`api/http/problems.py`); nothing below it knows a status number.
"""

from moorage_common.untrusted import clean_code, clean_sentence


class MoorageError(Exception):
    """Base of all errors that are reported to callers.

    `code` is a stable snake_case word; `sentence` states the problem and the remedy.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class UnreadableError(MoorageError):
    """The request's body can't be read."""


class TooSlowError(MoorageError):
    """The request's body didn't arrive in time."""


class UnsupportedMediaError(MoorageError):
    """The request's body has an unsupported media type."""


class InvalidError(MoorageError):
    """A field is wrong; `errors` maps each field to its sentence."""

    def __init__(self, errors: dict[str, str], code: str = "invalid_field") -> None:
        super().__init__(code, "; ".join(f"{field}: {sentence}" for field, sentence in errors.items()))
        self.errors = errors


class NotAuthenticatedError(MoorageError):
    """No, bad, expired or revoked token, or wrong credentials."""


class ForbiddenError(MoorageError):
    """The caller's role, or the host's policy, doesn't allow it."""


class NotFoundError(MoorageError):
    """No such resource."""


class ConflictError(MoorageError):
    """The current state of the resource doesn't allow it."""


class OperationInProgressError(ConflictError):
    """Another operation is in flight on the app; `operation_id` is its id."""

    def __init__(self, sentence: str, operation_id: str) -> None:
        super().__init__("operation_in_progress", sentence)
        self.operation_id = operation_id


class ServerBusyError(ConflictError):
    """The server's agent is being installed or removed, which moves the journal of operations."""

    def __init__(self) -> None:
        sentence = "This server's agent is being installed or removed: try again in a minute."
        super().__init__("server_busy", sentence)


class TooManyRequestsError(MoorageError):
    """The caller must wait; `retry_after` is in whole seconds, 1 or more."""

    def __init__(self, sentence: str, retry_after: int, code: str = "too_many_requests") -> None:
        super().__init__(code, sentence)
        self.retry_after = retry_after


class OperationFailedError(MoorageError):
    """An operation ended without success; `output` is Compose's output in readable form."""

    def __init__(self, code: str, sentence: str, *, output: str, operation_id: str) -> None:
        super().__init__(code, sentence)
        self.output = output
        self.operation_id = operation_id


HOST_UNREACHABLE = "host_unreachable"


class HostUnreachableError(MoorageError):
    """The host can't be reached: nothing was sent."""

    def __init__(self, sentence: str, code: str = HOST_UNREACHABLE) -> None:
        super().__init__(clean_code(code, HOST_UNREACHABLE), clean_sentence(sentence))


class StopWaitsError(HostUnreachableError):
    """The host can't be reached, and a stop, `operation_id`, waits for it."""

    def __init__(self, operation_id: str) -> None:
        sentence = (
            f"The host can't be reached. The stop waits for it (operation {operation_id}), and is done as soon as the "
            "host answers: nothing has to be asked again."
        )
        super().__init__(sentence)
        self.operation_id = operation_id


class DatabaseUnavailableError(MoorageError):
    """The database doesn't answer; `reason` is its own text. A write in progress may be committed or not."""

    def __init__(self, reason: str) -> None:
        super().__init__("database_unavailable", "The database doesn't answer: try again in a moment.")
        self.reason = reason


class StartupError(MoorageError):
    """The program can't start; the command line prints the sentence and exits with code 1."""
