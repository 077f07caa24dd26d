"""Mistakes that others have made with GPUs, each under the name of its trap: from a page of GPUs to what is charged."""

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest

from exporter.config.load import parse
from exporter.config.model import Config, Engine, GpuSelect, GpuShare, Scaling
from exporter.config.nodes import ConfigError
from exporter.config.prices import GpuPrice, OwnedPrice
from exporter.core.energy import Draw, measured
from exporter.core.gpu_readings import GpuReading, GpusReading, Measure, MigReading, Total
from exporter.core.gpus import GpuMeter, GpuView, Shares, expected
from exporter.core.money import NANO, Kind, cost, nano_usd
from exporter.core.prices import Interval, gpu_timeline, pieces
from exporter.core.readings import Counted, EngineReading, ModelGauges, Series
from exporter.core.scaling import signals
from exporter.core.snapshot import ConfigView, GpusView, Snapshot
from exporter.metrics import ROWS, Fleet
from exporter.metrics.gpus import GPUS
from exporter.page import PageWriter
from exporter.sources.dcgm import NodePage, Owner
from tests.bench import Bench, terms
from tests.processes import samples

PAGES: Final = Path(__file__).parents[1] / "fixtures" / "dcgm"
CHAT: Final = Owner(pod="chat-0", namespace="llm", uuids=frozenset())
SHARED_GPU: Final = "GPU-33333333-4444-4555-8666-000000000001"
MIG_GPU: Final = "GPU-22222222-3333-4444-8555-000000000001"
A, B = "GPU-a", "GPU-b"
ENERGY, BUSY = (Total.ENERGY, ""), (Total.BUSY, "")
UTILIZATION = (Measure.UTILIZATION, "")
JOULE: Final = NANO
BEAT: Final = 5


def fixture(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def line(field: str, value: object) -> str:
    """Return a line of GPU-a on the page of a dcgm-exporter, to be formatted."""
    return f'DCGM_FI_DEV_{field}{{{{UUID="GPU-a",pod="chat-0"}}}} {value}\n'


def configured(*engines: str, price: str = "{usd_per_hour: 1}") -> Config:
    lines = "".join(
        f"  - {{name: e{number}, url: 'http://e{number}', gpus: {gpus}}}\n" for number, gpus in enumerate(engines)
    )
    return parse(f"engines:\n{lines}prices: {{gpu: {price}}}\n".encode(), "config.yml")


def refused(*engines: str) -> str:
    with pytest.raises(ConfigError) as raised:
        configured(*engines)
    return str(raised.value)


class Node:
    """A node's page of GPUs beat after beat, and a meter that follows it."""

    def __init__(self, owner: Owner = CHAT, select: GpuSelect = GpuSelect.OWN) -> None:
        self.page, self.meter, self.now = NodePage(select, owner, 60.0), GpuMeter(), 0

    def beat(self, text: str | None) -> None:
        self.now += BEAT * NANO
        self.meter.advance(None if text is None else self.page.read(text, self.now))

    def view(self, uuid: str) -> GpuView:
        (view,) = [view for view in self.meter.views(self.now) if view.reading.uuid == uuid]
        return view

    def total(self, family: Total, uuid: str) -> float:
        return dict(self.view(uuid).families[family])[""]


def gpu(uuid: str = A, at: int = 0, *, joules: float = 0, percent: float | None = None, up: bool = True) -> GpuReading:
    return GpuReading(
        uuid=uuid,
        index=uuid[-1],
        name="NVIDIA L4",
        up=up,
        sampled=at * NANO,
        gauges={} if percent is None else {UTILIZATION: percent / 100},
        totals={ENERGY: round(joules * JOULE), BUSY: round((percent or 0) / 100 * at * NANO)},
    )


def metered(*beats: Iterable[GpuReading] | None) -> GpuMeter:
    meter = GpuMeter()
    for beat in beats:
        meter.advance(None if beat is None else GpusReading(gpus=tuple(beat)))
    return meter


def whole(*uuids: str) -> Shares:
    return dict.fromkeys(uuids, Fraction(1))


def page_of(meter: GpuMeter, now: int = 0) -> dict[str, float]:
    snapshot = Snapshot(
        at=0.0,
        version="0",
        role="lone",
        interval_seconds=5.0,
        accounting_start=0.0,
        config=ConfigView(successful=True, last_success=0.0),
        gpus=GpusView(gpus=meter.views(now)),
    )
    return samples(PageWriter(ROWS).write(snapshot).body.decode())


# Shared GPU / time slicing ---------------------------------------------------------------------------------------


def test_time_slicing_two_pods_on_the_page_are_one_gpu_that_works_and_draws_once():
    node = Node()
    node.beat(fixture("time-slicing.prom"))
    node.beat(fixture("time-slicing.prom").replace("} 500000\n", "} 500350\n"))
    assert [view.reading.uuid for view in node.meter.views(node.now)] == [SHARED_GPU]
    assert node.total(Total.ENERGY, SHARED_GPU) == round(0.35 * JOULE)
    assert node.total(Total.BUSY, SHARED_GPU) == round(0.96 * BEAT * NANO)
    assert node.view(SHARED_GPU).gauge(Measure.POWER) == 70.125


def test_time_slicing_each_engine_pays_for_its_share_and_all_of_them_for_one_gpu():
    config = configured("1/2", "1/2", price="{by_name: {NVIDIA L4: 0.8}}")
    node = Node()
    for text in (fixture("time-slicing.prom"), fixture("time-slicing.prom").replace("} 500000\n", "} 500350\n")):
        node.beat(text)
    shares = node.meter.shares(config.engines)
    assert shares == {"e0": {SHARED_GPU: Fraction(1, 2)}, "e1": {SHARED_GPU: Fraction(1, 2)}}
    assert sum(engine.gpus_charged for engine in config.engines) == expected(config.engines) == 1
    drawn = [(node.meter.drawn(shares[engine.name]) or 0) * engine.gpus_charged for engine in config.engines]
    assert sum(drawn) == round(0.35 * JOULE)


def test_time_slicing_shares_of_one_gpu_are_at_most_the_whole():
    assert "sum to at most 1, found 1.1" in refused("[{uuid: GPU-a, share: 0.6}]", "[{uuid: GPU-a, share: 0.5}]")
    assert "sum to at most 1, found 2" in refused("[GPU-a]", "[GPU-a]")
    config = configured("[{uuid: GPU-a, share: 0.6}]", "[{uuid: GPU-a, share: 0.4}]")
    assert sum(engine.gpus_charged for engine in config.engines) == 1


# MIG -------------------------------------------------------------------------------------------------------------


def test_mig_has_no_utilisation_and_that_is_not_zero():
    node = Node()
    for _ in range(3):
        node.beat(fixture("mig.prom"))
    assert "GPU_UTIL" in fixture("mig.prom")
    assert node.view(MIG_GPU).gauge(Measure.UTILIZATION) is None
    assert Total.BUSY not in node.view(MIG_GPU).families
    assert node.meter.busy_ratio(whole(MIG_GPU)) is None
    assert not [name for name in page_of(node.meter) if "utilization" in name or "busy" in name]


def test_mig_a_slice_is_charged_its_part_of_the_gpu_and_all_seven_come_to_the_whole():
    config = configured("[{uuid: MIG-1, slices: 3}]", "[{uuid: MIG-2, slices: 4}]")
    assert [engine.gpus_charged for engine in config.engines] == [Fraction(3, 7), Fraction(4, 7)]
    assert expected(config.engines) == 1
    instances = tuple(
        MigReading(uuid=uuid, gpu_instance="1", compute_instance="0", profile="") for uuid in ("MIG-1", "MIG-2")
    )
    meter = GpuMeter()
    for joules in (0, 1):
        reading = GpuReading(
            uuid=A, index="0", name="H100", up=True, sampled=0, totals={ENERGY: joules}, instances=instances
        )
        meter.advance(GpusReading(gpus=(reading,)))
    shares = meter.shares(config.engines)
    assert shares == {"e0": {A: Fraction(3, 7)}, "e1": {A: Fraction(4, 7)}}
    assert sum((meter.drawn(shares[engine.name]) or 0) * engine.gpus_charged for engine in config.engines) == 1
    assert meter.names(shares["e0"]) == {"H100": Fraction(3, 7)}


def test_mig_a_slice_keeps_its_price_while_the_driver_is_away():
    """Only an instance that the driver shows has a known parent, and it shows none while it is lost."""
    price = GpuPrice(by_name={"NVIDIA L4": Decimal("0.7")})
    engine = Engine(url="http://x", gpus=(GpuShare(uuid="MIG-1", slices=3),))
    instance = MigReading(uuid="MIG-1", gpu_instance="1", compute_instance="0", profile="")
    seen = GpuReading(uuid=A, index="0", name="NVIDIA L4", up=True, sampled=0, instances=(instance,))
    meter = metered((seen,), None)
    (found,) = gpu_timeline(price, meter.names(meter.shares([engine])["default"]))
    assert found.nano_usd_per_hour == nano_usd(Decimal("0.7"))


def test_mig_what_a_gpu_has_is_not_added_to_what_its_instances_have():
    node = Node(select=GpuSelect.ALL)
    node.beat(fixture("mig.prom"))
    page = page_of(node.meter)
    used = [name for name in page if "memory_used_bytes" in name]
    assert len([name for name in used if name.startswith("llmcost_gpu_memory_used")]) == 1
    assert len([name for name in used if name.startswith("llmcost_gpu_mig_memory_used")]) == 2
    assert len([name for name in page if "gpu_energy_joules_total" in name or "gpu_power_watts" in name]) == 2


def test_mig_a_slice_without_its_number_of_slices_is_refused():
    assert "expected {uuid: MIG-…, slices: 1 to 7}" in refused("[MIG-1]")
    assert "sum to at most 1" in refused("[{uuid: MIG-1, slices: 3}]", "[{uuid: MIG-1, slices: 3}]")


# Tensor, pipeline and data parallel ------------------------------------------------------------------------------


def test_tensor_parallel_gpus_are_counted_once_by_their_uuid():
    assert "sum to at most 1, found 2" in refused("[GPU-a, GPU-b, GPU-a]")
    config = configured("[GPU-a, GPU-b]")
    assert config.engines[0].gpus_charged == expected(config.engines) == 2
    text = "".join(
        f'DCGM_FI_DEV_{field}{{gpu="{number}",UUID="{uuid}",pod="chat-0",container="{container}"}} 50\n'
        for number, uuid in enumerate((A, B))
        for container in ("vllm", "sidecar")
        for field in ("GPU_UTIL", "POWER_USAGE")
    )
    node = Node()
    for _ in range(2):
        node.beat(text)
    assert [view.reading.uuid for view in node.meter.views(0)] == [A, B]
    assert node.meter.shares(config.engines) == {"e0": whole(A, B)}
    assert node.meter.busy_ratio(whole(A, B)) == 0.5


def test_data_parallel_ranks_of_an_engine_share_its_gpus_and_do_not_multiply_them():
    """Four ranks on the engine's page, each busy, on the two GPUs that the config says."""
    bench = Bench(of=terms(gpus="2"))
    for tokens in (0, 500):
        counters = {Series(Counted.OUTPUT_TOKENS, "m", "", f"engine={rank}"): tokens for rank in range(4)}
        models = {"m": ModelGauges(running=4, waiting=0)}
        bench.beat(EngineReading(kind="vllm", start_time=None, counters=counters, ttft={}, models=models))
    assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == 2000
    assert bench.seconds() == {"busy": 2 * 5.0}


# A GPU is lost ---------------------------------------------------------------------------------------------------


def test_gpu_lost_blanks_no_other_and_is_seen_as_lost():
    meter = metered((gpu(A, percent=50), gpu(B, percent=50)), (gpu(A, 5, percent=50), gpu(B, up=False)))
    page = page_of(meter, 5 * NANO)
    for family, of_a, of_b in (
        ("gpu_up", 1, 0),
        ("gpu_utilization_ratio", 0.5, None),
        ("gpu_sample_age_seconds", 0, 5),
    ):
        found = [page.get(f"llmcost_{family}{{gpu={uuid[-1]},uuid={uuid}}}") for uuid in (A, B)]
        assert found == [of_a, of_b]
    assert not meter.all_up(whole(A, B))


def test_gpu_lost_is_still_charged_for_by_its_name():
    meter = metered((gpu(A), gpu(B)), (gpu(A),), None)
    engine = Engine(url="http://x", gpus=Fraction(2))
    assert meter.names(meter.shares([engine])["default"]) == {"NVIDIA L4": 2}


def test_gpu_lost_and_back_has_lost_no_energy():
    meter = metered((gpu(joules=100),), (gpu(joules=150),), None, (gpu(joules=150, up=False),), (gpu(joules=400),))
    assert page_of(meter)["llmcost_gpu_energy_joules_total{gpu=a,uuid=GPU-a}"] == 300
    assert meter.drawn(whole(A)) == 250 * JOULE


# Counters: resets, baselines, double counting --------------------------------------------------------------------


def test_energy_reset_with_the_driver_counts_in_full():
    meter = metered(*((gpu(joules=joules),) for joules in (900, 1000, 30)))
    assert page_of(meter)["llmcost_gpu_energy_joules_total{gpu=a,uuid=GPU-a}"] == 130


def test_energy_reset_masked_by_aggregation():
    """One GPU falls from 1000 J to 10 J while the other draws 2000 J: the sum rises, and still both count."""
    meter = metered((gpu(A, joules=1000), gpu(B, joules=1000)), (gpu(A, joules=10), gpu(B, joules=3000)))
    assert (meter.drawn(whole(A, B)) or 0) * 2 == 2010 * JOULE


def test_energy_missing_baseline():
    """What a GPU has drawn in all its life is not what it draws in this beat."""
    meter = metered((gpu(joules=10**9),))
    assert meter.drawn(whole(A)) is None
    assert page_of(meter)["llmcost_gpu_energy_joules_total{gpu=a,uuid=GPU-a}"] == 0


def test_power_is_a_moments_and_is_not_what_is_charged():
    """The page says 700 W at every look, and the counter that the GPU drew 5 J meanwhile: it drew 5 J."""
    text = line("POWER_USAGE", 700) + line("TOTAL_ENERGY_CONSUMPTION", "{}")
    node = Node()
    for millijoules in (0, 5000):
        node.beat(text.format(millijoules))
    price = GpuPrice(owned=OwnedPrice(purchase_usd=Decimal(0), lifetime=86400.0, usd_per_kwh=Decimal("0.36")))
    draw = Draw(0, BEAT * NANO, node.meter.drawn(whole(A)) or Fraction(0))
    (piece,) = pieces(measured(gpu_timeline(price, {}), [draw]), Interval(BEAT * NANO, BEAT * NANO))
    assert cost(piece.duration_ns, piece.price.nano_usd_per_hour or Fraction(0)) == 5 * 100


def test_dcgm_collects_every_thirty_seconds_and_the_same_value_is_not_counted_again():
    """Six beats see the same counter: its move counts once, and the utilisation stands for each beat's own time."""
    text = line("GPU_UTIL", "{}") + line("TOTAL_ENERGY_CONSUMPTION", "{}")
    node, drawn = Node(), []
    for percent, joules in ((40, 1000), (80, 1900)):
        for _ in range(6):
            node.beat(text.format(percent, 1000 * joules))
            drawn.append(node.meter.drawn(whole(A)))
    assert drawn == [None, *[0] * 5, 900 * JOULE, *[0] * 5]
    assert node.total(Total.ENERGY, A) == 900 * JOULE
    assert node.total(Total.BUSY, A) == round((5 * 0.4 + 6 * 0.8) * BEAT * NANO)


def test_dcgm_double_counting_of_what_a_page_says_of_a_gpu_and_of_its_instances():
    node = Node(select=GpuSelect.ALL)
    node.beat(fixture("mig.prom"))
    node.beat(fixture("mig.prom").replace("} 6000000\n", "} 6002000\n"))
    assert node.total(Total.ENERGY, MIG_GPU) == 2 * JOULE


def test_dcgm_double_counting_of_a_page_with_old_and_new_names():
    node = Node()
    names = ("DCGM_FI_DEV_GPU_UTIL", "dcgm_gpu_utilization")
    for _ in range(2):
        node.beat("".join(f'{name}{{UUID="GPU-a",pod="chat-0"}} 60\n' for name in names))
    assert node.total(Total.BUSY, A) == round(0.6 * BEAT * NANO)


# Unknown, zero, stale --------------------------------------------------------------------------------------------


def test_missing_data_is_not_zero_and_zero_is_not_missing():
    def signal(*percents: float | None) -> float | None:
        meter = metered(*((gpu(at=5 * beat, percent=percent),) for beat, percent in enumerate(percents)))
        found = signals(
            Scaling(), Engine(url="http://x"), waiting=None, ttft_p95=None,
            gpu_utilization=meter.busy_ratio(whole(A)),
        )  # fmt: skip
        return {one.name: one.value for one in found}["gpu_utilization"]

    assert signal(0, 0) == 0.0
    assert signal(None, None) is None
    assert signal(0, 0, None) is None
    assert signal(0) is None


def test_stale_gauges_of_a_page_that_is_gone():
    node = Node()
    node.beat(fixture("4.x-kubernetes.prom"))
    before = page_of(node.meter, node.now)
    node.beat(None)
    after = page_of(node.meter, node.now)
    stays = {f"llmcost_{row.name}" for row in GPUS if row.stays or row.name.endswith("_info")}
    stays |= {"llmcost_gpu_up", "llmcost_gpu_sample_age_seconds", "llmcost_nvml_call_stuck_seconds"}
    assert len({name.partition("{")[0] for name in before}) > 20
    assert {name.partition("{")[0] for name in after if name.startswith(("llmcost_gpu", "llmcost_nvml"))} <= stays


def test_an_unknown_gpu_has_no_price_and_is_not_free():
    price = GpuPrice(by_name={"NVIDIA L4": Decimal("0.8")})
    unknown = metered((gpu(A),)).names(whole("GPU-unseen"))
    assert [found.nano_usd_per_hour for found in gpu_timeline(price, unknown)] == [None]
    assert [found.nano_usd_per_hour for found in gpu_timeline(price, {"NVIDIA T4": Fraction(1)})] == [None]


def test_scrape_gaps_of_the_page_are_no_idle_time():
    node = Node()
    text = line("GPU_UTIL", 100).format()
    for answer in (text, text, *[None] * 20, text, text):
        node.beat(answer)
    assert node.meter.busy_ratio(whole(A)) == 1.0


def test_gpu_util_as_efficiency_is_called_a_duty_cycle_and_is_never_averaged_over_a_fleet():
    (row,) = [row for row in GPUS if row.name == "gpu_utilization_ratio"]
    assert "duty cycle" in row.help
    assert row.fleet is Fleet.NONE


# Numbers ---------------------------------------------------------------------------------------------------------


def test_float_drift_does_not_reach_the_energy():
    """A counter that has run for decades, read as a float: each millijoule of a million beats is there."""
    node = Node()
    text = line("TOTAL_ENERGY_CONSUMPTION", "{}")
    first = 2**52 + 1
    for beat in range(1001):
        node.beat(text.format(first + beat))
    assert node.total(Total.ENERGY, A) == 1000 * JOULE // 1000


@pytest.mark.parametrize("parts", [(3, 4), (1, 2, 4), (1, 1, 1, 1, 1, 1, 1)])
def test_rounding_of_shares_loses_nothing(parts: tuple[int, ...]):
    meter = metered((gpu(joules=0),), (gpu(joules=1.000000001),))
    engines = [
        Engine(name=f"e{number}", url="http://x", gpus=(GpuShare(uuid=A, slices=part),))
        for number, part in enumerate(parts)
    ]
    shares = meter.shares(engines)
    drawn = [(meter.drawn(shares[engine.name]) or 0) * engine.gpus_charged for engine in engines]
    assert sum(drawn) == 1_000_000_001


def test_the_fleets_gpus_are_summed_where_they_are_amounts_and_never_where_they_are_ratios():
    for row in GPUS:
        if row.name.endswith(("_ratio", "_info")):
            assert row.fleet is Fleet.NONE, row.name
        if row.name.endswith("_total"):
            assert row.fleet is Fleet.SUM, row.name
