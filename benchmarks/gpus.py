"""GPUs that are not there: what the NVML stub plays, and what the dcgm-exporter of a large node writes."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from exporter.clock import NANOSECONDS
from exporter.config.model import GpuSelect
from exporter.sources.dcgm import NodePage, Owner
from tests.nvml import stub

COUNT = 8
NODE_COUNT = 16
SETTLING_SECONDS = 15  # what a GPU tells as a mean of ten seconds comes later
DCGM_PAGE_OF_TWO = Path(__file__).parent.parent / "tests/fixtures/dcgm/4.x-kubernetes.prom"


@contextlib.contextmanager
def played() -> Iterator[Path]:
    """Build the stub and yield it; it plays the scenario to whoever loads it, here or in a process started from here.

    Raises:
        stub.NoCompilerError: there are no GPUs to be had on this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = stub.build(Path(folder))
        playing = stub.Scenario(Path(folder) / "scenario.txt").write(scenario())
        os.environ |= stub.environment(library, playing.path)
        yield library


def scenario() -> str:
    """Return the first GPU of the stub's two, eight times.

    It stands still, so that nothing but the exporters is measured; and it has no processes, since a process number
    made up here might be anybody's.
    """
    lines = (stub.HERE / "scenarios/two-healthy.txt").read_text(encoding="utf-8").splitlines()
    driver = [line for line in lines if re.match("[a-z]+_version=", line)]
    first = dict(line.removeprefix("gpu0.").split("=", 1) for line in lines if line.startswith("gpu0."))
    gpus = [
        first
        | {"uuid": uuid(number), "pci_bus_id": f"00000000:{16 + number:02X}:00.0", "minor": number, "processes": ""}
        for number in range(COUNT)
    ]
    keys = [f"gpu{number}.{key}={value}" for number, gpu in enumerate(gpus) for key, value in gpu.items()]
    return "\n".join([*driver, *keys])


def uuid(number: int) -> str:
    return f"GPU-8e1c7f04-5a2b-4d36-9b80-{number:012x}"


def node_page() -> str:
    """Return the page of a dcgm-exporter that shows two GPUs, with the first of them sixteen times."""
    lines = [line for line in DCGM_PAGE_OF_TWO.read_text(encoding="utf-8").splitlines() if 'gpu="1"' not in line]
    return "".join(f"{text}\n" for line in lines for text in (_each(line) if 'gpu="0"' in line else [line]))


def _each(line: str) -> list[str]:
    return [
        re.sub('UUID="[^"]*"', f'UUID="{uuid(number)}"', line)
        .replace('gpu="0"', f'gpu="{number}"')
        .replace('device="nvidia0"', f'device="nvidia{number}"')
        for number in range(NODE_COUNT)
    ]


def node_reading(text: str) -> Callable[[], object]:
    """Read the page again and again, as beats do, and take all its GPUs for ours."""
    page = NodePage(GpuSelect.ALL, Owner(pod=None, namespace=None, uuids=frozenset()), longest_gap_seconds=60)
    found = len(page.read(text, NANOSECONDS).gpus)
    if found != NODE_COUNT:
        raise AssertionError(f"expected {NODE_COUNT} GPUs on the page of a dcgm-exporter, found {found}")
    return lambda: page.read(text, NANOSECONDS)
