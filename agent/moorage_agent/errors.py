"""The agent's refusals: a stable code and one sentence; the servicer turns them into gRPC statuses."""

from moorage_common.docker.app_identity import DIRECTORY_HANGS, directory_hangs


class RefusalError(Exception):
    """A definite refusal. `str()` is the sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle it as a plain refusal, from one process of the agent to another."""
        return RefusalError, (self.code, str(self))


class EngineUnreachableError(RefusalError):
    """The Docker Engine doesn't answer, or answers with an error."""

    def __init__(self, sentence: str) -> None:
        super().__init__("engine_unreachable", sentence)


class DirectoryHangsError(RefusalError):
    """A directory on the host, or its file system, doesn't answer."""

    def __init__(self, path: str) -> None:
        super().__init__(DIRECTORY_HANGS, directory_hangs(path))


class SetupError(Exception):
    """The agent can't enrol or start; printed by the command line, exit code 1. `str()` is the sentence."""
