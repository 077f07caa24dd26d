"""Programs that tests need and CI installs: missing, they fail there, and are told loudly anywhere else."""

import os
import shutil
from typing import Final

import pytest

PACKAGES: Final = {  # of Debian
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "nginx": "nginx-light",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "promtool": "prometheus",
}


def program(name: str) -> str:
    """The path of a program that CI installs."""
    path = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and .ci/run should have done so")
    get = f"apt-get install --no-install-recommends {PACKAGES[name]}"
    return path or pytest.skip(f"NOT TESTED WITHOUT {name.upper()}, which is missing ({get})")
