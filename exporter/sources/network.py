"""The kernel's table of network interfaces, as a reading: how many bytes our own namespace has sent."""

import re
from pathlib import Path
from typing import Final

from exporter.config.prices import NetworkPrice
from exporter.core.network import NetworkReading
from exporter.sources.http import SourceError

_LOOPBACK: Final = "lo"
_HEADER: Final = re.compile(r"[^|]*\|([^|]*)\|([^|]*)")  # names of the columns: interface | received | sent
_LINE: Final = re.compile(r" *(\S+):([ \d]+)", re.ASCII)  # the last colon ends the name; old kernels allow more


class NetworkSource:
    """Reads the interfaces that the config names, or all but the loopback."""

    source = "network"
    target = "all"
    reasons = ("unreadable", "malformed", "no_interface")

    def __init__(self, price: NetworkPrice, path: Path = Path("/proc/net/dev")) -> None:
        self._interfaces = price.interfaces
        self._path = path

    async def read(self) -> NetworkReading:
        """Read the table once. The kernel answers from memory, sooner than a thread would start.

        Raises:
            SourceError: there is no reading this time, and why.
        """
        table = self._table()
        if missing := [name for name in self._interfaces if name not in table]:
            found = ", ".join(map(repr, table))
            raise SourceError("no_interface", f"expected an interface {missing[0]!r}, found {found or 'none'}")
        wanted = self._interfaces or tuple(name for name in table if name != _LOOPBACK)
        return NetworkReading(sent_bytes={name: table[name] for name in wanted})

    def _table(self) -> dict[str, int]:
        try:
            return sent_bytes(self._path.read_bytes())
        except OSError as error:
            raise SourceError("unreadable", f"cannot read {self._path}: {error.strerror}") from error
        except ValueError as error:
            raise SourceError("malformed", f"{self._path}: {error}") from error


def sent_bytes(table: bytes) -> dict[str, int]:
    """Return the bytes sent by each interface of a table as proc_pid_net(5) describes it.

    A name is any bytes but spaces and slashes: those that are no UTF-8 stay apart from one another.

    Raises:
        ValueError: a line is not as expected; the message has its number and what stands there.
    """
    lines = table.decode("utf-8", "surrogateescape").split("\n")
    width, place = _columns(lines[1] if len(lines) > 1 else "")
    return dict(_interface(number, line, width, place) for number, line in enumerate(lines[2:], start=3) if line)


def _columns(header: str) -> tuple[int, int]:
    """Return how many numbers a line has, and which of them is the bytes sent."""
    match = _HEADER.fullmatch(header)
    received, sent = map(str.split, match.groups() if match else ("", ""))
    if "bytes" not in sent:
        raise ValueError(f"line 2: expected the names of the columns, found {header!r}")
    return len(received) + len(sent), len(received) + sent.index("bytes")


def _interface(number: int, line: str, width: int, place: int) -> tuple[str, int]:
    match = _LINE.fullmatch(line)
    values = match[2].split() if match else []
    if match is None or len(values) < width:
        raise ValueError(f"line {number}: expected a name and {width} numbers, found {line!r}")
    return match[1], int(values[place])
