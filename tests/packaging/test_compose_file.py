"""The Compose file for production: valid by Compose, and it refuses to start without secrets."""

import subprocess
from pathlib import Path

from moorage_lab.programs.processes import installed, plain_environment

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def config(env_file: Path) -> "subprocess.CompletedProcess[str]":
    argv = [
        installed("docker-compose"),
        "--file",
        str(PACKAGING / "compose.yaml"),
        "--env-file",
        str(env_file),
        "config",
    ]
    return subprocess.run(argv, env=plain_environment(), capture_output=True, text=True, check=False)


def test_compose_file_is_valid_with_filled_in_example(tmp_path: Path) -> None:
    example = (PACKAGING / "compose.env.example").read_text()
    (tmp_path / "empty").write_text(example)
    refused = config(tmp_path / "empty")
    assert refused.returncode != 0
    assert "is missing a value" in refused.stderr
    filled = [f"{line}{'x' * 48}" if line.endswith("=") else line for line in example.splitlines()]
    (tmp_path / "filled").write_text("\n".join(filled))
    done = config(tmp_path / "filled")
    assert done.returncode == 0, done.stderr
    assert "postgresql://moorage:xxxx" in done.stdout
