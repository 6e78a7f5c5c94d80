"""The Prometheus rules and the Grafana dashboard: valid by promtool, and based on existing metrics."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moorage_controller.services.admin import metrics
from moorage_controller.services.admin.meters import Meters
from moorage_lab.programs.promtool import promtool
from prometheus_client import CollectorRegistry

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "packaging" / "monitoring"


@pytest.fixture(scope="module")
def tool() -> str:
    """Return promtool."""
    return promtool(ROOT / ".cache" / "promtool")


def told() -> set[str]:
    """Return the names of all metrics of the controller, as Prometheus sees them."""
    registry = CollectorRegistry()
    Meters(registry)
    names = set()
    for family in registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[family.type]
        names |= {f"{family.name}{ending}" for ending in endings}
    return names | set(re.findall(r'"(moorage_\w+)"', Path(metrics.__file__).read_text()))


def expressions(document: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield all expressions of a dashboard."""
    for panel in document["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


@pytest.mark.parametrize("argv", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")])
def test_promtool_accepts_the_rules(tool: str, argv: tuple[str, ...]) -> None:
    done = subprocess.run([tool, *argv], cwd=PLACE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_use_existing_metrics() -> None:
    board = json.loads((PLACE / "dashboard.json").read_text())
    rules = re.findall(r"expr: (.*)", (PLACE / "rules.yaml").read_text())
    asked = {name for text in (*rules, *expressions(board)) for name in re.findall(r"moorage_\w+", text)}
    assert len(asked) > 15
    assert asked <= told(), asked - told()


def test_dashboard_expressions_are_valid_promql(tool: str, tmp_path: Path) -> None:
    board = json.loads((PLACE / "dashboard.json").read_text())
    rules = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(expressions(board))]
    (tmp_path / "board.json").write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run(
        [tool, "check", "rules", "board.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({panel["id"] for panel in board["panels"]}) == len(rules)
