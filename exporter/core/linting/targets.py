"""What an autoscaler scales: whether it has GPUs, who waits for it, and how long it takes to start."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NamedTuple

from exporter.config.model import Engine, Workload
from exporter.core.linting.documents import Document, Node
from exporter.core.scaling import min_replicas, min_replicas_of

WORKLOADS: Final = frozenset(("Deployment", "StatefulSet", "ReplicaSet", "LeaderWorkerSet", "Rollout"))
ASSUMED_COLD_START_SECONDS: Final = 300.0
_TEMPLATES: Final = (("template",), ("leaderWorkerTemplate", "workerTemplate"))
_GPU: Final = re.compile(r"(nvidia\.com/(gpu|mig-)|amd\.com/gpu|gpu\.intel\.com/|habana\.ai/gaudi)")
_ENGINE: Final = re.compile(
    r"vllm|sglang|text-generation-inference|nvcr\.io/nim/|tritonserver|tensorrt-?llm|llama[.-]?cpp\S*(cuda|rocm|vulkan)"
)
_NOT_ON_A_GPU: Final = re.compile(r"router|gateway|exporter|cpu|proxy")
_DURATION: Final = re.compile(r"(\d{1,6})(s|m|h)?", re.ASCII)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of one of this exporter's families."""

    type: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the files cannot say: the exporter's families and engines, and the cold start where it is given."""

    families: Mapping[str, Family] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    cold_start_seconds: float | None = None


class ColdStart(NamedTuple):
    """How long a start takes, where that is from, and whether somebody measured it."""

    seconds: float
    source: str
    is_known: bool


class Demand(NamedTuple):
    """The fewest replicas that a workload needs, why, and whether that is said or assumed."""

    replicas: int
    reason: str
    is_known: bool


class Target(NamedTuple):
    """What is scaled, as far as the files have it, and the object whose remarks come first."""

    name: str
    document: Document | None
    autoscaler: Document | None = None

    def remark(self, key: str) -> Node | None:
        """Return what an annotation or a label says, the autoscaler's before the workload's."""
        for document in (self.autoscaler, self.document):
            node = document.remark(key) if document is not None else None
            if node is not None:
                return node
        return None


def pod_of(document: Document) -> Node | None:
    """Return the pod's specification of a workload."""
    for path in _TEMPLATES:
        node = document.spec.at(*path, "spec")
        if node is not None:
            return node
    return None


def containers(document: Document) -> tuple[Node, ...]:
    """Return the containers of a workload that run beside each other."""
    pod = pod_of(document)
    if pod is None:
        return ()
    sidecars = (one for one in pod.items_at("initContainers") if one.text_at("restartPolicy") == "Always")
    return (*pod.items_at("containers"), *sidecars)


def gpu_containers(document: Document) -> tuple[Node, ...]:
    """Return the containers that ask for a GPU; where several do, or none does, those that look like an engine on one.

    A claim may be shared: by an exporter beside the engine, which loads no model.
    """
    everything, pod = containers(document), pod_of(document)
    asking = tuple(one for one in everything if _asks_for_gpu(one))
    if not asking and pod is not None and pod.text_at("runtimeClassName").startswith("nvidia"):
        asking = tuple(one for one in everything if not _NOT_ON_A_GPU.search(one.text_at("image").lower()))
    return tuple(one for one in asking or everything if _is_engine(one)) or asking


def _asks_for_gpu(container: Node) -> bool:
    if container.items_at("resources", "claims"):
        return True
    for form in ("limits", "requests"):
        node = container.at("resources", form)
        for name, amount in (node.fields if node is not None else {}).items():
            if _GPU.match(name) and amount.number != Decimal(0):
                return True
    return False


def _is_engine(container: Node) -> bool:
    image = container.text_at("image")
    if _NOT_ON_A_GPU.search(image.lower()):
        return False
    words = " ".join(one.text for key in ("command", "args") for one in container.items_at(key))
    started = re.search(r"vllm serve|vllm\.entrypoints|sglang\.launch_server|trtllm-serve", words)
    return started is not None or _ENGINE.search(image.lower()) is not None


def has_gpu(target: Target) -> bool | None:
    """Tell whether a target runs on GPUs; None where the files do not say."""
    if target.remark("llm-cost/engine") is not None or target.remark("llm-cost/workload") is not None:
        return True
    if target.document is None or pod_of(target.document) is None:
        return None
    return bool(gpu_containers(target.document))


def demand(target: Target, facts: Facts, documents: tuple[Document, ...]) -> Demand:
    """Return the fewest replicas that a target needs."""
    said = target.remark("llm-cost/workload")
    if said is not None and said.text in tuple(Workload):
        return Demand(min_replicas_of(Workload(said.text)), f"llm-cost/workload is {said.text}", is_known=True)
    named = target.remark("llm-cost/engine")
    engine = facts.engines.get(named.text if named is not None else target.name)
    if engine is not None:
        reason = f"the config's engine {engine.name} is {engine.workload}"
        return Demand(min_replicas(engine), reason, is_known=True)
    exposed = _exposed_by(target, documents)
    if exposed:
        return Demand(1, f"{exposed} exposes it, so somebody waits", is_known=True)
    return Demand(1, "nothing says what its workload is, so interactive is assumed", is_known=False)


def _exposed_by(target: Target, documents: tuple[Document, ...]) -> str:
    """Return the Ingress, the route or the open Service that leads to a target from outside."""
    if target.document is None:
        return ""
    services = [one for one in documents if one.kind == "Service" and _selects(one, target.document)]
    for service in services:
        if service.spec.text_at("type") in ("LoadBalancer", "NodePort"):
            return service.title
        for route in documents:
            if route.kind in ("Ingress", "HTTPRoute") and service.name in set(_backends(route.spec)):
                return route.title
    return ""


def _selects(service: Document, workload: Document) -> bool:
    chosen = service.spec.at("selector")
    labels = workload.spec.at("template", "metadata", "labels")
    if chosen is None or labels is None or not chosen.fields or not service.is_in_namespace_of(workload):
        return False
    return all(labels.text_at(key) == value.text for key, value in chosen.fields.items())


def _backends(node: Node) -> Iterator[str]:
    for key, child in node.fields.items():
        if key in ("service", "defaultBackend"):
            yield child.text_at("name")
        if key == "backendRefs":
            yield from (one.text_at("name") for one in child.items)
        yield from _backends(child)
    for child in node.items:
        yield from _backends(child)


def cold_start(target: Target, facts: Facts) -> ColdStart:
    """Return how long a start takes, from the best source that there is."""
    if facts.cold_start_seconds is not None:
        return ColdStart(facts.cold_start_seconds, "--cold-start", is_known=True)
    said = target.remark("llm-cost/cold-start")
    seconds = _seconds(said.text) if said is not None else None
    if seconds is not None:
        return ColdStart(seconds, "llm-cost/cold-start", is_known=True)
    allowed = [startup_seconds(one) for one in gpu_containers(target.document)] if target.document is not None else []
    longest = max((one for one in allowed if one is not None), default=None)
    if longest is not None:
        return ColdStart(longest, "what the startupProbe allows", is_known=False)
    return ColdStart(ASSUMED_COLD_START_SECONDS, "assumed", is_known=False)


def _seconds(text: str) -> float | None:
    match = _DURATION.fullmatch(text.strip())
    found = int(match[1]) * _UNITS[match[2] or ""] if match else 0
    return float(found) if found else None


def startup_seconds(container: Node) -> float | None:
    """Return how long a startup probe waits for a container."""
    return probe_seconds(container, "startupProbe")


def probe_seconds(container: Node, probe: str) -> float | None:
    """Return how long after its start a container is killed that does not answer a probe."""
    node = container.at(probe)
    if node is None:
        return None
    defaults = {"initialDelaySeconds": Decimal(0), "periodSeconds": Decimal(10), "failureThreshold": Decimal(3)}
    delay, period, failures = (_or(node.at(key), default) for key, default in defaults.items())
    return float(delay + period * failures)


def _or(node: Node | None, default: Decimal) -> Decimal:
    number = node.number if node is not None else None
    return default if number is None else number
