"""What the agent refuses, with a stable code and one sentence; the servicer makes a gRPC status of it."""


class RefusalError(Exception):
    """A definite no. `str()` is the sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class EngineUnreachableError(RefusalError):
    """The Docker Engine doesn't answer, or answers with an error."""

    def __init__(self, sentence: str) -> None:
        super().__init__("engine_unreachable", sentence)


class SetupError(Exception):
    """The agent can't enrol or start; printed by the command line, exit code 1. `str()` is the sentence."""
