"""Render what the monitoring roles write, as Ansible would, and hand it to promtool."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "roles"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not program:
        pytest.fail(
            "promtool is missing: install the distribution's package `prometheus`, or set PROMTOOL",
            pytrace=False,
        )
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def render(role: str, template: str, marks: tuple[str, str] = ("{{", "}}"), **variables: Any) -> str:
    """A template of a role with the role's defaults; `marks` start and end a variable, as the task says."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLES / role / "templates"),
        variable_start_string=marks[0],
        variable_end_string=marks[1],
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "to_json": json.dumps,
        "to_nice_json": lambda value: json.dumps(value, indent=4, sort_keys=True),
    }
    defaults = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    return environment.get_template(template).render({"ansible_managed": "test", **defaults, **variables})


def alert_rules() -> str:
    return render("prometheus", "maya1.rules.yml.j2", marks=("[[", "]]"))


def service_metrics() -> set[str]:
    """Names of the series that the service exposes, read from where it declares them."""
    source = (ROOT / "inference" / "maya1_tts" / "metrics.py").read_text()
    series: set[str] = set()
    for kind, name in re.findall(r'(Counter|Gauge|Histogram|Info)\(\s*"(maya1_tts_\w+)"', source):
        suffixes = {
            "Counter": ["_total"],
            "Gauge": [""],
            "Histogram": ["_bucket", "_sum", "_count"],
            "Info": ["_info"],
        }[kind]
        series |= {name + suffix for suffix in suffixes}
    return series


def unknown_service_metrics(text: str) -> set[str]:
    """Names in `text` that look like the service's series and are none. The job is called maya1_tts too."""
    return set(re.findall(r"\bmaya1_tts_\w+", text)) - service_metrics()


def gpu_metrics() -> set[str]:
    """Names of the series that tell of GPUs: the exporter's, and how many there should be."""
    source = (ROLES / "gpu_exporter" / "files" / "gpu_exporter.py").read_text()
    return {"maya1_gpu_wanted", *re.findall(r'"((?:DCGM|maya1_gpu)_\w+)"', source)}


def unknown_gpu_metrics(text: str) -> set[str]:
    return set(re.findall(r"\b(?:DCGM|maya1_gpu)_\w+", text)) - gpu_metrics()
