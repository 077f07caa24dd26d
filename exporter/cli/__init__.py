"""The command line: one file a command."""

import click

from exporter import __version__
from exporter.cli.check_config import check_config
from exporter.cli.doctor import doctor
from exporter.cli.record import record
from exporter.cli.replay import replay
from exporter.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llm-cost-exporter")
def main() -> None:
    """Live cost of self-hosted LLM serving, for Prometheus."""


for command in (serve, check_config, record, replay, doctor):
    main.add_command(command)
