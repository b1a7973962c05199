# Every target sets up what it needs, once. `make` alone lists the targets.
# pip reads its own settings (pip.conf, PIP_INDEX_URL, ...). Without a GPU, a smaller PyTorch will do:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make train

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# python3 if it is one of the supported versions, else whichever of those is there.
PYTHON ?= $(or $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
VENV := .venv
PY := $(VENV)/bin/python
CONSTRAINTS := constraints.txt
INSTALL := $(PY) -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)
DOCKER ?= docker
DEVICE ?= cpu
RUN ?= runs/latest
BUNDLE ?= $(or $(MLOPS_IMG_BUNDLE),bundles/latest)
PORT ?= 3000
ARGS ?=
PHOTOS ?=
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup
PHOTO_ARGS = $(if $(PHOTOS),--photos "$(PHOTOS)")

.PHONY: help setup data train evaluate export bundle serve bento container audit test coverage test-lowest lint types format benchmark docker-train clean distclean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'ARGS are passed on: make train ARGS="model=vit_tiny optim.lr=1e-3"'

setup: $(VENV)/.installed-dev ## make .venv with everything that training, tests and checks need

data: data/mnist5k ## write the default data set under data/

train: $(VENV)/.installed data/mnist5k ## train, evaluate and write the report (ARGS="model=vit_tiny")
	$(PY) -m mlops_img.train $(ARGS)

evaluate: $(VENV)/.installed data/mnist5k ## evaluate a run again (RUN=runs/X ARGS="split=val"; the latest)
	$(PY) -m mlops_img.evaluate run=$(RUN) $(ARGS)

export: $(VENV)/.installed data/mnist5k ## make a small, verified bundle of a run (RUN=runs/X ARGS="quantize=static")
	@# Without a run, the default one is trained first.
	@test -e $(RUN)/config.yaml || $(MAKE) train ARGS=
	$(PY) -m mlops_img.export run=$(RUN) $(ARGS)

# Without a bundle, the default one is made first; one that is given by name must exist.
bundle: $(VENV)/.installed-serve ## make a bundle of the default run, if there is none
	@test "$(BUNDLE)" != bundles/latest || test -e bundles/latest/manifest.json || $(MAKE) export ARGS=

serve: $(VENV)/.installed-serve bundle ## serve a bundle with its web page (BUNDLE=bundles/X PORT=3000; the newest)
	MLOPS_IMG_BUNDLE=$(BUNDLE) $(PY) -m bentoml serve --port $(PORT) $(ARGS)

bento: $(VENV)/.installed-serve bundle ## pack the service and a bundle for containers (BUNDLE=bundles/X; the newest)
	$(PY) -m mlops_img.store bundle=$(BUNDLE)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m bentoml build

container: ## make an image of the bento with Docker: docker run --rm -p 3000:3000 mlops_img:serving
	@command -v $(DOCKER) >/dev/null || { echo "error: $(DOCKER) was not found: install Docker," \
		"or name another builder: make container DOCKER=podman" >&2; exit 1; }
	@$(MAKE) bento
	$(PY) -m bentoml containerize mlops_img:latest --backend $(DOCKER) --image-tag mlops_img:serving

audit: $(VENV)/.installed data/mnist5k ## find problems in a data set (ARGS="data=folder data.root=...")
	$(PY) -m mlops_img.audit $(ARGS)

test: lint types ## lint, check types, run all tests (ARGS="-x")
	@# One thread per worker: workers that each start a thread per core slow one another down.
	OMP_NUM_THREADS=1 $(PY) $(PYTEST) $(ARGS)

coverage: ## make test, and measure the coverage, which must reach 90 %
	@$(MAKE) test ARGS="--cov $(ARGS)"

test-lowest: ## run all tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	@$(MAKE) setup VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(PYTEST) $(ARGS)

lint: $(VENV)/.installed-dev ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict on the package
	$(PY) -m mypy

format: $(VENV)/.installed-dev ## fix and format the code with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

benchmark: $(VENV)/.installed-bench $(VENV)/.installed-serve ## compare with other libraries (PHOTOS=folder ARGS="serving --rounds 3")
	$(PY) benchmarks/run_all.py $(PHOTO_ARGS) $(ARGS)

docker-train: ## build the training image (DEVICE=cpu or cuda)
	@command -v $(DOCKER) >/dev/null || { echo "error: $(DOCKER) was not found: install Docker," \
		"or name another builder: make docker-train DOCKER=podman" >&2; exit 1; }
	$(DOCKER) build --file Dockerfile.train --build-arg DEVICE=$(DEVICE) --tag mlops_img-train:$(DEVICE) .

clean: ## remove caches and build outputs (never data/ or runs/)
	rm -rf build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
	find mlops_img tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove the environments and the default data set (never runs/)
	rm -rf .venv .venv-lowest data/mnist5k

# What was installed, and when: the stamps are written after pip succeeded, and are older than
# pyproject.toml or the constraints when those changed. Training needs none of the development tools.
$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) --editable ".[$*]"
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "error: Python 3.11, 3.12 or 3.13 is needed, and" \
		"$(PYTHON) is not one: install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null || { rm -rf $(VENV); echo "error: $(PYTHON) -m venv failed:" \
		"on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

data/mnist5k: | $(VENV)/.installed
	$(PY) -m mlops_img.data.sources.mnist5k $@
