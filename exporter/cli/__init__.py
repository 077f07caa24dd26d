"""The command line: one file a command, loaded when it is called, so that `serve` starts without the others."""

from importlib import import_module
from typing import Final

import click

from exporter import __version__

_COMMANDS: Final = {
    "serve": "serve",
    "check-config": "check_config",
    "record": "record",
    "replay": "replay",
    "doctor": "doctor",
    "report": "report",
    "plan": "plan",
    "lint": "lint",
    "manifests": "manifests",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"exporter.cli.{name}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llm-cost-exporter")
def main() -> None:
    """Live cost of self-hosted LLM serving, for Prometheus."""
