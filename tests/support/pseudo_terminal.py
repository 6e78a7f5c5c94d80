"""A command on a pseudo-terminal, with input and output as on a person's terminal."""

import os
import pty
import signal
import subprocess
from collections.abc import Mapping

from moorage_lab.waiting import eventually


class Terminal:
    """A command on a pseudo-terminal: its output so far, and its exit code."""

    def __init__(self, argv: list[str], environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        # A background job ignores Ctrl-C, and so do its children.
        argv = ["/usr/bin/env", "--default-signal=INT", *argv]
        self._child = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=dict(environment), start_new_session=True
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.text = ""

    def shows(self, text: str) -> None:
        """Wait until it has shown a text."""

        def seen() -> bool:
            self._read()
            return text in self.text

        eventually(seen, timeout=60, what=f"{text!r} on the terminal, which shows {self.text[-2000:]!r}")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.send_signal(signal.SIGINT)

    def ends(self) -> int:
        """Wait for its end and return its exit code."""

        def over() -> bool:
            self._read()  # otherwise it would wait for a reader
            return self._child.poll() is not None

        eventually(over, timeout=60, what="the command's end")
        self._read()
        return self._child.returncode

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()
        os.close(self._master)

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self.text += data.decode(errors="replace")
        except OSError:  # nothing more for now, or the other end is gone
            return
