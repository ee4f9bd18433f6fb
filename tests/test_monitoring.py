"""Alerts and dashboard, as far as a file shows it; benchmarks/fault_drill.py brings the faults."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO

ALERTS = REPO / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = REPO / "deploy" / "grafana" / "dashboard.json"


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [alert["expr"] for alert in alerts()] + of_panels


def labels() -> dict[str, set[str]]:
    """That the queries choose by, of each metric."""
    found: dict[str, set[str]] = defaultdict(set)
    for query in queries():
        for name, chosen in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
            found[name] |= set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", chosen))
    return found


def test_what_is_asked_for_is_told() -> None:
    """What is Serve's is looked for on a running service, in tests/test_service.py."""
    asked = {name for query in queries() for name in re.findall(r"ray_(sd_\w+)", query)}
    code = "".join((REPO / name).read_text() for name in ("serving/metrics.py", "batch/render.py"))
    assert len(asked) > 10
    for name in asked:
        assert f'"{re.sub("_(total|bucket)$", "", name)}"' in code


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_look(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"].keys() == {"summary", "description"}
    assert f'"{alert["alert"]}"' in (REPO / "benchmarks" / "fault_drill.py").read_text()


def test_panels_fill_the_rows_of_the_dashboard() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in panels()]
    assert places == [(6 * (i % 4), 7 * (i // 4), 6, 7) for i in range(len(places))]
    assert len({panel["id"] for panel in panels()}) == len(places)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
@pytest.mark.parametrize("check", [["rules", "alerts.yaml"], ["config", "prometheus.yaml"]])
def test_prometheus_takes_the_files(check: list[str], tmp_path: Path) -> None:
    for file in ALERTS.parent.glob("*.yaml"):  # not with what an ended Ray left in its folder
        here = file.read_text().replace("/tmp/ray/", f"{tmp_path}/")
        (tmp_path / file.name).write_text(here)
    checked = subprocess.run(
        ["promtool", "check", *check], cwd=tmp_path, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
