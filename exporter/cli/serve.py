"""`serve`: the exporter itself."""

import asyncio
from pathlib import Path
from typing import Any

import click

from exporter.app import App, Options, UnusableError
from exporter.cli.options import Address, config_of_flags, engine_flags, fail, logging_flags
from exporter.config.model import OnFatal
from exporter.logs import set_up


@click.command()
@engine_flags
@click.option(
    "--web.listen-address",
    "listen",
    type=Address(),
    multiple=True,
    default=[":9409"],
    help="May be repeated.  [default: :9409]",
)
@click.option(
    "--web.config.file",
    "web_config_file",
    type=click.Path(path_type=Path),
    help="TLS and basic auth, in exporter-toolkit's format.",
)
@click.option(
    "--storage.path",
    "storage_path",
    type=click.Path(path_type=Path),
    help="The folder of the ledger; without it all counters are kept in memory.",
)
@click.option(
    "--on-fatal",
    type=click.Choice([choice.value for choice in OnFatal]),
    default="exit",
    show_default=True,
    help="What to do where nothing can be metered; `degrade` stays up and says so.",
)
@logging_flags
def serve(  # noqa: PLR0913 - the flags of the command
    *,
    listen: tuple[tuple[str | None, int], ...],
    web_config_file: Path | None,
    storage_path: Path | None,
    on_fatal: str,
    log_level: str,
    log_format: str,
    config_file: Path | None,
    **flags: Any,
) -> None:
    """Meter engines and serve /metrics."""
    set_up(log_level, log_format)
    config = config_of_flags(config_file=config_file, **flags)
    options = Options(
        config_file=config_file,
        config=config,
        listen=listen,
        web_config_file=web_config_file,
        on_fatal=OnFatal(on_fatal),
        storage=storage_path,
    )
    try:
        asyncio.run(_run(options))
    except UnusableError as error:
        raise SystemExit(fail(error.lines, error.exit_code)) from None


async def _run(options: Options) -> None:
    await App(options).run()
