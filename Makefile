# `make` alone says what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := common migrations agent controller cli lab
PACKAGES := moorage_common moorage_migrations moorage_agent moorage_controller moorage_cli moorage_lab
INSTALLED := $(VENV)/.installed
GENERATED := proto/moorage_common/rpc/v1/agent.proto

# PYTHON=python3.12 chooses the Python of the virtual environment.
export PYTHON
# PYTEST_ARGS="-k journal" passes options on to pytest.
PYTEST_ARGS ?=

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: install
install: $(INSTALLED) ## Put the six distributions and the developers' tools into .venv

$(INSTALLED): pyproject.toml constraints.txt $(DISTRIBUTIONS:%=%/pyproject.toml)
	@sh lab/system-packages.sh venv
	@echo "Installing into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || "$$(sh lab/find-python.sh)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--build-constraint constraints.txt \
		--group dev $(DISTRIBUTIONS:%=--editable ./%)
	@touch $@

.PHONY: run
run: ## Run a controller at 127.0.0.1:3000, an agent beside it, and a sample app
	@sh lab/system-packages.sh venv engine busybox
	@$(MAKE) --silent --no-print-directory install
	@exec $(BIN)/python -m moorage_lab.run

.PHONY: test
test: ## Check everything: lint, then all tests, on real Engines and processes
	@sh lab/system-packages.sh venv dockerd busybox binutils debootstrap sshd postgresql chromium
	@$(MAKE) --silent --no-print-directory install
	@$(MAKE) --silent --no-print-directory lint
	@PYTHONUNBUFFERED=1 exec $(BIN)/python -m pytest --ignore=tests/benchmarks -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: lint
lint: install ## Check style, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(PACKAGES:%=-p %)
	$(BIN)/mypy --explicit-package-bases tests packaging
	$(BIN)/lint-imports

.PHONY: proto
proto: install ## Generate the RPC code anew from proto/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=proto \
		--python_out=common --grpc_python_out=common --mypy_out=common --mypy_grpc_out=common $(GENERATED)

.PHONY: agent-bundle
agent-bundle: ## Make the agent's bundle for hosts without Python, dist/moorage-agent-VERSION-linux-x86_64.tar.gz
	@sh lab/system-packages.sh venv binutils
	@$(MAKE) --silent --no-print-directory install
	@$(BIN)/python packaging/bundle.py agent

.PHONY: bundles
bundles: agent-bundle ## Make the controller's bundle as well, dist/moorage-controller-VERSION-linux-x86_64.tar.gz
	@$(BIN)/python packaging/bundle.py controller

.PHONY: deb
deb: bundles ## Make Debian packages of both, dist/moorage-{agent,controller}_VERSION_amd64.deb
	@$(BIN)/python packaging/deb.py agent
	@$(BIN)/python packaging/deb.py controller

.PHONY: wheels
wheels: ## Make the wheels of all distributions that are installed somewhere, in dist/
	@sh lab/system-packages.sh venv
	@$(MAKE) --silent --no-print-directory install
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--build-constraint constraints.txt --wheel-dir dist $(patsubst %,./%,$(filter-out lab,$(DISTRIBUTIONS)))

.PHONY: release
release: deb wheels ## Make all that a release has, with checksums, in dist/
	@cd dist && rm -f SHA256SUMS && sha256sum -- *.deb *.whl *.tar.gz >SHA256SUMS && cat SHA256SUMS

.PHONY: bench
bench: ## Measure, and print the numbers (not part of `make test`)
	@sh lab/system-packages.sh venv dockerd busybox
	@$(MAKE) --silent --no-print-directory install
	@PYTHONUNBUFFERED=1 exec $(BIN)/python -m pytest tests/benchmarks -s $(PYTEST_ARGS)

.PHONY: settings
settings: install ## Write packaging/SETTINGS.md anew from the code
	@$(BIN)/python packaging/settings.py

.PHONY: hashes
hashes: install ## Write packaging/requirements.txt anew: the hashes of what goes into the bundles
	@$(BIN)/python packaging/hashes.py

.PHONY: clean
clean: ## Remove .venv and all caches (.run, with your data, stays)
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(DISTRIBUTIONS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
