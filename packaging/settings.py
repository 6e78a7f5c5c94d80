"""Generate packaging/SETTINGS.md from the settings' descriptions in the code, their only documentation."""

from pathlib import Path

from moorage_controller.settings import Settings

PAGE = Path(__file__).resolve().parent / "SETTINGS.md"
_HEAD = """\
# Settings of the controller

Environment variables; with the Debian package they stand in `/etc/moorage-controller/environment`. This page is made
from the code (`make settings`). What can't be used is refused at the start, in a sentence that names the variable.

| variable | default | what it is |
|---|---|---|
"""


def page() -> str:
    """Return the page's text."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in {None, ""} else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
