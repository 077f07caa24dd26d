"""The demo as a process: started, waited for, and ended by Ctrl-C."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.monitoring import wait
from tests.processes import REPOSITORY, Exporter
from tests.programs import program

PLACE = re.compile(r"(?m)^(?P<what>\S.*?) {2,}(?P<address>http://127\.0\.0\.1:(?P<port>\d+)\S*) +(?P<is>\w+)\b")


class Place(NamedTuple):
    """A line of the table that the demo prints."""

    address: str
    port: int
    is_: str


class Demo(NamedTuple):
    """A running demo: the ports of its exporter and its Prometheus, its process, and where it says what."""

    exporter: int
    prometheus: int
    process: "subprocess.Popen[bytes]"
    folder: Path
    said: Path

    @property
    def places(self) -> dict[str, Place]:
        return places(self.said.read_text())

    def at(self, what: str = "exporter") -> Exporter:
        """The exporter, or another place of the table, to be asked and scraped."""
        return Exporter(self.process, self.places[what].port, self.said)

    def children(self) -> dict[int, str]:
        """The processes that it has started and that are alive, and their command lines."""
        pid = self.process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(one): Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ") for one in found}

    def end(self, name: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(name)
        return self.process.wait(timeout=15)


def places(said: str) -> dict[str, Place]:
    return {found["what"]: Place(found["address"], int(found["port"]), found["is"]) for found in PLACE.finditer(said)}


@contextlib.contextmanager
def running_demo(folder: Path) -> Iterator[Demo]:
    """Run the demo on free ports, with Prometheus; its table has been printed when it is handed out."""
    program("prometheus")
    program("prometheus-alertmanager")
    said = folder / "said.txt"
    command = [sys.executable, "-m", "demo", "--free-ports", f"--folder={folder}"]
    with said.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=REPOSITORY, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )

    def is_said() -> bool:
        assert process.poll() is None, said.read_text()
        return {"exporter", "Prometheus", "Alertmanager"} <= places(said.read_text()).keys()

    try:
        wait(is_said, "the demo runs", more=said.read_text)
        found = places(said.read_text())
        yield Demo(found["exporter"].port, found["Prometheus"].port, process, folder, said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=15)
        finally:
            process.kill()
