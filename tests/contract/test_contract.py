"""What the project promises in words is held against what it does."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import exporter
from docs.generate import TARGET, markdown
from exporter.metrics import PREFIX, ROWS, Fleet, Type

ROOT = Path(__file__).parent.parent.parent
BASE_UNITS = ("_seconds", "_usd", "_bytes", "_ratio", "_tokens", "_requests", "_celsius", "_watts", "_joules")


def test_the_metrics_page_is_what_the_table_says():
    assert TARGET.read_text(encoding="utf-8") == markdown(), "run `make docs`"


def test_names_are_those_of_prometheus():
    for row in ROWS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", row.name), row.name
        assert (row.type is Type.COUNTER) == row.name.endswith("_total"), row.name
        assert row.help.endswith("."), row.name
        assert not set(row.labels) & {"pod", "namespace", "instance", "job", "cluster", "le"}, row.name


def test_every_family_stands_once():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))


def test_counters_and_health_families_stay_and_gauges_do_not():
    stays = {row.name for row in ROWS if row.stays}
    assert {row.name for row in ROWS if row.type is not Type.GAUGE} <= stays
    gauges = {row.name for row in ROWS if row.type is Type.GAUGE and row.stays}
    assert all(name.startswith(("source_", "config_", "accounting_", "build_", "ledger_")) for name in gauges)


def test_ratios_and_percentiles_are_never_summed():
    for row in ROWS:
        if row.name.endswith("_ratio") or "p95" in row.name or "per_million" in row.name:
            assert row.fleet is Fleet.NONE, row.name


def test_every_metric_that_a_document_names_exists():
    known = {f"{PREFIX}{row.name}" for row in ROWS}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        named = set(re.findall(rf"{PREFIX}[a-z0-9_]+", path.read_text(encoding="utf-8")))
        assert named <= known, (path.name, named - known)


def test_the_version_stands_in_the_changelog():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert exporter.__version__ in headings


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"## Test\n\n```\n(.+?)\n```", (ROOT / "README.md").read_text())
    assert command
    ci = (ROOT / ".ci/run").read_text()
    assert command[1] in ci.splitlines()
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z-]+)`", (ROOT / "README.md").read_text())) <= targets


def test_links_of_the_documents_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert link.startswith("http") or (path.parent / link).exists(), (path.name, link)


def test_the_official_distribution_of_pynvml_is_used():
    names = {
        re.split(r"[<>=~! \[]", name)[0]
        for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    assert "nvidia-ml-py" in names
    assert "pynvml" not in names


def test_files_and_functions_stay_small():
    sizes = {path: len(path.read_text().splitlines()) for path in (ROOT / "exporter").rglob("*.py")}
    assert max(sizes.values()) < 400
    assert sum(sizes.values()) < 24_000


def test_no_file_of_the_project_names_a_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, listed):
        path = ROOT / os.fsdecode(name)
        if path.suffix in (".py", ".md", ".yml", ".toml", ".sh", "") and path.is_file() and path.name != "LICENSE":
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"/(home|root|Users)/[a-z]", text) or path == Path(__file__), path
