"""Where the demo's Alertmanager sends what it would tell people: a log, and a line on the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from aiohttp import web

_WHOSE = ("budget", "engine", "cascade", "source", "api_model")


def told_to(address: str, route: str) -> str:
    """Return an Alertmanager's config in which every receiver is a path of a webhook."""
    config = yaml.safe_load(route)
    config["receivers"] = [
        {"name": name, "webhook_configs": [{"url": f"{address}/{name}", "send_resolved": True}]}
        for name in (receiver["name"] for receiver in config["receivers"])
    ]
    return yaml.safe_dump(config, sort_keys=False)


def lines(receiver: str, said: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each alert of a notification."""
    for alert in said["alerts"]:
        labels = alert["labels"]
        whose = next((labels[name] for name in _WHOSE if name in labels), "")
        yield f"{receiver:<10} {alert['status']:<8} {labels['alertname'].removeprefix('LLMCost')} {whose}".rstrip()


class Receiver:
    """The webhook; the path is the receiver's name."""

    def __init__(self, log: Path) -> None:
        self._log = log

    async def take(self, request: web.Request) -> web.Response:
        """Write down one notification."""
        receiver = request.match_info["receiver"]
        told = list(lines(receiver, json.loads(await request.read())))
        with self._log.open("a", encoding="utf-8") as log:
            log.writelines(f"{line}\n" for line in told)
        if receiver != "dead-man":  # which hears of the watchdog every five minutes
            for line in told:
                click.echo(f"alert for {line}")
        return web.Response()
