"""The settings page matches the code."""

import runpy
from pathlib import Path

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def test_settings_page_matches_the_code() -> None:
    made = runpy.run_path(str(PACKAGING / "settings.py"))
    assert (PACKAGING / "SETTINGS.md").read_text() == made["page"](), "stale: run `make settings`"
    assert "None |" not in made["page"]()
