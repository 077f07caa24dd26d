"""Good configs: what they mean, what they warn of, and the command line around them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import click
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli.options import config_of_flags
from exporter.config import units
from exporter.config.load import load, parse, warnings
from exporter.config.model import (
    CapMode,
    CascadeSource,
    Config,
    Disaggregation,
    Engine,
    GpuShare,
    Kind,
    OnUnknown,
    Role,
    Workload,
)
from exporter.config.nodes import ConfigError, Reader
from exporter.config.prices import ApiModel, GpuPrice, OwnedPrice, Prices
from exporter.config.section import Section, fields
from exporter.config.units import decimal, seconds, size_bytes
from exporter.core.alerting import thresholds
from exporter.core.money import Category

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.yml"

WHOLE = """
role: lone
interval: 2s
engines:
  - {name: chat, url: "http://127.0.0.1:8000", kind: vllm, models: [llama, alias], tier: fast, workload: batch,
     ttft_target: 250ms, gpus: 3/7}
  - {name: sum, url: "https://[::1]:8001/stats", tier: balanced,
     gpus: [GPU-1, {uuid: GPU-2, share: 0.25}, {uuid: MIG-3, slices: 3}],
     token_file: /run/token, ca_file: /run/ca.pem, timeout: 1s, disaggregation: decode, min_replicas: 0,
     max_output_tokens_per_second: 2500}
gpu: {source: nvml, dcgm_url: null, select: [GPU-1], name: NVIDIA A10G}
prices:
  gpu:
    by_name: {NVIDIA A10G: 0.80}
    timeline:
      - {from: 2026-12-01, usd_per_hour: 0.75}
      - {from: 2026-12-02, instance: {usd_per_hour: 12, gpus: 8}}
      - {from: 2026-12-03, owned: {purchase_usd: 30000, gpus: 8, lifetime: 4y, maintenance_usd_per_year: 1200,
         usd_per_kwh: 0.20, pue: 1.2, watts: 350}}
  storage: {weights_gb: 14, usd_per_gb_month: 0.023}
  network: {usd_per_gb: 0.09, billable_ratio: 0.5, interfaces: [eth0]}
  other: [{name: disk, usd_per_hour: 0.01, engine: sum}, {name: rack, usd_per_hour: 1}]
  api:
    compare_with: {provider: openai, model: gpt-4o-mini}
    models:
      - {model: mine, input_usd_per_million: 0.15, output_usd_per_million: 0.60}
      - {model: llama, provider: openai, input_usd_per_million: 1, output_usd_per_million: 2,
         cached_input_usd_per_million: 0}
      - {model: mine, provider: openai}
budgets:
  - name: inference
    daily_usd: 25
    monthly_usd: 600
    timezone: Europe/Berlin
    warn_ratio: [0.5, 0.8]
    hard_cap: true
    cap: {mode: enforce, deny_status: 403, max_age: 60s, on_unknown: deny, exempt_features: [alarm]}
    match: {team: docs}
features: {known: [document_summary], value_ratio: {document_summary: 0.05}}
cascades: [{name: support, tiers: [fast, balanced], source: engines}]
scaling: {queue_depth: {up: 20, down: 1}, gpu_utilization: {up: 0.9, down: 0.1}, ttft: {up: 3, down: 0.4}}
alerts: {escalation_ratio: {warning: 0.2, critical: 0.5}, idle_usd_per_hour: 4}
usage: {settle: 10m, tokens: [{file: /run/usage, team: docs}]}
limits: {attribution_series: 100, name_length: 64, body_bytes: 2MiB}
"""

LEAST = 'engines: [{url: "http://a:8000"}]\nprices: {gpu: {usd_per_hour: 0.80}}\n'


def read(text: str) -> Config:
    return parse(text.encode(), "config.yml")


def test_every_key_of_a_whole_config_arrives() -> None:
    config = read(WHOLE)
    chat, summaries = config.engines
    assert (config.role, config.interval) == (Role.LONE, 2.0)
    assert chat == Engine(
        name="chat",
        url="http://127.0.0.1:8000",
        kind=Kind.VLLM,
        models=("llama", "alias"),
        tier="fast",
        workload=Workload.BATCH,
        ttft_target=0.25,
        gpus=Fraction(3, 7),
    )
    assert summaries == Engine(
        name="sum",
        tier="balanced",
        url="https://[::1]:8001/stats",
        gpus=("GPU-1", GpuShare(uuid="GPU-2", share=Decimal("0.25")), GpuShare(uuid="MIG-3", slices=3)),
        token_file="/run/token",
        ca_file="/run/ca.pem",
        timeout=1.0,
        disaggregation=Disaggregation.DECODE,
        min_replicas=0,
        max_output_tokens_per_second=Decimal(2500),
    )
    assert (config.gpu.source, config.gpu.dcgm_url, config.gpu.select) == ("nvml", None, ("GPU-1",))
    assert config.gpu.name == "NVIDIA A10G"
    assert (config.features.known, config.features.value_ratio) == (
        ("document_summary",),
        {"document_summary": Decimal("0.05")},
    )
    assert (config.cascades[0].tiers, config.cascades[0].source) == (("fast", "balanced"), CascadeSource.ENGINES)
    assert (config.scaling.queue_depth.up, config.scaling.ttft.down) == (Decimal(20), Decimal("0.4"))
    assert (config.alerts.escalation_ratio.critical, config.alerts.idle_usd_per_hour) == (Decimal("0.5"), Decimal(4))
    assert (config.usage.settle, config.usage.tokens[0].file, config.usage.tokens[0].team) == (
        600,
        "/run/usage",
        "docs",
    )
    assert (config.limits.attribution_series, config.limits.name_length) == (100, 64)
    assert config.limits.body_bytes == 2 * 1024 * 1024


def test_every_price_of_a_whole_config_arrives() -> None:
    prices = read(WHOLE).prices
    gpu, storage, network = prices.gpu, prices.storage, prices.network
    assert gpu is not None
    assert storage is not None
    assert network is not None
    assert gpu.by_name == {"NVIDIA A10G": Decimal("0.80")}
    first, second, third = gpu.timeline
    assert (first.from_, first.usd_per_hour) == (1_796_083_200 * 10**9, Decimal("0.75"))
    assert second.instance is not None
    assert (second.instance.usd_per_hour, second.instance.gpus) == (Decimal(12), 8)
    assert third.owned == OwnedPrice(
        purchase_usd=Decimal(30000),
        gpus=8,
        lifetime=126_144_000.0,
        maintenance_usd_per_year=Decimal(1200),
        usd_per_kwh=Decimal("0.20"),
        pue=Decimal("1.2"),
        watts=Decimal(350),
    )
    assert (storage.weights_gb, storage.usd_per_gb_month) == (Decimal(14), Decimal("0.023"))
    assert (network.usd_per_gb, network.billable_ratio) == (Decimal("0.09"), Decimal("0.5"))
    assert network.interfaces == ("eth0",)
    assert [(other.name, other.engine) for other in prices.other] == [("disk", "sum"), ("rack", None)]
    assert prices.api.compare_with is not None
    assert prices.api.compare_with.model == "gpt-4o-mini"
    own, cached, listed = prices.api.models
    assert own == ApiModel(model="mine", input_usd_per_million=Decimal("0.15"), output_usd_per_million=Decimal("0.60"))
    assert (cached.provider, cached.cached_input_usd_per_million) == ("openai", Decimal(0))
    assert listed == ApiModel(model="mine", provider="openai")


def test_every_key_of_a_budget_arrives() -> None:
    (budget,) = read(WHOLE).budgets
    assert (budget.daily_usd, budget.monthly_usd, budget.timezone) == (Decimal(25), Decimal(600), "Europe/Berlin")
    assert (budget.warn_ratio, budget.hard_cap) == ((Decimal("0.5"), Decimal("0.8")), True)
    assert (budget.cap.mode, budget.cap.deny_status, budget.cap.max_age) == (CapMode.ENFORCE, 403, 60.0)
    assert (budget.cap.on_unknown, budget.cap.exempt_features) == (OnUnknown.DENY, ("alarm",))
    assert (budget.match.team, budget.match.engine) == ("docs", None)


@pytest.mark.parametrize("category", [*Category, "compute"])
def test_a_budget_may_match_each_category_and_all_of_compute(category: str) -> None:
    config = read(LEAST + f"budgets: [{{name: all, daily_usd: 1, match: {{category: {category}}}}}]\n")
    assert config.budgets[0].match.category == category


@pytest.mark.parametrize(("interval", "max_age"), [("100ms", "300ms"), ("700ms", "2100ms"), ("40s", "2m")])
def test_a_figure_may_be_as_old_as_three_beats(interval: str, max_age: str) -> None:
    cap = f"{{max_age: {max_age}}}"
    assert read(LEAST + f"interval: {interval}\nbudgets: [{{name: all, daily_usd: 1, cap: {cap}}}]\n").budgets


def test_an_address_and_a_price_are_enough() -> None:
    assert read(LEAST) == Config(
        engines=(Engine(url="http://a:8000"),), prices=Prices(gpu=GpuPrice(usd_per_hour=Decimal("0.80")))
    )


def test_an_engine_that_pays_for_no_gpu_needs_no_price() -> None:
    assert read('engines: [{url: "http://a:8000", gpus: 0}]\n').prices == Prices()


def test_a_price_stays_the_decimal_that_was_written() -> None:
    gpu = read(LEAST).prices.gpu
    assert gpu is not None
    assert str(gpu.usd_per_hour) == "0.80"


@pytest.mark.parametrize("empty", ["", "null", "~"])
def test_a_key_left_empty_has_its_default(empty: str) -> None:
    assert read(f"{LEAST}interval: {empty}\nscaling: {empty}\n") == read(LEAST)


def test_a_byte_order_mark_is_no_part_of_the_config() -> None:
    assert parse(b"\xef\xbb\xbf" + LEAST.encode(), "config.yml") == read(LEAST)


def test_an_alias_stands_for_its_anchor() -> None:
    config = read(f"{LEAST}scaling: {{queue_depth: &edges {{up: 9, down: 1}}, ttft: *edges}}\n")
    assert config.scaling.ttft == config.scaling.queue_depth


@pytest.mark.parametrize(
    ("gpus", "charged"),
    [
        ("2", Fraction(2)),
        ("0.1", Fraction(1, 10)),
        ("3/7", Fraction(3, 7)),
        ("[GPU-1, GPU-2]", Fraction(2)),
        ("[{uuid: GPU-1}]", Fraction(1)),
        ("[GPU-1, {uuid: GPU-2, share: 0.25}]", Fraction(5, 4)),
        ("[{uuid: MIG-1, slices: 3}, {uuid: MIG-2, slices: 4}]", Fraction(1)),
    ],
)
def test_the_gpus_charged_follow_from_what_is_written(gpus: str, charged: Fraction) -> None:
    config = read(f'engines: [{{url: "http://a:1", gpus: {gpus}}}]\nprices: {{gpu: {{usd_per_hour: 1}}}}\n')
    assert config.engines[0].gpus_charged == charged


def test_shares_of_one_gpu_may_sum_to_exactly_one() -> None:
    shares = "".join(
        f'- {{name: e{index}, url: "http://e{index}:1", gpus: [{{uuid: GPU-1, share: 0.1}}]}}\n' for index in range(10)
    )
    config = read(f"engines:\n{shares}prices: {{gpu: {{usd_per_hour: 1}}}}\n")
    assert sum(engine.gpus_charged for engine in config.engines) == 1


@pytest.mark.parametrize(
    ("engine", "target"),
    [("workload: interactive", 0.5), ("workload: batch", None), ("workload: batch, ttft_target: 2s", 2.0)],
)
def test_a_ttft_is_promised_where_someone_waits_or_the_config_says_so(engine: str, target: float | None) -> None:
    config = read(f'engines: [{{url: "http://a:1", {engine}}}]\nprices: {{gpu: {{usd_per_hour: 1}}}}\n')
    assert config.engines[0].ttft_target_seconds == target


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [("500ms", 0.5), ("5s", 5), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("1w", 604_800), ("1y", 31_536_000)],
)
def test_a_duration_is_read_as_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@given(hours=st.integers(0, 9999), minutes=st.integers(0, 59), millis=st.integers(1, 59_999))
def test_the_parts_of_a_duration_are_added(hours: int, minutes: int, millis: int) -> None:
    assert seconds(f"{hours}h{minutes}m{millis}ms") == pytest.approx(hours * 3600 + minutes * 60 + millis / 1000)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("7B", 7), ("500kB", 500_000), ("1 MiB", 2**20), ("2GB", 2 * 10**9), ("3GiB", 3 * 2**30)],
)
def test_a_size_is_read_as_bytes(text: str, value: int) -> None:
    assert size_bytes(text) == value


@given(st.integers(1, 10**15 - 1), st.sampled_from([("", 1), ("kB", 1000), ("MB", 10**6), ("KiB", 1024)]))
def test_a_size_comes_back_as_it_was_written(number: int, unit: tuple[str, int]) -> None:
    assert size_bytes(f"{number}{unit[0]}") == number * unit[1]


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**18, places=9))
def test_a_decimal_comes_back_exactly(value: Decimal) -> None:
    assert str(decimal(str(value))) == str(value)
    assert units.MONEY.parse(f"{value:f}") == value


@given(st.fractions(min_value=0, max_value=1000, max_denominator=10**3))  # six digits each
def test_a_fraction_of_gpus_comes_back_exactly(value: Fraction) -> None:
    assert units.GPU_COUNT.parse(f"{value.numerator}/{value.denominator}") == value


@given(st.integers(0, 10**12))
def test_a_whole_number_comes_back_whole(value: int) -> None:
    assert units.WHOLE.parse(f"{value}") == value


@given(st.datetimes(timezones=st.timezones()))
def test_an_instant_comes_back_to_the_second(moment: Any) -> None:
    moment = moment.replace(microsecond=0)
    try:
        found = units.INSTANT.parse(moment.isoformat())
    except OverflowError:
        return  # an edge of the calendar that lies outside it in UTC
    assert found == round(moment.timestamp()) * 10**9


@given(st.text())
def test_a_text_is_a_scalar_or_is_refused_and_nothing_else(text: str) -> None:
    for scalar in vars(units).values():
        if isinstance(scalar, units.Scalar):
            try:
                value = scalar.parse(text)
            except (ValueError, OverflowError):
                continue
            assert value is not None


@pytest.mark.parametrize(
    ("scalar", "text", "value"),
    [
        (units.MONEY, "010", Decimal(10)),
        (units.MONEY, "1e3", Decimal(1000)),
        (units.MONEY, "0", Decimal(0)),
        (units.WHOLE, "010", 10),
        (units.RATIO, "1", Decimal(1)),
        (units.GPU_COUNT, "3 / 7", Fraction(3, 7)),
        (units.GPU_SHARE, "1", Decimal(1)),
        (units.SLICES, "7", 7),
        (units.NAME, "cafe\u0301", "café"),
        (units.URL, "https://[::1]:8000/metrics", "https://[::1]:8000/metrics"),
        (units.INSTANT, "1970-01-02", 86_400 * 10**9),
        (units.INSTANT, "1970-01-01T01:00:00+01:00", 0),
        (units.INSTANT, "1970-01-01 00:00:01Z", 10**9),
        (units.FLAG, "true", True),
        (units.FLAG, "false", False),
    ],
)
def test_a_scalar_means_what_a_person_reads(scalar: units.Scalar, text: str, value: object) -> None:
    found = scalar.parse(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("scalar", "text"),
    [
        (units.DURATION, "101y"),
        (units.SIZE, "0"),
        (units.SIZE, "1e3"),
        (units.SIZE, "9" * 16),
        (units.LIMIT, "0"),
        (units.POSITIVE, "0.0"),
        (units.RATIO, "1.01"),
        (units.SLICES, "0"),
        (units.WHOLE, "1.0"),
        (units.WHOLE, "٣"),
        (units.WHOLE_POSITIVE, "0"),
        (units.NAME, "x" * 129),
        (units.NAME, "two\nlines"),
        (units.PATH, ""),
        (units.URL, "http://a:8000#top"),
        (units.INSTANT, "tomorrow"),
        (units.FLAG, "True"),
    ],
)
def test_a_scalar_out_of_bounds_is_refused(scalar: units.Scalar, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$|Invalid isoformat"):
        scalar.parse(text)


# Warnings

SIDECAR = "role: sidecar\n"
API = LEAST.replace("{gpu:", "{api: {models: [{model: a, input_usd_per_million: 1, output_usd_per_million: 1}]}, gpu:")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LEAST, []),
        (LEAST + "gpu: {name: NVIDIA A10G}\n", []),
        (LEAST + "budgets: [{name: all, daily_usd: 1, match: {team: a}}]\n", []),
        (
            LEAST + "cascades: [{name: a, tiers: [b, c]}]\nbudgets: [{name: all, daily_usd: 1, match: {tier: b}}]\n",
            ["budgets[0].match.tier: no engine has 'b': only usage events can name it"],
        ),
        (
            API + "budgets: [{name: all, daily_usd: 1, match: {tier: b}}]\n",
            ["budgets[0].match.tier: no engine has 'b': only usage events can name it"],
        ),
        (API.replace('"}]', '", tier: b}]') + "budgets: [{name: all, daily_usd: 1, match: {tier: b}}]\n", []),
        (LEAST + "features: {known: [a], value_ratio: {a: 1}}\n", []),
        (LEAST + "cascades: [{name: a, tiers: [b, c]}]\n", []),
        (LEAST + "usage: {settle: 1m, tokens: [{file: a}]}\n", []),
        (
            LEAST + "usage: {settle: 30s}\n",
            ["usage.settle: windows of 30 s are shorter than twelve beats, 60 s: much is unattributed"],
        ),
        (LEAST + "interval: 30s\n", []),
        (SIDECAR + LEAST + "usage: {settle: 1m}\n", ["usage: usage events belong to the hub: a sidecar takes none"]),
        (LEAST + "gpu: {dcgm_url: 'http://${NODE_IP}:9400'}\n", []),
        (LEAST + "gpu: {source: dcgm, dcgm_url: 'http://a:9400', select: [GPU-a]}\n", []),
        (
            LEAST + "gpu: {source: nvml, dcgm_url: 'http://a:9400'}\n",
            ["gpu.dcgm_url: nobody asks it, since gpu.source is nvml"],
        ),
        (LEAST + "alerts: {idle_usd_per_hour: 6, kv_cache_ratio: null}\n", []),
        (LEAST + "limits: {body_bytes: 2MiB}\n", []),
        (LEAST.replace("{gpu:", "{network: {usd_per_gb: 1}, gpu:"), []),
        (LEAST.replace("{gpu:", "{api: {compare_with: {provider: a, model: b}}, gpu:"), []),
        (API, []),
        (LEAST.replace("{gpu:", "{storage: {weights_gb: 1, usd_per_gb_month: 1}, gpu:"), []),
        (
            SIDECAR + LEAST.replace("{gpu:", "{storage: {weights_gb: 1, usd_per_gb_month: 1}, gpu:"),
            ["prices.storage: a sidecar charges no storage: it would be counted once a replica"],
        ),
        (LEAST.replace("usd_per_hour: 0.80", "by_name: {A10G: 1}"), []),
        (
            LEAST.replace("usd_per_hour: 0.80", "by_name: {A10G: 1}") + "gpu: {name: H100}\n",
            ["prices.gpu.by_name: no price applies, since gpu.name is 'H100'; GPU time is counted as unpriced"],
        ),
        (
            LEAST.replace("usd_per_hour: 0.80", "timeline: [{from: 2020-01-01, by_name: {A10G: 1}}]")
            + "gpu: {source: none}\n",
            [
                "prices.gpu.by_name: no price applies, since gpu.name is not set and no GPU is asked; GPU time is "
                "counted as unpriced"
            ],
        ),
        (LEAST.replace("usd_per_hour: 0.80", "by_name: {cafe\u0301: 1}") + "gpu: {name: café}\n", []),
    ],
)
def test_what_has_no_effect_is_said(content: str, expected: list[str]) -> None:
    assert warnings(read(content)) == expected


# The example


def _everything_switched_on() -> yaml.Node:
    """Return the example with each `#key` as a key, and the `[]` that stands before such a list taken away."""
    text = re.sub(r"(?m)^( *)#(?! )", r"\1", EXAMPLE.read_text(encoding="utf-8"))
    node = yaml.compose(re.sub(r"(?m): \[\](.*\n +- )", r":\1", text), Loader=yaml.SafeLoader)
    assert node is not None
    return node


def _sections(node: yaml.Node, hint: Any) -> Iterator[tuple[type[Section], dict[str, yaml.Node]]]:
    """Yield each mapping of a document with the section that it is."""
    for member in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if isinstance(node, yaml.SequenceNode) and get_origin(member) is tuple:
            for item in node.value:
                yield from _sections(item, get_args(member)[0])
        elif isinstance(node, yaml.MappingNode) and isinstance(member, type) and issubclass(member, Section):
            shown = {key.value: child for key, child in node.value}
            yield member, shown
            hints = get_type_hints(member, include_extras=True)
            for key, child in shown.items():
                yield from _sections(child, hints[fields(member)[key].name])


def _all_sections(hint: Any) -> Iterator[type[Section]]:
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
        for member in get_type_hints(hint, include_extras=True).values():
            yield from _all_sections(member)
    for member in get_args(hint):
        yield from _all_sections(member)


def test_the_example_is_a_config_without_warnings() -> None:
    assert warnings(load(EXAMPLE)) == []


def test_every_key_that_the_example_switches_off_is_written_as_it_would_be_on() -> None:
    reader = Reader()
    reader.read(_everything_switched_on(), Config, "")
    assert reader.problems == []


def test_the_example_shows_every_key_of_every_section() -> None:
    shown: dict[type[Section], set[str]] = {section: set() for section in _all_sections(Config)}
    for section, keys in _sections(_everything_switched_on(), Config):
        shown[section] |= set(keys)
    assert len(shown) > 20
    assert {section.__name__: sorted(fields(section).keys() - keys) for section, keys in shown.items()} == {
        section.__name__: [] for section in shown
    }


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def test_the_example_shows_every_default() -> None:
    found = list(_sections(_everything_switched_on(), Config))
    missing = []
    for section in dict(found):
        for key, field in fields(section).items():
            default = None if field.required else _default_of(field)
            if default is None or isinstance(default, Section | tuple | dict):
                continue
            hint = get_type_hints(section, include_extras=True)[field.name]
            nodes = [keys[key] for owner, keys in found if owner is section and key in keys]
            if default not in [Reader().read(node, hint, "") for node in nodes]:
                missing.append(f"{section.__name__}.{key}: {default}")
    assert missing == []


def test_the_example_is_the_defaults_but_for_its_engine_and_prices() -> None:
    config = load(EXAMPLE)
    least = read(LEAST)
    assert msgspec.structs.replace(config, prices=least.prices, engines=least.engines) == least


# The command line


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | environment,
    )
    assert "Traceback" not in done.stderr
    return done


def test_check_config_says_that_a_good_file_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(LEAST, encoding="utf-8")
    done = run("check-config", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: fine\n", "")


def test_a_machine_without_time_zones_of_its_own_has_ours(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    budgets = "".join(f"- {{name: {zone}, daily_usd: 1, timezone: {zone}}}\n" for zone in ("UTC", "Europe/Berlin"))
    file.write_text(LEAST + "budgets:\n" + budgets, encoding="utf-8")
    done = run("check-config", file, PYTHONTZPATH="")
    assert (done.returncode, done.stdout) == (0, f"{file}: fine\n"), done.stderr


def test_check_config_finds_nothing_to_say_of_the_example() -> None:
    done = run("check-config", EXAMPLE)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{EXAMPLE}: fine\n", "")


def test_check_config_warns_and_is_content(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(SIDECAR + LEAST + "usage: {settle: 1m}\n", encoding="utf-8")
    done = run("check-config", file)
    text = "usage events belong to the hub: a sidecar takes none"
    assert (done.returncode, done.stderr) == (0, f"{file}: warning: usage: {text}\n")


def test_null_switches_an_alert_off_and_leaves_another_key_at_its_default() -> None:
    config = read(LEAST + "interval: null\nalerts: {kv_cache_ratio: null, burn_rate: {fast_day: null}}\n")
    assert (config.interval, config.alerts.kv_cache_ratio, config.alerts.burn_rate.fast_day) == (5.0, None, None)
    assert config.alerts.burn_rate.fast_month == Decimal("14.4")
    found = {alert: value for alert, _, value in thresholds(config.alerts)}
    assert (found["LLMCostKvCacheFull"], found["LLMCostBudgetExhaustionSoon"]) == (None, 4 * 3600.0)


def test_check_config_tells_each_problem_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(LEAST + "interval: 5\nmin_tokens: 0\n", encoding="utf-8")
    done = run("check-config", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{file}:3: interval: expected a duration like 30s, 500ms or 1h30m, found '5'",
        f"{file}:4: min_tokens: expected a whole number, 1 or more, found '0'",
    ]


@pytest.mark.parametrize(("name", "reason"), [("absent.yml", "No such file or directory"), ("", "Is a directory")])
def test_check_config_says_why_a_file_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    done = run("check-config", tmp_path / name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path / name}: expected a readable file, found: {reason}\n"


def test_check_config_refuses_a_file_that_is_far_too_large(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_bytes(b"#" * (2**17 + 1))
    done = run("check-config", file)
    assert (done.returncode, done.stderr) == (2, f"{file}: expected at most 131072 bytes, found more\n")


ADDRESS = "--engine.url=http://127.0.0.1:1"
PRICE = "--gpu.usd-per-hour=1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --config.file=FILE, or --engine.url=URL and --gpu.usd-per-hour=USD, found neither"),
        (
            ["--config.file=config.yml", ADDRESS, PRICE],
            "expected a config file or flags, found --config.file together with --engine.url, --gpu.usd-per-hour",
        ),
        ([ADDRESS], "expected --gpu.usd-per-hour=USD, the price of one GPU for an hour, found nothing"),
        (
            ["--engine.url=http://me:hunter2@a:1", PRICE],
            "Invalid value for '--engine.url': expected an address like http://127.0.0.1:8000, without user, password "
            "or query, found something else",
        ),
        (
            [ADDRESS, "--gpu.usd-per-hour=-1"],
            "Invalid value for '--gpu.usd-per-hour': expected an amount in US dollars, 0 or more, found '-1'",
        ),
        (
            [ADDRESS, PRICE, "--gpu.count=many"],
            "Invalid value for '--gpu.count': expected a number of GPUs like 1, 0.5 or 3/7, found 'many'",
        ),
        ([ADDRESS, PRICE, "--interval=50ms"], "--interval: expected 0.1 s or more, found 0.05 s"),
        (
            [ADDRESS, PRICE, "--interval=5"],
            "Invalid value for '--interval': expected a duration like 30s, 500ms or 1h30m, found '5'",
        ),
        (
            [ADDRESS, PRICE, "--web.listen-address=9409"],
            "Invalid value for '--web.listen-address': expected an address like :9409 or 127.0.0.1:9409, found '9409'",
        ),
        (
            [ADDRESS, PRICE, "--web.listen-address=:65536"],
            "Invalid value for '--web.listen-address': expected an address like :9409 or 127.0.0.1:9409, "
            "found ':65536'",
        ),
        (
            [ADDRESS, PRICE, "--on-fatal=pray"],
            "Invalid value for '--on-fatal': 'pray' is not one of 'exit', 'degrade'.",
        ),
    ],
)
def test_serve_refuses_flags_that_make_no_config(flags: list[str], message: str) -> None:
    done = run("serve", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"Error: {message}"
    assert "hunter2" not in done.stderr


def test_serve_ends_with_the_problems_of_its_config(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(LEAST + "interval: 5\n", encoding="utf-8")
    done = run("serve", f"--config.file={file}", "--web.listen-address=127.0.0.1:0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"{file}:3: interval: expected a duration like 30s, 500ms or 1h30m, found '5'"
    )


def flags_config(**given: Any) -> Config | None:
    nothing = dict.fromkeys(
        ("config_file", "engine_url", "engine_name", "gpu_usd_per_hour", "gpu_count", "gpu_dcgm_url", "interval"), None
    )
    return config_of_flags(**{**nothing, **given})


def test_flags_make_the_config_that_a_file_would() -> None:
    assert flags_config(engine_url="http://a:8000", gpu_usd_per_hour=Decimal("0.80")) == read(LEAST)
    assert flags_config(
        engine_url="http://a:8000",
        engine_name="chat",
        gpu_usd_per_hour=Decimal(2),
        gpu_count=Fraction(3, 7),
        gpu_dcgm_url="http://b:9400",
        interval=1.0,
    ) == read(
        'interval: 1s\nengines: [{name: chat, url: "http://a:8000", gpus: 3/7}]\nprices: {gpu: {usd_per_hour: 2}}\n'
        'gpu: {dcgm_url: "http://b:9400"}\n'
    )


def test_flags_without_gpus_need_no_price() -> None:
    assert flags_config(engine_url="http://a:8000", gpu_count=Fraction(0)) == read(
        'engines: [{url: "http://a:8000", gpus: 0}]\n'
    )


def test_a_file_alone_is_left_to_be_read() -> None:
    assert flags_config(config_file=Path("config.yml")) is None


def test_a_file_beside_a_flag_of_zero_is_refused() -> None:
    with pytest.raises(click.UsageError, match=re.escape("--config.file together with --gpu.count")):
        flags_config(config_file=Path("config.yml"), gpu_count=Fraction(0))


def test_a_config_error_prints_its_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        read(LEAST + "interval: 5\nmin_tokens: 0\n")
    assert str(caught.value) == "\n".join(caught.value.lines)
    assert len(caught.value.lines) == 2
