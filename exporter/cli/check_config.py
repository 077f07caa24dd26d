"""`check-config`: is this file a config?"""

from pathlib import Path

import click

from exporter.cli.options import load_or_exit
from exporter.clock import SystemClock
from exporter.config.load import warnings
from exporter.core import cap


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Check a config file: exit 0, or 2 with one line per problem."""
    config = load_or_exit(file)
    for line in (*warnings(config), *cap.warnings(config, SystemClock().now().wall)):
        click.echo(f"{file}: warning: {line}", err=True)
    click.echo(f"{file}: fine")
