"""The sample app of `make run`: one page that counts its starts, in a persistent folder."""

import itertools
import re
from pathlib import Path

from moorage_lab.hosts.network import port_is_free
from moorage_lab.programs.images import SAMPLE_IMAGE

FIRST_PORT = 8088

_COMPOSE = f"""\
# The sample app of `make run`. It is yours to change: `make run` writes it only where it is missing.
name: moorage-hello
services:
  web:
    image: {SAMPLE_IMAGE}
    pull_policy: never
    init: true
    ports:
      - "127.0.0.1:${{HELLO_PORT}}:80"
    volumes:
      - ./www:/www
    command:
      - sh
      - -c
      - |
        starts=$$(( $$(cat /www/starts 2>/dev/null || echo 0) + 1 ))
        echo $$starts > /www/starts
        {{
          echo "<!doctype html><title>hello</title><h1>Hello from Moorage</h1>"
          echo "<p>This is start number $$starts, of $$(date)."
          echo "<p>The number is kept in www/starts, which stays when the app is stopped."
        }} > /www/index.html
        exec httpd -f -p 80 -h /www
    healthcheck:
      test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"]
      interval: 2s
      timeout: 2s
"""


def write_hello(folder: Path) -> None:
    """Make the app's folder and compose file, unless they exist."""
    (folder / "www").mkdir(parents=True, exist_ok=True)
    compose = folder / "compose.yaml"
    if not compose.exists():
        compose.write_text(_COMPOSE)


def choose_port(folder: Path, *, running: bool) -> int:
    """Return the port of the page and write it into the app's .env: the last one, or the next free one.

    A running app occupies its port itself, so its port is kept.
    """
    env = folder / ".env"
    kept = re.search(r"^HELLO_PORT=(\d+)$", env.read_text() if env.exists() else "", re.MULTILINE)
    first = int(kept[1]) if kept else FIRST_PORT
    if kept and running:
        return first
    port = next(port for port in itertools.count(first) if port_is_free(port))
    env.write_text(f"HELLO_PORT={port}\n")
    return port
