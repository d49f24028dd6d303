# make serve: a virtual environment, the package in it, and a server with the default model.
# make test:  a virtual environment with the development tools, and every check.
# make native: the extension alone, rebuilt in place for development (needs nanobind, cmake, ninja).

PYTHON ?= python3
MODEL ?= smollm2-135m
SERVE_FLAGS ?=
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)

.PHONY: serve test check native clean

serve: .venv/.installed
	.venv/bin/pagoda serve $(MODEL) $(SERVE_FLAGS)

test: .venv-dev/.installed
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/python -m pytest

.venv/.installed: $(SOURCES)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet .
	touch $@

.venv-dev/.installed: $(SOURCES)
	$(PYTHON) -m venv .venv-dev
	.venv-dev/bin/python -m pip install --quiet --upgrade pip
	.venv-dev/bin/python -m pip install --quiet "scikit-build-core>=0.10" "nanobind>=2.4"
	.venv-dev/bin/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

native:
	cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$$(command -v $(PYTHON)) > /dev/null
	cmake --build build/dev
	rm -f src/pagoda/_native*.so  # a process that runs it keeps its own
	cp build/dev/_native*.so src/pagoda/_native.new
	mv -f src/pagoda/_native.new src/pagoda/$$(cd build/dev && echo _native*.so)  # whoever has the old one loaded keeps it

clean:
	rm -rf build .venv .venv-dev src/pagoda/_native*.so
