"""What deploy/ has: rendered from the config, accepted by the schemas, and as harmless as we say."""

import json
import shutil
import subprocess
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
FOLDERS = ("base", "dra", "dcgm", "monitoring", "keda")
RENDERED = {
    "base/sidecar.yaml": ("sidecar-patch",),
    "monitoring/pod-monitor.yaml": ("podmonitor",),
    "monitoring/prometheus-rule.yaml": ("prometheusrule",),
    "keda/scaled-object.yaml": ("scaledobject", "--requests-per-replica=32", "--cold-start=10m"),
}


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
    """What `kubectl kustomize` makes of a folder; no package of Debian has a kubectl with kustomize 5."""
    kubectl = shutil.which("kubectl")
    version = (
        subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=False)
        if kubectl
        else None
    )
    if kubectl is None or version is None or "Kustomize Version: v5" not in version.stdout:
        pytest.skip(
            "KUSTOMIZE IS NOT TESTED: there is no kubectl with kustomize 5; each file is still checked by itself"
        )
    done = subprocess.run([kubectl, "kustomize", str(DEPLOY / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def pod_of(built: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = [document for document in built if document["kind"] == "Deployment"]
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [container for container in pod["containers"] if container["name"] == name]
    assert isinstance(found, dict)
    return found


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


def test_the_config_of_each_variant_is_fine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NODE_IP", "10.0.0.1")
    paths = [BASE_CONFIG, DEPLOY / "dcgm/config.yml", COMPOSE / "exporter.yml"]
    engines = [load(path).engines for path in paths]
    assert [[engine.name for engine in each] for each in engines] == [["chat-8b"]] * 3


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
def test_a_query_of_a_trigger_is_one_number_of_what_there_is(tmp_path: Path, budget: str | None):
    config = tmp_path / "config.yml"
    config.write_text(
        "engines: [{name: chat, url: 'http://a'}, {name: nightly, url: 'http://b', workload: nightly}]\n"
        "prices: {gpu: {usd_per_hour: 1}}\nbudgets: [{name: inference, monthly_usd: 5}]\n"
    )
    flags = [f"--cap-by-budget={budget}"] if budget else []
    found = documents(render("scaledobject", "--namespace=llm", "--wake-query=vector(0)", *flags, config=config))
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
        (("--max-replicas=0",), "0 is not in the range"),
    ],
)
def test_bad_flags_are_told(arguments: tuple[str, ...], said: str):
    done = CliRunner().invoke(main, ["manifests", f"--config.file={BASE_CONFIG}", *arguments])
    assert done.exit_code == 2
    assert said in done.output


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
