"""`manifests`: what Kubernetes, KEDA and the Prometheus operator are told, rendered from the config."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import yaml

import exporter
from exporter.cli.options import DURATION, URL, OneLine, fail, load_or_exit
from exporter.config.model import Config, Engine, Role
from exporter.core.autoscaling import Fleet, Trigger, cooldown_seconds, scale_down_seconds, triggers

Manifest = dict[str, Any]

NAME: Final = "llm-cost"
_CONFIG: Final = "llm-cost-config"
_PORT: Final = 9409
_PROMETHEUS: Final = "http://prometheus-operated.monitoring.svc:9090"
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL: Final = re.compile(r"([\w./-]+)=([\w.-]*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is rendered: the config, its file, and what only the operator knows."""

    config: Config
    config_text: str
    namespace: str | None
    labels: dict[str, str]
    prometheus_url: str
    requests_per_replica: int
    max_replicas: int
    cold_start_seconds: float
    budget: str | None
    wake_query: str | None
    image: str

    def metadata(self, name: str, **labels: str) -> Manifest:
        """Return the metadata of an object."""
        place = {"namespace": self.namespace} if self.namespace else {}
        return {"name": name, **place, "labels": {"app.kubernetes.io/part-of": "llm-cost-exporter", **labels}}

    @property
    def config_name(self) -> str:
        """Return the name of the ConfigMap: an engine with an exporter of its own has its own."""
        names = [engine.name for engine in self.config.engines]
        return f"{_CONFIG}-{names[0]}" if len(names) == 1 else _CONFIG

    def fleet(self, engine: Engine) -> Fleet:
        """Return the replicas of an engine."""
        return Fleet(
            engine=engine,
            selector=f'namespace="{self.namespace}"' if self.namespace else "",
            requests_per_replica=self.requests_per_replica,
            max_replicas=self.max_replicas,
            cold_start_seconds=self.cold_start_seconds,
            budget=self.budget,
            wake_query=self.wake_query,
        )


def shipped(name: str) -> Path:
    """Return a folder that comes with the program: inside an installed package, else in the repository."""
    package = Path(exporter.__file__).parent
    installed = package / "shipped" / name
    return installed if installed.exists() else package.parent / name


def scaled_objects(wanted: Wanted) -> Iterator[Manifest]:
    """Yield one ScaledObject an engine, whose Deployment has the engine's name."""
    for engine in wanted.config.engines:
        fleet = wanted.fleet(engine)
        yield {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {**wanted.metadata(engine.name), "annotations": _facts(fleet)},
            "spec": {
                "scaleTargetRef": {"name": engine.name},
                "minReplicaCount": fleet.min_replicas,
                "maxReplicaCount": fleet.max_replicas,
                "pollingInterval": 15,
                "cooldownPeriod": cooldown_seconds(fleet.cold_start_seconds),
                # Nobody knows how much waits: whoever is there stays.
                "fallback": {
                    "failureThreshold": 3,
                    "replicas": fleet.min_replicas,
                    "behavior": "currentReplicasIfHigher",
                },
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(fleet)}},
                "triggers": [_trigger(trigger, wanted.prometheus_url) for trigger in triggers(fleet)],
            },
        }


def _facts(fleet: Fleet) -> Manifest:
    """Return what `lint` would else assume."""
    return {
        "llm-cost/engine": fleet.engine.name,
        "llm-cost/workload": fleet.engine.workload.value,
        "llm-cost/cold-start": f"{fleet.cold_start_seconds:g}s",
    }


def _behavior(fleet: Fleet) -> Manifest:
    return {
        "scaleUp": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
        "scaleDown": {
            "stabilizationWindowSeconds": scale_down_seconds(fleet.cold_start_seconds),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
        },
    }


def _trigger(trigger: Trigger, prometheus_url: str) -> Manifest:
    return {
        "type": "prometheus",
        "name": trigger.name,
        "metricType": trigger.metric_type,
        "metadata": {
            "serverAddress": prometheus_url,
            "query": trigger.query,
            "threshold": trigger.threshold,
            "activationThreshold": trigger.activation_threshold,
            "ignoreNullValues": "false",  # nothing known is not nothing to do
        },
    }


def pod_monitors(wanted: Wanted) -> Iterator[Manifest]:
    """Yield what makes the Prometheus operator scrape every pod that has our port."""
    yield {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": wanted.metadata(NAME, **wanted.labels),
        "spec": {"selector": {}, "podMetricsEndpoints": [{"port": NAME, "interval": "15s"}]},
    }


def prometheus_rules(wanted: Wanted) -> Iterator[Manifest]:
    """Yield the alert rules, all topics in one object."""
    files = sorted(shipped("rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_bytes())["groups"]]
    yield {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": wanted.metadata(NAME, **wanted.labels),
        "spec": {"groups": groups},
    }


def dashboards(wanted: Wanted) -> Iterator[Manifest]:
    """Yield each dashboard as a ConfigMap for Grafana's sidecar: one of all is too big for `kubectl apply`."""
    for file in sorted((shipped("grafana") / "dashboards").glob("*.json")):
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": wanted.metadata(file.stem.replace("llmcost", "llm-cost-dashboard"), grafana_dashboard="1"),
            "data": {file.name: file.read_text(encoding="utf-8")},
        }


def configs(wanted: Wanted) -> Iterator[Manifest]:
    """Yield the config file, as the sidecar reads it."""
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": wanted.metadata(wanted.config_name),
        "data": {"config.yml": wanted.config_text},
    }


def sidecar_patches(wanted: Wanted) -> Iterator[Manifest]:
    """Yield what is merged into the engine's Deployment: the exporter beside the engine."""
    pod = {"containers": [_container(wanted.image)], "volumes": _volumes(wanted)}
    (engine,) = wanted.config.engines
    yield {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": engine.name, **({"namespace": wanted.namespace} if wanted.namespace else {})},
        "spec": {"template": {"spec": pod}},
    }


def _container(image: str) -> Manifest:
    """Return the sidecar. It has no readiness probe: the engine must get its requests also while we do badly."""
    return {
        "name": "llm-cost-exporter",
        "image": image,
        "args": [
            "serve", "--config.file=/etc/llm-cost/config.yml", "--storage.path=/var/lib/llm-cost", "--on-fatal=degrade",
        ],
        "ports": [{"name": NAME, "containerPort": _PORT}],
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in (
                ("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace"), ("NODE_IP", "status.hostIP"),
            )
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "192Mi"}},
        "livenessProbe": {"httpGet": {"path": "/-/healthy", "port": NAME}, "periodSeconds": 30, "failureThreshold": 3},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": _CONFIG, "mountPath": "/etc/llm-cost", "readOnly": True},
            {"name": "llm-cost-ledger", "mountPath": "/var/lib/llm-cost"},
        ],
    }  # fmt: skip


def _volumes(wanted: Wanted) -> list[Manifest]:
    return [
        {"name": _CONFIG, "configMap": {"name": wanted.config_name}},
        {"name": "llm-cost-ledger", "emptyDir": {"sizeLimit": "256Mi"}},
    ]


KINDS: Final[dict[str, Callable[[Wanted], Iterator[Manifest]]]] = {
    "scaledobject": scaled_objects,
    "podmonitor": pod_monitors,
    "prometheusrule": prometheus_rules,
    "dashboards": dashboards,
    "config": configs,
    "sidecar-patch": sidecar_patches,
}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are read."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's signature
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _labels(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {value: _LABEL.fullmatch(value) for value in values}
    for value, match in found.items():
        if match is None:
            raise click.BadParameter(f"expected NAME=VALUE, found {value!r}")
    return {match[1]: match[2] for match in found.values() if match is not None}


def _namespace(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _DNS_LABEL.fullmatch(value):
        raise click.BadParameter(f"expected a name of a-z, 0-9 and -, found {value!r}")
    return value


@click.command(cls=OneLine)
@click.argument("kinds", nargs=-1, type=click.Choice(tuple(KINDS)))
@click.option("--config.file", "config_file", type=click.Path(path_type=Path), required=True)
@click.option("--namespace", callback=_namespace, help="Where the engines run.")
@click.option("--label", "labels", multiple=True, callback=_labels, help="What the Prometheus operator selects by.")
@click.option(
    "--prometheus.url",
    "prometheus_url",
    type=URL,
    default=_PROMETHEUS,
    show_default=True,
    help="As KEDA reaches it, from its own namespace.",
)
@click.option(
    "--requests-per-replica",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests at once that a replica serves well; vLLM takes up to --max-num-seqs.",
)
@click.option(
    "--max-replicas", type=click.IntRange(1), default=4, show_default=True, help="The dearest that it may get."
)
@click.option(
    "--cold-start", "cold_start", type=DURATION, help="Process start to first answer.  [default: alerts.cold_start]"
)
@click.option("--cap-by-budget", "budget", help="Ask for no more replicas than this budget's money keeps.")
@click.option(
    "--wake-query", help="PromQL for what waits in your queue or gateway: it wakes an engine that is at zero."
)
@click.option("--image", default=f"llm-cost-exporter:{exporter.__version__}", show_default=True)
def manifests(*, kinds: tuple[str, ...], config_file: Path, cold_start: float | None, **given: Any) -> None:
    """Render KINDS of manifests (all but those named: nothing) from a config; none named means all."""
    config = load_or_exit(config_file)
    wanted = Wanted(
        config=config,
        config_text=config_file.read_text(encoding="utf-8"),
        cold_start_seconds=cold_start or config.alerts.cold_start or 300.0,
        **given,
    )
    kinds = kinds or tuple(KINDS)
    if problems := list(_problems(wanted, kinds)):
        raise SystemExit(fail([f"{config_file}: {text}" for text in problems], 2))
    for line in _warnings(wanted, kinds):
        click.echo(f"{config_file}: warning: {line}", err=True)
    documents = [document for kind in kinds for document in KINDS[kind](wanted)]
    click.echo(yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True), nl=False)


def _warnings(wanted: Wanted, kinds: tuple[str, ...]) -> Iterator[str]:
    if "sidecar-patch" in kinds and wanted.config.role is Role.LONE:
        yield "role: lone beside every replica charges storage and holds budgets once a replica: role: sidecar does not"
    if "scaledobject" in kinds:
        yield from _doubts_of_scaling(wanted)


def _doubts_of_scaling(wanted: Wanted) -> Iterator[str]:
    for engine in wanted.config.engines:
        if wanted.fleet(engine).min_replicas == 0 and wanted.wake_query is None:
            yield f"nothing wakes {engine.name} from zero replicas: give --wake-query, or min_replicas: 1"
    if not wanted.namespace:
        yield "the queries add up engines of the same name in all namespaces: give --namespace"
    if wanted.budget is not None:
        yield (
            f"--cap-by-budget: the budget {wanted.budget!r} knows what one exporter charges: where several do, "
            "each of them leaves all of the money to its own replica"
        )


def _problems(wanted: Wanted, kinds: tuple[str, ...]) -> Iterator[str]:
    count = len(wanted.config.engines)
    if "sidecar-patch" in kinds and count != 1:
        yield (
            f"sidecar-patch: expected a config of one engine, found {count}: a pod charges all of them. "
            "Write one config an engine, or name the other kinds"
        )
    for number, engine in enumerate(wanted.config.engines):
        if not _DNS_LABEL.fullmatch(engine.name):
            yield (
                f"engines[{number}].name: expected a name that a Deployment can have, of a-z, 0-9 and -, "
                f"found {engine.name!r}"
            )
        if wanted.fleet(engine).min_replicas > wanted.max_replicas:
            yield f"engines[{number}]: needs {wanted.fleet(engine).min_replicas} replicas, above --max-replicas"
    names = [budget.name for budget in wanted.config.budgets]
    if wanted.budget is not None and wanted.budget not in names:
        known = ", ".join(names) or "the budgets, of which there are none"
        yield f"--cap-by-budget: expected one of {known}, found {wanted.budget!r}"
