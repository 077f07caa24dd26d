"""Flags that several commands share, and what they mean together."""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import click

from exporter.config import units
from exporter.config.load import disagreements, load
from exporter.config.model import Config, Engine, Gpu
from exporter.config.nodes import ConfigError
from exporter.config.prices import GpuPrice, Prices
from exporter.logs import FORMATS, LEVELS

Command = TypeVar("Command", bound=Callable[..., Any])


class ScalarType(click.ParamType[Any]):
    """A flag written like the same value in the config."""

    def __init__(self, scalar: units.Scalar, name: str) -> None:
        self.name = name
        self._scalar = scalar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text, or end with one line that says what was expected."""
        if not isinstance(value, str):
            return value
        try:
            return self._scalar.parse(value)
        except ValueError:
            found = "something else" if self._scalar.secret else repr(value)
            return self.fail(f"expected {self._scalar.expected}, found {found}", param, ctx)


class Address(click.ParamType[tuple[str | None, int]]):
    """Where to listen: an optional host and a port."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, int]:
        """Parse the text, or end with one line that says what was expected."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*):(\d{1,5})", str(value))
        if not match or int(match[2]) > 65535:  # noqa: PLR2004 - the highest port
            return self.fail(f"expected an address like :9409 or 127.0.0.1:9409, found {str(value)!r}", param, ctx)
        host = match[1].strip("[]")
        try:
            host.encode("idna")
        except UnicodeError:
            return self.fail(f"expected a host name before the port, found {host!r}", param, ctx)
        return host or None, int(match[2])


class UnusableError(click.ClickException):
    """Nothing can be done with what was given; the message is one line."""

    exit_code = 2


class OneLine(click.Command):
    """Says in one line what is wrong with its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, or end with exit code 2."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise UnusableError(error.format_message()) from None


DURATION = ScalarType(units.DURATION, "duration")
URL = ScalarType(units.URL, "url")


def logging_flags(command: Command) -> Command:
    """Add the flags of logging."""
    level = click.option(
        "--log.level", "log_level", type=click.Choice(tuple(LEVELS)), default="info", show_default=True
    )
    form = click.option("--log.format", "log_format", type=click.Choice(FORMATS), default="logfmt", show_default=True)
    return level(form(command))


def _flag(name: str, kind: Any, text: str) -> Callable[[Command], Command]:
    return click.option(f"--{name}", name.replace(".", "_").replace("-", "_"), type=kind, help=text)


def engine_flags(command: Command) -> Command:
    """Add the flags that stand for a config file."""
    options = (
        _flag("config.file", click.Path(path_type=Path), "The config; see config.example.yml."),
        _flag("engine.url", URL, "Without a config file: the engine to meter."),
        _flag("engine.name", ScalarType(units.NAME, "name"), "Its name in labels.  [default: default]"),
        _flag("gpu.usd-per-hour", ScalarType(units.MONEY, "usd"), "The price of one GPU for an hour."),
        _flag("gpu.count", ScalarType(units.GPU_COUNT, "gpus"), "GPUs that the engine pays for.  [default: 1]"),
        _flag("gpu.dcgm-url", ScalarType(units.URL_TEMPLATE, "url"), "A dcgm-exporter, where no driver is visible."),
        _flag("interval", DURATION, "The beat.  [default: 5s]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def config_of_flags(  # noqa: PLR0913 - the flags
    *,
    config_file: Path | None,
    engine_url: str | None,
    engine_name: str | None,
    gpu_usd_per_hour: Decimal | None,
    gpu_count: Fraction | None,
    gpu_dcgm_url: str | None,
    interval: float | None,
) -> Config | None:
    """Return the config that the flags make, None where a file is to be read.

    Raises:
        click.UsageError: the flags do not make a config, or stand beside a file.
    """
    flags = {
        "--engine.url": engine_url,
        "--engine.name": engine_name,
        "--gpu.usd-per-hour": gpu_usd_per_hour,
        "--gpu.count": gpu_count,
        "--gpu.dcgm-url": gpu_dcgm_url,
        "--interval": interval,
    }
    given = [flag for flag, value in flags.items() if value is not None]
    if config_file is not None:
        if given:
            raise click.UsageError(
                f"expected a config file or flags, found --config.file together with {', '.join(given)}"
            )
        return None
    if engine_url is None:
        raise click.UsageError(
            "expected --config.file=FILE, or --engine.url=URL and --gpu.usd-per-hour=USD, found neither"
        )
    gpus = Fraction(1) if gpu_count is None else gpu_count
    if gpu_usd_per_hour is None and gpus:
        raise click.UsageError("expected --gpu.usd-per-hour=USD, the price of one GPU for an hour, found nothing")
    engine = Engine(name=engine_name or "default", url=engine_url, gpus=gpus)
    prices = Prices(gpu=GpuPrice(usd_per_hour=gpu_usd_per_hour)) if gpu_usd_per_hour is not None else Prices()
    beat = interval or 5.0
    config = Config(
        engines=(engine,), gpu=Gpu(dcgm_url=gpu_dcgm_url), prices=prices, interval=beat, max_gap=max(21_600.0, 4 * beat)
    )
    problems = [f"--{path}: {text}" for path, text in disagreements(config)]
    if problems:
        raise click.UsageError("; ".join(problems))
    return config


def load_or_exit(config_file: Path) -> Config:
    """Load a config, or end with exit code 2 and one line per problem."""
    try:
        return load(config_file)
    except ConfigError as error:
        raise SystemExit(fail(error.lines, 2)) from None


def fail(lines: list[str], code: int) -> int:
    """Print problems on standard error, one a line, and return the exit code."""
    for line in lines:
        click.echo(line, err=True)
    return code
