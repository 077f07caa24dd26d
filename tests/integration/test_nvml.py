"""Our side of NVML on the real binding and a stub of the driver's library: the tests of tests/nvml/inside.py.

They run once, in a process of their own, since a library that is loaded cannot be unloaded.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.nvml.stub import HERE, Scenario, build_or_skip, environment

INSIDE = HERE / "inside.py"
NAMES = re.findall(r"^def (test_\w+)", INSIDE.read_text(encoding="utf-8"), re.MULTILINE)
LACKS = ("nvmlDeviceGetMPSComputeRunningProcesses_v3",)

Failures = dict[str, list[str]]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Failures:
    """What failed of each test; a test that did not run is not there."""
    folder = tmp_path_factory.mktemp("nvml")
    library, scenario = build_or_skip(folder, without=LACKS), Scenario(folder / "scenario.txt").copy("two-healthy")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(INSIDE)]
    done = subprocess.run(
        command, env={**os.environ, **environment(library, scenario.path)}, capture_output=True, text=True, check=False
    )
    if not report.exists():
        pytest.fail(f"they did not run:\n{done.stdout}\n{done.stderr}")
    return _failures(report)


def _failures(report: Path) -> Failures:
    found: Failures = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        texts = [
            f"{case.attrib['name']}\n{child.text}" for child in case if child.tag in ("failure", "error", "skipped")
        ]
        found.setdefault(name, []).extend(texts)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_inside(failures: Failures, name: str):
    assert name in failures, "it did not run"
    if failures[name]:
        pytest.fail("\n\n".join(failures[name]), pytrace=False)
