"""The part of the config that has no default: what things cost, in US dollars."""

from decimal import Decimal
from typing import Annotated

import msgspec

from exporter.config import units
from exporter.config.section import Amount, Duration, Money, Name, Ratio, Section, UnixNanoseconds, WholePositive


class InstancePrice(Section, frozen=True, kw_only=True):
    """A machine rented as a whole: its price is divided by its GPUs."""

    usd_per_hour: Money
    gpus: WholePositive


class OwnedPrice(Section, frozen=True, kw_only=True):
    """Hardware that was bought: the purchase in equal parts over its lifetime, upkeep, and what its GPUs draw."""

    purchase_usd: Money
    gpus: WholePositive = 1  # that the purchase and the maintenance are for
    lifetime: Duration
    maintenance_usd_per_year: Money = Decimal(0)
    usd_per_kwh: Money | None = None  # None: energy is not charged
    pue: Annotated[Decimal, units.PUE] = Decimal(1)  # what the site draws for a watt that arrives (ISO/IEC 30134-2)
    watts: Amount | None = None  # of one GPU, where energy is never measured


class DatedPrice(Section, frozen=True, kw_only=True):
    """A price in force from an instant on."""

    from_: UnixNanoseconds = msgspec.field(name="from")
    usd_per_hour: Money | None = None
    by_name: dict[Name, Money] | None = None
    instance: InstancePrice | None = None
    owned: OwnedPrice | None = None


class GpuPrice(Section, frozen=True, kw_only=True):
    """What a GPU costs: exactly one form, and a timeline of later forms."""

    usd_per_hour: Money | None = None
    by_name: dict[Name, Money] | None = None
    instance: InstancePrice | None = None
    owned: OwnedPrice | None = None
    timeline: tuple[DatedPrice, ...] = ()


class StoragePrice(Section, frozen=True, kw_only=True):
    """Model weights at rest: all engines of this exporter together, GB = 10^9 bytes, by calendar month in UTC."""

    weights_gb: Amount
    usd_per_gb_month: Money


class NetworkPrice(Section, frozen=True, kw_only=True):
    """Bytes sent by the named interfaces of our network namespace, or all but the loopback; GB = 10^9 bytes."""

    usd_per_gb: Money
    billable_ratio: Ratio = Decimal(1)
    interfaces: tuple[Name, ...] = ()


class OtherPrice(Section, frozen=True, kw_only=True):
    """Anything else that is paid by the hour; without an engine all engines share it equally."""

    name: Name
    usd_per_hour: Money
    engine: Name | None = None


class ApiModel(Section, frozen=True, kw_only=True):
    """A model behind an API: with prices of its own for input and output, or with those of the price list."""

    model: Name
    provider: Name | None = None
    input_usd_per_million: Money | None = None
    output_usd_per_million: Money | None = None
    cached_input_usd_per_million: Money | None = None  # None: a cached token costs what any prompt token does


class ApiReference(Section, frozen=True, kw_only=True):
    """A model of `models`, or else of the API price list."""

    provider: Name
    model: Name


class ApiPrices(Section, frozen=True, kw_only=True):
    """Models behind an API: the one that self-hosting is compared with, and those that usage events may name."""

    compare_with: ApiReference | None = None
    models: tuple[ApiModel, ...] = ()


class Prices(Section, frozen=True, kw_only=True):
    """Everything that costs money; the only part of the config without a default."""

    gpu: GpuPrice | None = None
    storage: StoragePrice | None = None
    network: NetworkPrice | None = None
    other: tuple[OtherPrice, ...] = ()
    api: ApiPrices = ApiPrices()
