"""Whole pages, as Prometheus reads them: a change of any metric shows as a diff of text."""

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from exporter.beat import Beat
from exporter.books import Books
from exporter.config.model import Config, Engine, Gpu, GpuSelect, GpuShare, GpuSource, Workload
from exporter.config.prices import GpuPrice, NetworkPrice, OtherPrice, OwnedPrice, Prices, StoragePrice
from exporter.core.snapshot import ConfigView, Snapshot
from exporter.metrics import PREFIX, ROWS, Type
from exporter.page import PageWriter
from exporter.sources.http import new_session
from exporter.watch import Machine
from tests.conftest import Golden
from tests.fakes import FakeClock, served
from tests.programs import program

GOLDEN = Path(__file__).parent
PAGES = sorted(path.name for path in GOLDEN.glob("*.prom"))
BEGAN = 1_795_464_804.0
VLLM = """\
# TYPE process_start_time_seconds gauge
process_start_time_seconds {start}
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m\\"odel"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m\\"odel"}} 12
vllm:kv_cache_usage_perc{{engine="0",model_name="m\\"odel"}} 0.25
vllm:prompt_tokens_total{{engine="0",model_name="m\\"odel"}} {prompt}
vllm:prompt_tokens_cached_total{{engine="0",model_name="m\\"odel"}} {cached}
vllm:generation_tokens_total{{engine="0",model_name="m\\"odel"}} {output}
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="m\\"odel"}} {requests}
http_requests_total{{handler="/v1/completions",method="POST",status="2xx"}} {http}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5",model_name="m\\"odel"}} 0
vllm:time_to_first_token_seconds_bucket{{engine="0",le="1.0",model_name="m\\"odel"}} {requests}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf",model_name="m\\"odel"}} {requests}
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="m\\"odel"}} {ttft}
vllm:time_to_first_token_seconds_count{{engine="0",model_name="m\\"odel"}} {requests}
"""


def vllm(work: int, *, start: float = BEGAN - 500, running: int = 4) -> str:
    return VLLM.format(
        start=start, running=running, prompt=3000 * work, cached=1000 * work, output=600 * work, requests=20 * work,
        http=21 * work, ttft=15.5 * work,
    )  # fmt: skip


DCGM = GOLDEN.parent / "fixtures" / "dcgm"
WHOLE = ("GPU-0a1b2c3d-0000-4000-8000-000000000001", "GPU-0a1b2c3d-0000-4000-8000-000000000002")
PARTED = "GPU-22222222-3333-4444-8555-000000000001"


def dcgm(beat: int) -> str:
    """Three GPUs of a node: one busy with 500 W, one idle with 100 W, one in two MIG instances with 400 W."""
    whole, parted = ((DCGM / name).read_text(encoding="utf-8") for name in ("4.x-kubernetes.prom", "mig.prom"))
    draws = {" 123456789012\n": 500, " 9876543210\n": 100, " 6000000\n": 400}
    lines = (line for line in parted.replace('gpu="0"', 'gpu="2"').splitlines(keepends=True) if line[0] != "#")
    page = whole + "".join(lines)
    for counter, watts in draws.items():
        assert counter in page
        page = page.replace(counter, f" {int(counter) + beat * 30 * watts * 1000}\n")
    return page


class Stage:
    """The real beat on real servers, with time in our hands; `page` is what an engine answers, None hangs up."""

    def __init__(self) -> None:
        self.clock = FakeClock(BEGAN)
        self.page: str | None = None
        self.gpus = ""
        self.snapshots: list[Snapshot] = []

    async def play(
        self, config: Config, pages: Iterable[str | None], seconds: float = 30.0, machine: Machine | None = None
    ) -> Snapshot:
        async with (
            served(lambda: None if self.page is None else (200, self.page)) as url,
            served(lambda: (200, self.gpus)) as dcgm_url,
            new_session() as session,
        ):
            gpu = replace(config.gpu, dcgm_url=dcgm_url) if config.gpu.source is GpuSource.DCGM else config.gpu
            config = replace(config, engines=tuple(replace(engine, url=url) for engine in config.engines), gpu=gpu)
            beat = Beat(config, self.clock, Books(), session, self.snapshots.append, machine)
            for page in pages:
                self.page = page
                await beat.once()
                self.clock.advance(seconds)
        return self.snapshots[-1]


CONFIG = Config(
    interval=30.0,
    engines=(
        Engine(name="chat", url="http://x", tier="fast", gpus=Fraction(2), timeout=5.0),
        Engine(name="nightly", url="http://y", workload=Workload.NIGHTLY, gpus=Fraction(1, 2), timeout=5.0,
               max_output_tokens_per_second=Decimal(200)),
    ),
    gpu=Gpu(source=GpuSource.NONE),  # what auto finds depends on the machine
    prices=Prices(
        gpu=GpuPrice(usd_per_hour=Decimal("0.80")),
        storage=StoragePrice(weights_gb=Decimal(14), usd_per_gb_month=Decimal("0.023")),
        other=(OtherPrice(name="head node", usd_per_hour=Decimal("0.10"), engine="chat"),),
    ),
)  # fmt: skip


OWNED = replace(
    CONFIG,
    engines=(
        replace(CONFIG.engines[0], gpus=WHOLE),
        replace(CONFIG.engines[1], gpus=(GpuShare(uuid=PARTED, slices=3),)),
    ),
    gpu=Gpu(source=GpuSource.DCGM, select=GpuSelect.ALL),
    prices=Prices(
        gpu=GpuPrice(
            owned=OwnedPrice(
                purchase_usd=Decimal(35040), lifetime=4 * 365 * 86400.0, usd_per_kwh=Decimal("0.20"), pue=Decimal("1.2")
            )
        ),
        network=NetworkPrice(usd_per_gb=Decimal("0.09")),
    ),
)


def text(snapshot: Snapshot) -> str:
    """The page, without what no run repeats: how long a read took."""
    page = PageWriter(ROWS).write(snapshot).body.decode()
    return "".join(
        line for line in page.splitlines(keepends=True) if not line.startswith("llmcost_source_read_seconds{")
    )


async def test_the_page_of_two_working_engines(golden: Golden):
    pages = [vllm(work) for work in range(12)]
    golden("working.prom", text(await Stage().play(CONFIG, pages)))


async def test_the_page_after_a_restart(golden: Golden):
    pages = [vllm(5), vllm(6), None, vllm(0, start=BEGAN + 70), vllm(1, start=BEGAN + 70)]
    golden("restarted.prom", text(await Stage().play(CONFIG, pages)))


async def test_the_page_while_the_engines_are_gone(golden: Golden):
    golden("gone.prom", text(await Stage().play(CONFIG, [vllm(1), vllm(2), None, None, None, None, None])))


async def test_the_page_before_any_engine_has_answered(golden: Golden):
    golden("loading.prom", text(await Stage().play(CONFIG, [None, None])))


async def test_the_page_of_gpus_and_a_network(golden: Golden, tmp_path: Path):
    """Two GPUs of one engine, a slice of a third for another; energy has a price, and so have the bytes sent."""
    stage, interfaces = Stage(), tmp_path / "dev"

    def pages() -> Iterator[str]:
        for beat in range(4):
            stage.gpus = dcgm(beat)
            interfaces.write_text(f"|\n face |bytes|bytes\n lo: 1 1\n eth0: 5 {beat * 10**7}\n", encoding="ascii")
            yield vllm(beat)

    machine = Machine(environ={}, interfaces=interfaces)
    golden("gpus.prom", text(await stage.play(OWNED, pages(), machine=machine)))


async def test_the_page_when_the_beat_has_stopped(golden: Golden):
    snapshot = await Stage().play(CONFIG, [vllm(1), vllm(2)])
    page = PageWriter(ROWS).write(snapshot, only_staying=True).body.decode()
    stays = {f"{PREFIX}{row.name}" for row in ROWS if row.stays}
    assert {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")} <= stays
    golden("stopped.prom", "".join(x for x in page.splitlines(keepends=True) if "source_read_seconds{" not in x))


def test_the_page_of_a_broken_config(golden: Golden):
    broken = ConfigView(successful=False, last_success=None, problems=("config.yml:1: engines: expected …",))
    snapshot = Snapshot(
        at=BEGAN, version="0.0.0", role="lone", interval_seconds=0.0, accounting_start=None, config=broken
    )
    golden("broken-config.prom", text(snapshot))


def test_there_is_a_golden_page_for_each_state():
    assert PAGES == [
        "broken-config.prom",
        "gone.prom",
        "gpus.prom",
        "loading.prom",
        "restarted.prom",
        "stopped.prom",
        "working.prom",
    ]


@pytest.mark.parametrize("name", PAGES)
def test_promtool_finds_nothing_to_criticise(name: str):
    page = (GOLDEN / name).read_bytes()
    done = subprocess.run([program("promtool"), "check", "metrics"], input=page, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_parser_reads_every_sample_back(name: str):
    page = (GOLDEN / name).read_text()
    families = list(text_string_to_metric_families(page))
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    samples = [sample for family in families for sample in family.samples]
    assert [float(line.rpartition(" ")[2]) for line in lines] == [sample.value for sample in samples]
    types: Mapping[str, Type] = {f"{PREFIX}{row.name}": row.type for row in ROWS}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert family.type == types[name]
    assert (
        any('m"odel' in sample.labels.get("model", "") for sample in samples)
        or "model=" not in page
        or "unknown" in page
    )
