"""The agent as a systemd service: each operation runs in its own scope."""

import os
from collections.abc import Sequence

from moorage_agent.errors import SetupError

_SYSTEMD_RUN = ("/usr/bin/systemd-run", "/bin/systemd-run")


def scope_launcher() -> Sequence[str]:
    """Return the prefix of an operation's argv that keeps the operation running when this service ends.

    Enabled by MOORAGE_AGENT_SCOPES=1, as in the service's unit. Raises SetupError if there is no systemd-run.
    """
    if os.environ.get("MOORAGE_AGENT_SCOPES") != "1":
        return ()
    found = next((path for path in _SYSTEMD_RUN if os.access(path, os.X_OK)), None)
    if found is None:
        raise SetupError("MOORAGE_AGENT_SCOPES is 1, but there is no systemd-run here: unset it.")
    about = ("--unit=moorage-op-{id}", "--description=Moorage operation {id}")
    return (found, "--quiet", "--collect", "--scope", *about, "--")
