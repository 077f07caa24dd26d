"""A GPU library without a GPU: builds stub.c, and steers it by a scenario file whose grammar stands at its head.

The library belongs to a whole process and is looked up when that starts, so it works in a subprocess only:

    library = build_or_skip(folder)
    scenario = Scenario(folder / "scenario.txt").copy("two-healthy")
    subprocess.Popen(command, env={**os.environ, **environment(library, scenario.path)})
    scenario.update({"gpu0.lost": 1})
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest

HERE = Path(__file__).parent
NAME = "libnvidia-ml.so.1"
FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{NAME}", "-pthread")


class NoCompilerError(RuntimeError):
    """This machine cannot build the stub."""


def build(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Compile the stub into a folder, and return the library's path; an older driver is `without` some functions."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("the NVML stub needs a C compiler: neither cc nor gcc is on the PATH")
    library = folder / NAME
    renamed = [f"-D{name}=without_{name}" for name in without]
    command = [compiler, *FLAGS, *renamed, str(HERE / "stub.c"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the NVML stub does not compile:\n{done.stderr}")
    return library


def build_or_skip(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Compile the stub; where that is not possible, skip the test, but never in CI."""
    try:
        return build(folder, without=without)
    except NoCompilerError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}, and CI must have one")
        pytest.skip(f"{error}: install Debian's package gcc to test against NVML")


class Scenario:
    """A scenario file. Every change replaces it at once, so that no process reads half of one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> Self:
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)
        return self

    def copy(self, name: str) -> Self:
        """Begin with one of the scenarios of this folder."""
        return self.write((HERE / "scenarios" / f"{name}.txt").read_text(encoding="utf-8"))

    def keys(self) -> dict[str, str]:
        lines = (line.strip() for line in self.path.read_text(encoding="utf-8").splitlines())
        pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
        return {key.strip(): value.strip() for key, _, value in pairs}

    def update(self, changes: Mapping[str, object]) -> Self:
        return self._replace({**self.keys(), **{key: str(value) for key, value in changes.items()}})

    def set(self, **changes: object) -> Self:
        """Change keys without dots, such as `init`."""
        return self.update(changes)

    def remove(self, *keys: str) -> Self:
        return self._replace({key: value for key, value in self.keys().items() if key not in keys})

    def append(self, key: str, word: object) -> Self:
        """Add to a list, such as gpu0.xids."""
        return self.update({key: f"{self.keys().get(key, '')} {word}".strip()})

    def _replace(self, keys: Mapping[str, str]) -> Self:
        return self.write("".join(f"{key}={value}\n" for key, value in keys.items()))

    def journal(self) -> list[str]:
        """Return what came and went, `init` or `shutdown`, in the order in which it did."""
        return [line.split()[0] for line in self._lines()]

    def held(self) -> dict[str, int]:
        """Return what was held of the library when a client last came or went."""
        words = self._lines()[-1].split()[1:]
        return {name: int(number) for name, _, number in (word.partition("=") for word in words)}

    def _lines(self) -> list[str]:
        return _journal(self.path).read_text(encoding="utf-8").splitlines()


NOTHING_HELD = {"clients": 0, "event_sets": 0, "gpm_samples": 0, "delayed_calls": 0}


def environment(library: Path, scenario: Path) -> dict[str, str]:
    """What a subprocess needs in its environment to load the stub and to play the scenario."""
    others = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": f"{library.parent}:{others}" if others else str(library.parent),
        "NVML_STUB_SCENARIO": str(scenario),
        "NVML_STUB_JOURNAL": str(_journal(scenario)),
    }


def _journal(scenario: Path) -> Path:
    return scenario.with_name(scenario.name + ".journal")
