"""A recorded day of a real vLLM, in miniature, through source, meter, books and page, at any beat."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.beat import Beat
from exporter.books import Books
from exporter.config.model import Config, Engine
from exporter.config.prices import GpuPrice, Prices
from exporter.config.units import decimal
from exporter.core.snapshot import Snapshot
from exporter.metrics import ROWS
from exporter.page import PageWriter
from exporter.sources.http import new_session
from exporter.sources.recording import Loop, Playback, Record, read
from tests.fakes import FakeClock, served

RECORDING = Path(__file__).parent.parent / "fixtures/recordings/vllm-0.32.0.jsonl.xz"
USD_PER_HOUR = "0.80"
KILLED = 1795465171.22  # the start time of the second life, as its page says

# Read off the recording: the last page of each life.
FIRST_LIFE = {"prompt": 140666, "output": 83470}
SECOND_LIFE = {"prompt": 51349, "output": 30877}


class Seen(NamedTuple):
    """What a beat finds, read off the page with nothing but string operations."""

    at: float
    answered: bool
    start: float
    running: float
    tokens: float


@pytest.fixture(scope="module")
def records() -> tuple[Record, ...]:
    return read(RECORDING)


def value(body: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in body.splitlines() if line.startswith((name + "{", name + " ")))


def seen(records: tuple[Record, ...], ticks: list[float]) -> list[Seen]:
    found = []
    for at in ticks:
        record = [record for record in records if record.at <= at + 1e-6][-1]
        body = record.body
        tokens = value(body, "vllm:prompt_tokens_total") + value(body, "vllm:generation_tokens_total")
        running = value(body, "vllm:num_requests_running")
        found.append(Seen(at, record.error is None, value(body, "process_start_time_seconds"), running, tokens))
    return found


def expected_seconds(beats: list[Seen]) -> dict[str, Fraction]:
    """What each second bought, by looking ahead to the reading that settles it, which the exporter cannot do."""
    bought = dict.fromkeys(("busy", "idle", "loading", "down"), Fraction(0))
    for index in range(1, len(beats)):
        length = Fraction(str(beats[index].at)) - Fraction(str(beats[index - 1].at))
        before = next((beat for beat in reversed(beats[:index]) if beat.answered), None)
        ahead = next((i for i in range(index, len(beats)) if beats[i].answered), None)
        if before is None:
            bought["loading"] += length
        elif ahead is None or ahead - index > 3:
            bought["down"] += length if index + 3 < len(beats) else 0  # the newest three are still pending
        elif beats[ahead].start != before.start:
            late = min(max(Fraction(str(beats[index].at)) - Fraction(str(beats[ahead].start)), Fraction(0)), length)
            bought["loading"] += late
            bought["down"] += length - late
        else:
            after = beats[ahead]
            ran = after.tokens > before.tokens or after.running > 0 or before.running > 0
            bought["busy" if ran else "idle"] += length
    return bought


async def play(records: tuple[Record, ...], interval: float) -> tuple[list[Seen], Mapping[str, float]]:
    began = records[0].at
    clock = FakeClock(began + 0.1)  # just after each of the recording's reads, which were 5 s apart
    playback = Playback(records, loop=Loop.OFF, began=began)
    pages: list[str] = []
    writer = PageWriter(ROWS)

    def answer() -> tuple[int, str] | None:
        cue = playback.cue(clock.now().unix_seconds + 1e-6)
        return None if cue is None or cue.record.error else (200, playback.page(cue))

    def publish(snapshot: Snapshot) -> None:
        pages.append(writer.write(snapshot).body.decode())

    async with served(answer) as url, new_session() as session:
        engine = Engine(name="chat", url=url, models=("tiny-llama",), timeout=5.0)
        prices = Prices(gpu=GpuPrice(usd_per_hour=decimal(USD_PER_HOUR)))
        beat = Beat(Config(engines=(engine,), prices=prices, interval=interval), clock, Books(), session, publish)
        ticks = [clock.now().unix_seconds]
        await beat.once()
        while ticks[-1] + interval <= records[-1].at + 1e-6:
            clock.advance(interval)
            ticks.append(clock.now().unix_seconds)
            await beat.once()
    return seen(records, ticks), samples(pages[-1])


def samples(page: str) -> dict[str, float]:
    return {
        f"{sample.name}{{{','.join(f'{key}={value}' for key, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.mark.parametrize("interval", [1.0, 2.5, 5.0, 7.0, 15.0, 45.0])
async def test_seconds_and_dollars_come_out_as_the_arithmetic_says(records: tuple[Record, ...], interval: float):
    beats, page = await play(records, interval)
    seconds = expected_seconds(beats)
    spent = {
        category: page[f"llmcost_spend_usd_total{{category=compute_{category},engine=chat,model=tiny-llama,tier=}}"]
        for category in seconds
    }
    for category, length in seconds.items():
        assert spent[category] == pytest.approx(float(length * Fraction(USD_PER_HOUR) / 3600), abs=2e-9), category
    assert sum(seconds.values()) > 500 - 3 * interval  # the oracle has charged the whole recording
    assert interval > 15 or all(length > 0 for length in seconds.values())


@pytest.mark.parametrize("interval", [1.0, 2.5, 5.0])
async def test_tokens_of_both_lives_of_the_engine_are_counted_once(records: tuple[Record, ...], interval: float):
    _, page = await play(records, interval)
    labels = "{engine=chat,model=tiny-llama,tier=}"
    assert page[f"llmcost_prompt_tokens_total{labels}"] == FIRST_LIFE["prompt"] + SECOND_LIFE["prompt"]
    assert page[f"llmcost_output_tokens_total{labels}"] == FIRST_LIFE["output"] + SECOND_LIFE["output"]


async def test_a_day_in_miniature_at_the_usual_beat(records: tuple[Record, ...]):
    """A five-second beat, written out: 30 s not there, 40 s gone, of which four beats are settled late."""
    _, page = await play(records, 5.0)
    spent = {
        category: page[f"llmcost_spend_usd_total{{category=compute_{category},engine=chat,model=tiny-llama,tier=}}"]
        for category in ("busy", "idle", "loading", "down")
    }
    per_second = 0.80 / 3600
    assert spent["down"] == pytest.approx(20 * per_second, abs=2e-9)
    assert spent["loading"] == pytest.approx((30 + 20) * per_second, abs=2e-9)
    assert sum(spent.values()) == pytest.approx(505 * per_second, abs=4e-9)
    assert page["llmcost_cold_starts_total{engine=chat}"] == 2
    assert page["llmcost_cold_start_seconds{engine=chat}"] == pytest.approx(1795465199.09 + 0.1 - KILLED, abs=0.01)


async def test_the_queue_is_seen_and_the_ttft_of_the_last_minutes(records: tuple[Record, ...]):
    until = tuple(record for record in records if record.at < 1795465075)
    _, page = await play(until, 5.0)
    assert page["llmcost_requests_waiting{engine=chat,model=tiny-llama}"] == 26
    assert page["llmcost_scaling_signal_ratio{engine=chat,signal=queue_depth}"] == pytest.approx(2.6)
    # The clients measured 4.2 s at the median and 6.0 s at the 95th percentile in this phase.
    assert 4.0 < page["llmcost_ttft_p95_seconds{engine=chat,window=1m}"] < 7.5
    assert (
        page["llmcost_scaling_signal{engine=chat,signal=ttft}"]
        == page["llmcost_ttft_p95_seconds{engine=chat,window=1m}"]
    )
