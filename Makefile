# Everything starts here. `make help` lists what there is.
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
ROLE ?= base
# Molecule and ansible-lint call Ansible's programs and pytest by name.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

lab: ## Make a throw-away host on this machine, provision it like production, let it speak
	@scripts/setup.sh lab
	@.venv/bin/mayafleet lab up

lab-down: ## Remove what `make lab` made
	@if [ -x .venv/bin/mayafleet ]; then .venv/bin/mayafleet lab down; else echo "Nothing to remove."; fi

test: ## Run the tests: lint, unit, service, and two lab hosts end to end
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory lint unit inference fleet e2e

lint: ## Check style and types
	.venv/bin/ruff check mayafleet roles tests inference molecule
	.venv/bin/ruff format --check mayafleet roles tests inference molecule
	.venv/bin/mypy
	.venv-inference/bin/python -m mypy --config-file inference/pyproject.toml inference/maya1_tts
	.venv/bin/yamllint --strict .
	.venv/bin/ansible-lint --offline --strict
	.venv/bin/shellcheck scripts/*.sh tests/vm/*.sh .ci/run

unit: ## Test the operator's command
	$(PYTHON) -m pytest tests/unit

inference: ## Test the speech service on its own
	.venv-inference/bin/python -m pytest tests/inference

fleet: ## Test inventories, alert rules and dashboards
	$(PYTHON) -m pytest tests/fleet

e2e: ## Provision two lab hosts and test what they serve
	$(PYTHON) -m pytest tests/e2e

role: ## Test one role with Molecule: make role ROLE=gateway
	@scripts/setup.sh test
	.venv/bin/molecule test --scenario-name $(ROLE)

roles: ## Test every role with Molecule (70 minutes on two cores), or some: make roles ROLES="tls redis"
	@scripts/setup.sh test
	@scripts/roles.sh $(ROLES)

test-vm: ## Test what needs a kernel of its own, in a QEMU guest: the driver's module, reboots, scanners (hours where KVM does not work)
	@scripts/setup.sh vm
	$(PYTHON) -m pytest -o faulthandler_timeout=14400 tests/vm

bench: ## Measure the lab and write the table of docs/benchmarks.md to the terminal
	@scripts/setup.sh test
	$(PYTHON) tests/bench/lab.py

BENCHES := tool overhead cache_hit batching peers overload scheduling

bench-inference: ## Measure the speech service: tables for docs/benchmarks.md; wants a quiet machine, 30 minutes
	@scripts/setup.sh test
	@failed=""; for name in $(BENCHES); do \
	    .venv-inference/bin/python tests/bench/inference/$$name.py $(QUICK) || failed="$$failed $$name"; \
	done; [ -z "$$failed" ] || { echo "Failed:$$failed" >&2; exit 1; }

proto: ## Renew the code that is generated from inference/maya1_tts/grpc/speech.proto
	cd inference && ../.venv-inference/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
	    maya1_tts/grpc/speech.proto

COMPILE := uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
CUDA := --python-platform x86_64-manylinux_2_28 --extra build

lock: ## Renew all lock files (needs uv)
	$(COMPILE) --universal pyproject.toml -o requirements.lock
	$(COMPILE) --universal --extra test pyproject.toml -o requirements-test.lock
	cd inference && $(COMPILE) --universal --extra cpu --extra build pyproject.toml -o requirements.lock
	cd inference && $(COMPILE) --universal --extra maya1-cpu --extra build -c requirements.lock \
	    --index https://download.pytorch.org/whl/cpu pyproject.toml -o requirements-maya1-cpu.lock
	cd inference && $(COMPILE) $(CUDA) --extra cuda-535 pyproject.toml -o requirements-cuda-535.lock
	cd inference && $(COMPILE) $(CUDA) --extra cuda-580 pyproject.toml -o requirements-cuda-580.lock
	cd inference && $(COMPILE) --universal -c requirements-maya1-cpu.lock requirements-test.in -o requirements-test.lock

.PHONY: help lab lab-down test lint unit inference fleet e2e role roles test-vm bench bench-inference proto lock
