"""NVML, the driver's own library: the only importer of pynvml. Calls that block, and errors of one kind.

Nothing here may be called on the event loop: a call waits for the driver, and beside a sick GPU for ever.
"""

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from exporter.core.gpu_readings import Driver

Handle = Any  # a pointer of ctypes: two of them to the same GPU are not equal

_LIBRARY: Final = "libnvidia-ml.so.1"
_FURTHER_PLACES: Final = ("/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/nvidia/driver/usr/lib/x86_64-linux-gnu")
_NEEDED: Final = ("nvmlInit", "nvmlDeviceGetTemperatureV", "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")

_VALUE_TYPES: Final = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}

# nvml.h, nvmlReturn_t
CODES: Final = {
    1: "uninitialized",
    2: "invalid_argument",
    3: "not_supported",
    4: "no_permission",
    6: "not_found",
    7: "insufficient_size",
    9: "driver_not_loaded",
    10: "timeout",
    12: "library_not_found",
    13: "function_not_found",
    14: "corrupted_inforom",
    15: "gpu_is_lost",
    16: "reset_required",
    17: "operating_system",
    18: "driver_mismatch",
    19: "in_use",
    20: "memory",
    21: "no_data",
    25: "argument_version_mismatch",
    26: "deprecated",
    27: "not_ready",
    28: "gpu_not_found",
    999: "unknown",
}
UNSUPPORTED: Final = frozenset({"not_supported", "function_not_found", "deprecated", "argument_version_mismatch"})
GPU_GONE: Final = frozenset({"gpu_is_lost", "reset_required", "gpu_not_found"})
DRIVER_GONE: Final = frozenset({"uninitialized", "driver_not_loaded", "driver_mismatch"})
# Only a new process, in a container a new container, can mend these.
FOR_GOOD: Final = frozenset({"driver_mismatch", "operating_system", "unknown"})

_IN_WORDS: Final = {
    "library_not_found": "the NVIDIA driver's library is not in this container or on this machine",
    "shadowed": "an old package named pynvml hides nvidia-ml-py; uninstall it",
    "driver_not_loaded": "the NVIDIA driver is not loaded",
    "driver_mismatch": "the driver was replaced under us; only a restart of this process can load its new library",
    "no_permission": "the devices may not be opened by this user",
    "operating_system": "the operating system refuses the devices (a cgroup, or a container that has lost them)",
    "gpu_is_lost": "the GPU has fallen off the bus or is otherwise lost",
    "reset_required": "the GPU must be reset before it can be used",
    "no_devices": "the driver shows no GPU here",
    "not_ours": "none of the GPUs that the driver shows is one that is asked for",
}


class NvmlError(Exception):
    """A call that gave nothing: its name, and the error's name (from a short list, a label)."""

    def __init__(self, call: str, name: str, detail: str = "") -> None:
        super().__init__(f"{call}: {in_words(name)}{f' ({detail})' if detail else ''}")
        self.call = call
        self.name = name


def in_words(name: str) -> str:
    """Say what an error means for somebody who runs this."""
    return _IN_WORDS.get(name, name.replace("_", " "))


def call(name: str, *arguments: Any) -> Any:
    """Call one function of pynvml.

    Raises:
        NvmlError: whatever went wrong.
    """
    return _called(name, lambda function: function(*arguments))


def text(name: str, *arguments: Any) -> str:
    """Call a function that answers in text, and read it whatever bytes it holds.

    Raises:
        NvmlError: whatever went wrong.
    """
    return raw(name, *arguments).decode("utf-8", "replace")


def raw(name: str, *arguments: Any) -> bytes:
    """Call a function that answers in text, and return the bytes that the driver gave.

    Raises:
        NvmlError: whatever went wrong.
    """
    # pynvml decodes strictly, around the function proper.
    found = _called(name, lambda function: getattr(function, "__wrapped__", function)(*arguments))
    return found if isinstance(found, bytes) else str(found).encode()


_under_way: Final[dict[str, str]] = {}  # by the name of a thread


def calls_under_way() -> dict[str, str]:
    """Return the calls that have not returned, by the name of the thread that made them: what hangs is among them."""
    return dict(_under_way)


def _called(name: str, run: Callable[[Any], Any]) -> Any:
    binding = _binding()
    thread = threading.current_thread().name
    _under_way[thread] = name
    try:
        return run(getattr(binding, name))
    except binding.NVMLError as error:
        raise NvmlError(name, CODES.get(error.value, "other"), "" if error.value in CODES else str(error)) from error
    except (binding.NVMLLibraryMismatchError, AttributeError) as error:
        raise NvmlError(name, "function_not_found") from error
    except (OSError, ValueError) as error:
        raise NvmlError(name, "other", type(error).__name__) from error
    finally:
        _under_way.pop(thread, None)


def fields(handle: Handle, identifiers: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Ask for fields (nvml.h, NVML_FI_DEV_*), all in one call; yield each one's number, result and value.

    Raises:
        NvmlError: whatever went wrong.
    """
    for value in call("nvmlDeviceGetFieldValues", handle, list(identifiers)):
        kind = _VALUE_TYPES.get(value.valueType, "ullVal")
        yield value.fieldId, value.nvmlReturn, 0 if value.nvmlReturn else int(getattr(value.value, kind))


def field_values(handle: Handle, identifiers: tuple[int, ...]) -> dict[int, int]:
    """Return the fields that this GPU has.

    Raises:
        NvmlError: whatever went wrong, also where only one field says that the GPU is gone.
    """
    found = {}
    for identifier, result, value in fields(handle, identifiers):
        name = CODES.get(result, "other")
        if name in GPU_GONE | DRIVER_GONE:
            raise NvmlError("nvmlDeviceGetFieldValues", name)
        if result == 0:
            found[identifier] = value
    return found


def gpm_metrics(before: Handle, after: Handle, identifiers: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """Ask for metrics (nvml.h, NVML_GPM_METRIC_*), means between two samples; return number, result and value of each.

    Raises:
        NvmlError: whatever went wrong.
    """
    request = _binding().c_nvmlGpmMetricsGet_t()
    request.version, request.numMetrics, request.sample1, request.sample2 = 1, len(identifiers), before, after
    for metric, identifier in zip(request.metrics, identifiers, strict=False):
        metric.metricId = identifier
    call("nvmlGpmMetricsGet", request)
    answered = request.metrics[: len(identifiers)]
    return [(metric.metricId, metric.nvmlReturn, float(metric.value)) for metric in answered]


@cache
def _binding() -> Any:
    """Import pynvml when it is first needed: it costs megabytes, and most of the machines that test us have no GPU."""
    return importlib.import_module("pynvml")


def open_library(path: str | None) -> None:
    """Load the driver's library and initialise it, which touches no GPU yet.

    Args:
        path: the library file; None looks where the dynamic linker and the usual drivers' folders have it.

    Raises:
        NvmlError: `library_not_found`, `shadowed`, or what the initialisation said.
    """
    _load(path)
    binding = _binding()
    if any(not hasattr(binding, name) for name in _NEEDED):
        raise NvmlError("import pynvml", "shadowed", str(binding.__file__))
    call("nvmlInit")


def _load(path: str | None) -> None:
    """Load the library before pynvml looks for it: by its SONAME it then finds ours, and we know why when not."""
    problems = []
    for place in places(path):
        try:
            ctypes.CDLL(place)
        except OSError as error:
            problems.append(str(error))
        else:
            return
    # A file that is there and cannot be loaded says more than one that is missing.
    raise NvmlError("dlopen", "library_not_found", min(problems, key=lambda problem: "No such file" in problem))


def places(path: str | None) -> list[str]:
    """Return where the library is looked for: by name alone in the folders of the dynamic linker, then by path."""
    return [path] if path else [_LIBRARY, *(str(Path(folder) / _LIBRARY) for folder in _FURTHER_PLACES)]


def close_library() -> None:
    """Let go of the driver; event sets and GPM samples must have been freed before."""
    call("nvmlShutdown")


def driver() -> Driver:
    """Return the versions that the driver tells."""
    return Driver(
        driver_version=_or_empty(text, "nvmlSystemGetDriverVersion"),
        nvml_version=_or_empty(text, "nvmlSystemGetNVMLVersion"),
        cuda_version=_cuda_version(),
    )


def _cuda_version() -> str:
    # Not the function of version 2: it needs libcuda, which a container with the capability "utility" lacks.
    found = _or_empty(call, "nvmlSystemGetCudaDriverVersion")
    return f"{int(found) // 1000}.{int(found) % 1000 // 10}" if found else ""


def _or_empty(ask: Any, name: str) -> Any:
    try:
        return ask(name)
    except NvmlError:
        return ""
