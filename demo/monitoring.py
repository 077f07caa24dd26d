"""Prometheus, Alertmanager and Grafana, each where it is installed, with everything that the repository ships."""

import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from demo.notifications import told_to
from demo.ports import HOST, Ports

REPOSITORY: Final = Path(__file__).parent.parent
HOW_TO_GET: Final = "apt-get install --no-install-recommends prometheus prometheus-alertmanager"
_GRAFANA_HOME: Final = Path("/usr/share/grafana")


class Program(NamedTuple):
    """What to run, and which address answers when it is ready."""

    name: str
    command: tuple[str, ...]
    address: str
    ready: str
    env: dict[str, str] | None = None


def found(folder: Path, ports: Ports) -> list[Program]:
    """Return the programs that are installed; their configs are written into the folder."""
    made = (prometheus(folder, ports), alertmanager(folder, ports), grafana(folder, ports))
    return [program for program in made if program is not None]


def prometheus(folder: Path, ports: Ports) -> Program | None:
    """Prepare Prometheus: it keeps its data in the folder."""
    path, config, address = shutil.which("prometheus"), folder / "prometheus.yml", f"{HOST}:{ports.prometheus}"
    text = (REPOSITORY / "demo/prometheus.yml").read_text(encoding="utf-8")
    config.write_text(ports.written(text).replace("../rules", f"{REPOSITORY}/rules"), encoding="utf-8")
    flags = (f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}")
    return Program("prometheus", (path, *flags), f"http://{address}/", "-/ready") if path else None


def alertmanager(folder: Path, ports: Ports) -> Program | None:
    """Prepare Alertmanager with the shipped routes; whoever is told, the demo hears it."""
    path = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    config, address = folder / "alertmanager.yml", f"{HOST}:{ports.alertmanager}"
    route = (REPOSITORY / "rules/alertmanager/example.yml").read_text(encoding="utf-8")
    config.write_text(told_to(f"http://{HOST}:{ports.notifications}", route), encoding="utf-8")
    flags = (
        f"--config.file={config}",
        f"--storage.path={folder}/alertmanager",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    )
    return Program("alertmanager", (path, *flags), f"http://{address}/", "-/ready") if path else None


def grafana(folder: Path, ports: Ports) -> Program | None:
    """Prepare Grafana: whoever comes may look at the shipped dashboards, and nothing is asked of the internet."""
    server, cli = shutil.which("grafana-server"), shutil.which("grafana")
    command = (server,) if server else (cli, "server") if cli else None
    if command is None:
        return None
    home = (f"--homepath={_GRAFANA_HOME}",) if _GRAFANA_HOME.is_dir() else ()
    settings = {
        "PATHS_PROVISIONING": f"{REPOSITORY}/grafana/provisioning",
        "PATHS_DATA": f"{folder}/grafana",
        "PATHS_LOGS": f"{folder}/grafana",
        "SERVER_HTTP_ADDR": HOST,
        "SERVER_HTTP_PORT": str(ports.grafana),
        "AUTH_ANONYMOUS_ENABLED": "true",  # with the role Viewer
        "ANALYTICS_REPORTING_ENABLED": "false",
        "ANALYTICS_CHECK_FOR_UPDATES": "false",
        "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "NEWS_NEWS_FEED_ENABLED": "false",
        "PLUGINS_PREINSTALL_DISABLED": "true",
    }
    env = {
        **os.environ,
        **{f"GF_{name}": value for name, value in settings.items()},
        "PROMETHEUS_URL": f"http://{HOST}:{ports.prometheus}",
        "DASHBOARDS_PATH": f"{REPOSITORY}/grafana/dashboards",
    }
    return Program("grafana", (*command, *home), f"http://{HOST}:{ports.grafana}/", "api/health", env)
