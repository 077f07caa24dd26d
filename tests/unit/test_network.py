"""Bytes sent: the kernel's table, its traps, and what they cost to the nano-dollar."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.books import Books
from exporter.config.prices import NetworkPrice
from exporter.core.money import Account, Category, Kind, nano_usd
from exporter.core.network import NetworkMeter, NetworkReading, charges
from exporter.sources.http import SourceError
from exporter.sources.network import NetworkSource, sent_bytes

HEADER = (
    "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast"
    "|bytes    packets errs drop fifo colls carrier compressed\n"
)
LOOPBACK = "    lo:    3193      29    0    0    0     0          0         0     3193      29    0 0 0 0 0 0\n"
ETH0 = "  eth0: 129202439  4649    0    0    0     0          0         0   251483    2337    0 0 0 0 0 0\n"
PRICE = NetworkPrice(usd_per_gb=Decimal("0.09"))


def numbers(sent: int) -> str:
    return f"1 2 3 4 5 6 7 8 {sent} 10 11 12 13 14 15 16"


async def read(path: Path, *interfaces: str) -> Mapping[str, int]:
    price = NetworkPrice(usd_per_gb=Decimal(1), interfaces=interfaces)
    return (await NetworkSource(price, path).read()).sent_bytes


# The table


@pytest.mark.parametrize(
    ("line", "name", "sent"),
    [
        (ETH0, "eth0", 251_483),
        (f"eth0:{numbers(7)}\n", "eth0", 7),
        ("  eth0:4294967296 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", "eth0", 9),
        (f"eth0:1: {numbers(8)}\n", "eth0:1", 8),
        (f"  a|b%.-: {numbers(9)}\n", "a|b%.-", 9),
        (f"wlp_ü\u2028\x1cx: {numbers(2)}\n", "wlp_ü\u2028\x1cx", 2),
        (f"  eth0: {numbers(18_446_744_073_709_551_615)}\n", "eth0", 2**64 - 1),
        (f"  eth0: {numbers(5)} 17\n", "eth0", 5),
        (f"  eth0: {numbers(6)}", "eth0", 6),
    ],
    ids=["usual", "glued", "no room", "colon", "marks", "odd spaces", "largest", "a column more", "no end of line"],
)
def test_an_interface_is_read(line: str, name: str, sent: int):
    assert sent_bytes((HEADER + line).encode()) == {name: sent}


def test_names_that_are_no_text_stay_apart():
    table = HEADER.encode() + b"a\xff: " + numbers(1).encode() + b"\na\xfe: " + numbers(2).encode() + b"\n"
    assert sorted(sent_bytes(table).values()) == [1, 2]


def test_the_header_says_where_the_bytes_sent_stand():
    assert sent_bytes(b"x|y|z\n face |bytes errs|errs bytes\n eth0: 1 2 3 4\n") == {"eth0": 4}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", "line 2: expected the names of the columns, found ''"),
        ("eth0: 1\n", "line 2: expected the names of the columns, found ''"),
        (LOOPBACK * 3, f"line 2: expected the names of the columns, found {LOOPBACK[:-1]!r}"),
        (HEADER.replace("|bytes", "|octets"), "line 2: expected the names of the columns, found "),
        (HEADER + LOOPBACK + "  eth0: 1 2 3\n", "line 4: expected a name and 16 numbers, found '  eth0: 1 2 3'"),
        (HEADER + f"  eth0 {numbers(1)}\n", "line 3: expected a name and 16 numbers, found "),
        (HEADER + f"  eth0: {numbers(-1)}\n", "line 3: expected a name and 16 numbers, found "),
        (HEADER + f"  : {numbers(1)}\n", "line 3: expected a name and 16 numbers, found "),
        (HEADER + f"  eth0: {numbers(1)[:-2]}x\n", "line 3: expected a name and 16 numbers, found "),
    ],
)
async def test_a_table_that_is_none_is_malformed_and_the_line_is_named(tmp_path: Path, table: str, problem: str):
    file = tmp_path / "dev"
    file.write_text(table, encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        await read(file)
    assert caught.value.reason == "malformed"
    assert caught.value.detail.startswith(f"{file}: {problem}")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_are_refused_and_nothing_else(junk: bytes):
    try:
        found = sent_bytes(HEADER.encode() + junk)
    except ValueError as error:
        assert "expected a name and 16 numbers" in str(error)  # noqa: PT017 - most inputs raise nothing to catch
    else:
        assert all(sent >= 0 for sent in found.values())


async def test_the_loopback_is_left_out_and_the_config_may_name_what_counts(tmp_path: Path):
    file = tmp_path / "dev"
    file.write_text(f"{HEADER}{LOOPBACK}{ETH0} bond0: {numbers(3)}\n", encoding="utf-8")
    assert await read(file) == {"eth0": 251_483, "bond0": 3}
    assert await read(file, "bond0") == {"bond0": 3}


async def test_a_pod_without_a_network_has_sent_nothing(tmp_path: Path):
    file = tmp_path / "dev"
    file.write_text(HEADER + LOOPBACK, encoding="utf-8")
    assert await read(file) == {}


async def test_an_interface_that_is_not_there_is_no_zero(tmp_path: Path):
    file = tmp_path / "dev"
    file.write_text(HEADER + LOOPBACK + ETH0, encoding="utf-8")
    with pytest.raises(SourceError, match=r"^expected an interface 'eth1', found 'lo', 'eth0'$") as caught:
        await read(file, "eth0", "eth1")
    assert caught.value.reason == "no_interface"


async def test_a_table_that_cannot_be_read_is_no_zero(tmp_path: Path):
    with pytest.raises(SourceError, match="No such file") as caught:
        await read(tmp_path / "dev")
    assert caught.value.reason == "unreadable"


async def test_the_table_of_this_machine_can_be_read():
    found = (await NetworkSource(PRICE).read()).sent_bytes
    assert "lo" not in found
    assert all(sent >= 0 for sent in found.values())


# What moved

History = list[dict[str, int]]


def moved(history: Iterable[Mapping[str, int]]) -> list[int]:
    meter = NetworkMeter()
    return [meter.advance(NetworkReading(sent_bytes=sent)) for sent in history]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([{"eth0": 500}, {"eth0": 500}, {"eth0": 700}], [0, 0, 200]),
        ([{"eth0": 500}, {"eth0": 510, "eth1": 40}, {"eth0": 510, "eth1": 45}], [0, 10, 5]),
        ([{"eth0": 500}, {"eth0": 30}, {"eth0": 31}], [0, 30, 1]),
        ([{"eth0": 500, "eth1": 9}, {"eth0": 400, "eth1": 109}], [0, 500]),
        ([{"eth0": 500, "tun0": 9}, {"eth0": 500}, {"eth0": 500, "tun0": 20}], [0, 0, 11]),
        ([{}, {"eth0": 500}, {}, {"eth0": 600}], [0, 0, 0, 100]),
        ([{"eth0": 10**13}, {"wan0": 10**13 + 5}, {"wan0": 10**13 + 7}], [0, 0, 2]),
    ],
    ids=[
        "grows",
        "appears",
        "falls",
        "falls beside another that grows",
        "vanishes and comes back",
        "none at first",
        "has another name",
    ],
)
def test_what_an_interface_sent_since_the_last_reading(history: History, expected: list[int]):
    assert moved(history) == expected


def test_what_is_sent_in_a_gap_that_is_not_charged_is_left_out():
    meter = NetworkMeter()
    meter.advance(NetworkReading(sent_bytes={"eth0": 100}))
    meter.rebaseline()
    assert meter.advance(NetworkReading(sent_bytes={"eth0": 900, "eth1": 50})) == 0
    assert meter.advance(NetworkReading(sent_bytes={"eth0": 910, "eth1": 50})) == 10


EVENTS = st.tuples(st.sampled_from(["sends", "begins anew", "goes"]), st.integers(0, 2**40))
STEPS = st.lists(st.dictionaries(st.sampled_from(["eth0", "eth1", "tun0"]), EVENTS), max_size=12)


@given(STEPS)
def test_interfaces_come_and_go_and_begin_anew_without_a_byte_lost_or_invented(steps: list[dict[str, tuple[str, int]]]):
    history: History = [{}]
    expected = [0]
    known: dict[str, int] = {}
    for step in steps:
        standing, sent = dict(history[-1]), 0
        for name, (event, amount) in step.items():
            standing.pop(name, None)
            if event == "goes":
                continue
            last = known.get(name)
            if event == "begins anew" and last:
                known[name] = amount % last  # lower than it was, or nobody could tell
                sent += known[name]
            else:
                known[name] = (last or 0) + amount
                sent += amount if last is not None else 0
            standing[name] = known[name]
        history.append(standing)
        expected.append(sent)
    assert moved(history) == expected


# What it costs

RATIOS = st.decimals(0, 1, places=3)
DOLLARS = st.decimals(0, 1000, places=4)


async def booked(price: NetworkPrice, parts: list[int], engines: int) -> Mapping[Kind, Mapping[tuple[str, ...], int]]:
    accounts = {
        f"e{number}": Account(Kind.SPEND, (Category.NETWORK, f"e{number}", "m", "")) for number in range(engines)
    }
    books = Books()
    for part in parts:
        await books.post(charges(price, part, 0, accounts))
    return books.totals()


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=20), RATIOS, DOLLARS, st.integers(1, 5))
async def test_any_split_of_the_same_bytes_costs_the_same_to_the_nano_dollar(
    parts: list[int], ratio: Decimal, usd: Decimal, engines: int
):
    price = NetworkPrice(usd_per_gb=usd, billable_ratio=ratio)
    totals = await booked(price, parts, engines)
    exact = sum(parts) * Fraction(ratio) * nano_usd(usd) / 10**9 / engines
    assert list(totals[Kind.SPEND].values()) == [int(exact)] * engines
    assert totals == await booked(price, [sum(parts)], engines)
    assert totals[Kind.SENT_BYTES] == {(): sum(parts)}


async def test_a_gigabyte_is_a_thousand_million_bytes_and_engines_share_it_equally():
    price = NetworkPrice(usd_per_gb=Decimal("0.09"), billable_ratio=Decimal("0.5"))
    totals = await booked(price, [10**9], 2)
    assert set(totals[Kind.SPEND].values()) == {22_500_000}


async def test_nothing_sent_opens_the_accounts():
    totals = await booked(PRICE, [0], 1)
    assert (totals[Kind.SPEND], totals[Kind.SENT_BYTES]) == ({("network", "e0", "m", ""): 0}, {(): 0})
