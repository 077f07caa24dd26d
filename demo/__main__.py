"""`make demo`: everything at once, on this machine, until Ctrl-C."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import click

from demo.ports import Ports, free_ports
from demo.stage import run


@click.command()
@click.option("--free-ports", is_flag=True, help="Listen on whatever ports are free.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep ledger, Prometheus' data and logs there; default: a folder that is removed at the end.",
)
def main(*, free_ports: bool, folder: Path | None) -> None:
    """Replay two engines, invent their GPUs and their users, and show it all with the exporter and what reads it."""
    ports = _ports(free=free_ports)
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-cost-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        status = asyncio.run(run(folder.absolute(), ports))
    raise SystemExit(status)


def _ports(*, free: bool) -> Ports:
    ports = free_ports() if free else Ports()
    taken = ports.taken()
    if taken:
        raise click.ClickException(f"taken on 127.0.0.1: {', '.join(taken)}; --free-ports takes others")
    return ports


if __name__ == "__main__":
    main()
