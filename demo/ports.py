"""Where everything in the demo listens, all on 127.0.0.1, and configs with these ports written into them."""

import contextlib
import re
import socket
from typing import NamedTuple

HOST = "127.0.0.1"


class Ports(NamedTuple):
    """The ports, as demo/*.yml have them."""

    exporter: int = 9409
    chat_small: int = 9410
    chat_large: int = 9411
    gpus: int = 9400
    prometheus: int = 9090
    alertmanager: int = 9093
    grafana: int = 3000
    notifications: int = 9412

    def written(self, text: str) -> str:
        """Return a config with these ports in place of the usual ones."""
        moved = {f"{HOST}:{usual}": f"{HOST}:{port}" for usual, port in zip(Ports(), self, strict=True)}
        return re.sub(rf"{re.escape(HOST)}:\d+", lambda match: moved.get(match[0], match[0]), text)

    def taken(self) -> list[str]:
        """Name the ports that somebody else listens on."""
        named = zip(self._fields, self, strict=True)
        return [f"{port} ({name.replace('_', '-')})" for name, port in named if not _is_free(port)]


def free_ports() -> Ports:
    """Find ports that nobody listens on."""
    with contextlib.ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in Ports._fields]
        for one in found:
            one.bind((HOST, 0))
        return Ports(*(one.getsockname()[1] for one in found))


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True
