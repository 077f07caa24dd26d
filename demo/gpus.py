"""A synthetic dcgm-exporter: its GPUs do not exist; what they seem to do follows the load of the replayed engines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from aiohttp import web

from demo.engines import Look

FIRST_LINE: Final = "# SYNTHETIC: no such GPUs exist. The values follow the load of the demo's replayed engines."
ENGINES: Final = ("chat-small", "chat-large", "chat-large")  # whose each GPU is
_TOTAL_MIB: Final = 40448
_USED_MIB: Final = 36400  # by an engine, from its start on: vLLM takes nine tenths at once
_EMPTY_MIB: Final = 450
_LIMIT_WATTS: Final = 400
_IDLE_WATTS: Final = 55
_COOLEST: Final = 34  # degrees Celsius
_SLOWDOWN: Final = 92
_WARMING_SECONDS: Final = 20
_COUNTERS: Final = ("ENERGY", "VIOLATION", "_NS", "ECC_", "REMAPPED_ROWS")


class Gpu:
    """One GPU that does not exist."""

    def __init__(self, index: int, engine: str) -> None:
        self.engine = engine
        self.labels = (
            f'gpu="{index}",UUID="GPU-5e17e71c-0000-4000-8000-{index:012}",pci_bus_id="00000000:{index + 1:02X}:00.0",'
            f'device="nvidia{index}",modelName="A100-SXM4-40GB (synthetic)",hostname="demo",'
            'DCGM_FI_DRIVER_VERSION="580.95.05"'
        )
        self._look: Look | None = None
        self._celsius, self._joules, self._capped_seconds = float(_COOLEST), 0.0, 0.0

    @property
    def busy(self) -> float:
        """0 to 1: one request already keeps some kernel running most of the time."""
        load = self._look.load if self._look else 0.0
        return 0.55 + 0.43 * load if load else 0.0

    @property
    def watts(self) -> float:
        """What it would draw."""
        return _IDLE_WATTS + (_LIMIT_WATTS - _IDLE_WATTS) * self.busy

    def follow(self, look: Look | None, seconds: float) -> None:
        """Go on for some seconds beside an engine that looks like this; None: it does not answer."""
        self._look = look
        self._joules += self.watts * seconds
        self._capped_seconds += seconds * max(self.busy - 0.9, 0)
        warmest = _COOLEST + 46 * self.busy
        self._celsius += (warmest - self._celsius) * min(seconds / _WARMING_SECONDS, 1)

    def fields(self) -> Mapping[str, float]:
        """Return all values, by the name of their field without its prefix DCGM_FI_."""
        return {**self._gauges(), **self._profile(), **self._counters()}

    def _gauges(self) -> Mapping[str, float]:
        used = _USED_MIB if self._look else _EMPTY_MIB
        return {
            "DEV_SM_CLOCK": 1410 if self.busy else 210,
            "DEV_MEM_CLOCK": 1215,
            "DEV_MAX_SM_CLOCK": 1410,
            "DEV_MAX_MEM_CLOCK": 1215,
            "DEV_CLOCKS_EVENT_REASONS": (4 if self.busy > 0.9 else 0) if self.busy else 1,  # power cap, idle
            "DEV_MEMORY_TEMP": round(self._celsius + 8),
            "DEV_GPU_TEMP": round(self._celsius),
            "DEV_GPU_TEMP_LIMIT": _SLOWDOWN - round(self._celsius),
            "DEV_POWER_USAGE": self.watts,
            "DEV_ENFORCED_POWER_LIMIT": _LIMIT_WATTS,
            "DEV_GPU_UTIL": round(100 * self.busy),
            "DEV_MEM_COPY_UTIL": round(60 * self.busy),
            "DEV_FB_USED": used,
            "DEV_FB_FREE": _TOTAL_MIB - used,
            "DEV_FB_RESERVED": 512,
            "DEV_ROW_REMAP_FAILURE": 0,
            "DEV_ROW_REMAP_PENDING": 0,
            "DEV_GET_GPU_RECOVERY_ACTION": 0,
        }

    def _profile(self) -> Mapping[str, float]:
        cache = self._look.kv_cache_ratio if self._look else 0.0
        links = self.busy if ENGINES.count(self.engine) > 1 else 0.0
        return {
            "PROF_GR_ENGINE_ACTIVE": self.busy,
            "PROF_SM_ACTIVE": 0.85 * self.busy,
            "PROF_SM_OCCUPANCY": 0.35 * self.busy,
            "PROF_PIPE_TENSOR_ACTIVE": 0.3 * self.busy,
            "PROF_DRAM_ACTIVE": min(0.6 * self.busy + 0.4 * cache, 1.0),
            "PROF_PCIE_TX_BYTES": round(2e8 * self.busy),
            "PROF_PCIE_RX_BYTES": round(5e8 * self.busy),
            "PROF_NVLINK_TX_BYTES": round(3e10 * links),
            "PROF_NVLINK_RX_BYTES": round(3e10 * links),
        }

    def _counters(self) -> Mapping[str, float]:
        return {
            "DEV_TOTAL_ENERGY_CONSUMPTION": round(1e3 * self._joules),  # mJ
            "DEV_POWER_VIOLATION": round(1e9 * self._capped_seconds),  # ns
            "DEV_THERMAL_VIOLATION": 0,
            "DEV_ECC_SBE_VOL_TOTAL": 0,
            "DEV_ECC_DBE_VOL_TOTAL": 0,
            "DEV_UNCORRECTABLE_REMAPPED_ROWS": 0,
            "DEV_CORRECTABLE_REMAPPED_ROWS": 0,
        }


class Node:
    """A machine with GPUs, and the page that a dcgm-exporter would write there."""

    def __init__(self) -> None:
        self.gpus = [Gpu(index, engine) for index, engine in enumerate(ENGINES)]

    def follow(self, looks: Mapping[str, Look | None], seconds: float) -> None:
        """Go on for some seconds, beside engines that look like this."""
        for gpu in self.gpus:
            gpu.follow(looks[gpu.engine], seconds)

    def page(self) -> str:
        """Write the page."""
        return "\n".join([FIRST_LINE, *_lines(self.gpus)]) + "\n"

    async def answer(self, _: web.Request) -> web.Response:
        """Serve the page."""
        return web.Response(text=self.page(), content_type="text/plain")


def _lines(gpus: Sequence[Gpu]) -> Iterator[str]:
    values = [(gpu.labels, gpu.fields()) for gpu in gpus]
    for field in values[0][1]:
        name = f"DCGM_FI_{field}"
        yield f"# HELP {name} Synthetic."
        yield f"# TYPE {name} {'counter' if any(part in field for part in _COUNTERS) else 'gauge'}"
        yield from (f"{name}{{{labels}}} {said[field]:.6f}" for labels, said in values)
