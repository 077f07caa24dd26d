"""`plan`: the cost model on paper. A month of hosting is planned here, tiers and idling in files of their own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource

from exporter.cli.options import ScalarType, UnusableError
from exporter.cli.plan_idle import scale_to_zero
from exporter.cli.plan_inputs import (
    AMOUNT,
    GPUS,
    POSITIVE,
    USD,
    WHOLE_POSITIVE,
    OneLineGroup,
    Sources,
    expect_one_engine,
    source_flags,
    sources,
)
from exporter.cli.plan_prices import api, demand, expect_some, hosting, measured_figures
from exporter.cli.plan_show import drawn, show
from exporter.cli.plan_tiers import cascade, right_size
from exporter.config import units
from exporter.core import planning
from exporter.core.planning import Figure, Hosting, Plan


@dataclass(frozen=True, slots=True)
class _Replicas:
    """Replicas in all, or (`more`) in addition to today's."""

    number: int
    more: bool


def _replicas(text: str) -> _Replicas:
    return _Replicas(units.WHOLE_POSITIVE.parse(text.removeprefix("+")), text.startswith("+"))


REPLICAS = ScalarType(units.Scalar("a number of replicas like 3, or like +1 for one more", _replicas), "replicas")
_HOSTING_FLAGS = (
    click.option("--gpu.usd-per-hour", "gpu_usd_per_hour", type=USD, help="The price of one GPU for an hour."),
    click.option("--gpu.count", "gpu_count", type=GPUS, help="GPUs of one replica.  [default: 1]"),
    click.option("--replicas", type=WHOLE_POSITIVE, help="[default: 1]"),
    click.option("--weights-gb", "weights_gb", type=AMOUNT, help="Model weights at rest, in GB of 10⁹ bytes."),
    click.option("--storage.usd-per-gb-month", "storage_usd", type=USD, help="The price of a GB for a month."),
    click.option("--network.usd-per-gb", "network_usd", type=USD, help="The price of a GB sent."),
    click.option("--network.bytes-per-request", "network_bytes", type=AMOUNT, help="Bytes sent for one request."),
    click.option("--other.usd-per-hour", "other_usd", type=USD, help="Anything else that is paid by the hour."),
    click.option("--max-output-tokens-per-second", "max_rate", type=POSITIVE, help="What one replica can do at most."),
)
_DEMAND_FLAGS = (
    click.option("--requests-per-day", "requests_per_day", type=AMOUNT, help="How many requests there are."),
    click.option("--input-tokens", "input_tokens", type=AMOUNT, help="Of one request.  [default: 0]"),
    click.option("--cached-input-tokens", "cached_tokens", type=AMOUNT, help="Cached ones of those.  [default: 0]"),
    click.option("--output-tokens", "output_tokens", type=AMOUNT, help="Of one request."),
    click.option("--api.model", "api_model", help="An API's model of the price list, as PROVIDER/MODEL."),
    click.option("--api.usd-per-million-input", "api_input", type=USD, help="Or its prices.  [default: 0]"),
    click.option("--api.usd-per-million-cached-input", "api_cached", type=USD, help="[default: like any input]"),
    click.option("--api.usd-per-million-output", "api_output", type=USD),
)
_WHAT_IF_FLAGS = (
    click.option("--what-if.replicas", "if_replicas", type=REPLICAS, help="So many replicas; +1: one more than today."),
    click.option("--what-if.gpu.usd-per-hour", "if_gpu_usd", type=USD, help="Other GPUs: the price of one."),
    click.option("--what-if.gpu.count", "if_gpu_count", type=GPUS, help="Other GPUs: how many a replica has."),
    click.option("--what-if.gpu.speedup", "if_speedup", type=POSITIVE, help="Other GPUs: how much faster they are."),
)


def _flags(command: Any) -> Any:
    for option in reversed((*_HOSTING_FLAGS, *_DEMAND_FLAGS, *_WHAT_IF_FLAGS)):
        command = option(command)
    return source_flags(command)


@click.group(cls=OneLineGroup, invoke_without_command=True, subcommand_metavar="[right-size|cascade|scale-to-zero]")
@_flags
@click.pass_context
def plan(context: click.Context, /, *, form: str, **flags: Any) -> None:
    """Plan a month of 30 × 24 hours: what self-hosting costs, what an API would take, and where they meet.

    Inputs come from flags, else from --config.file, else from the ledger (--from-ledger with --storage.path).
    """
    if context.invoked_subcommand is not None:
        _expect_no_flags(context)
        return
    asked = {name: flags.pop(name) for name in ("config_file", "engine", "from_ledger", "storage_path", "days")}
    found = sources(**asked)
    expect_one_engine(found)
    today, wanted = hosting(found, flags), demand(found, flags)
    price = api(found, flags, wanted.input_tokens)
    whats = {label: planning.plan(other, wanted, price) for label, other in _what_if(today, flags)}
    _say(form, planning.plan(today, wanted, price), whats, found)


def _expect_no_flags(context: click.Context) -> None:
    """Raise UnusableError where flags stand before the name of a command below, which would not see them."""
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT
    ]
    if given:
        below = context.invoked_subcommand
        raise UnusableError(f"expected flags after {below}, found before it {', '.join(given)}")


def _what_if(today: Hosting, flags: Mapping[str, Any]) -> Iterator[tuple[str, Hosting]]:
    """Yield what would be hosted instead, and what it is called."""
    count = flags["if_replicas"]
    if count is not None:
        number = today.replicas + count.number if count.more else count.number
        yield f"{number} replica{'s' * (number > 1)}", replace(today, replicas=number)
    other = flags["if_gpu_usd"], flags["if_gpu_count"], flags["if_speedup"]
    if any(value is not None for value in other):
        expect_some("--what-if.gpu.count", flags["if_gpu_count"])
        if flags["if_gpu_usd"] is None:
            raise UnusableError("expected --what-if.gpu.usd-per-hour beside the rest of other GPUs, found none")
        yield "other GPUs", planning.with_gpu(today, *other)


def _say(form: str, today: Plan, whats: Mapping[str, Plan], found: Sources) -> None:
    """Print a plan, what would change, and what was really spent."""
    words, measured = planning.verdict(today), measured_figures(found.measured) if found.measured else None
    columns: dict[str, Mapping[str, Figure]] = {"today" if whats else "": today.figures()}
    changes = []
    for name, other in whats.items():
        difference = planning.differences(today, other)
        columns |= {name: other.figures(), f"{name}: change": difference}
        changes.append({"change": name, **other.figures(), "difference": difference})
    tables = [drawn("a planned month", columns), drawn("a month like the measured days", {"": measured or {}})]
    document = {**today.figures(), "verdict": words, "what_if": changes, "measured": measured}
    show(form, document, tables, [words], found.inputs)


plan.add_command(right_size)
plan.add_command(cascade)
plan.add_command(scale_to_zero)
