# Each target does everything it needs, on a machine that has python3 (3.11 or newer) with venv, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# More options for a command: make serve ARGS="--port 9000", make test ARGS="tests/store -x".
ARGS ?=
# Of make serve: tiny is bundled, a path is yours. By default SmolLM2, which is fetched once (98 MB).
MODEL ?=
BENCHES ?= flat ingest recall repair telemetry
# Two threads are enough for small models, and two runs on one machine don't fight over its cores.
export OMP_NUM_THREADS ?= 2
# Tests start processes that import all of the server, which is to be compiled for the first of them alone.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help serve chat test test-slow test-clients test-ray test-page pictures lint format bench client docs clean

help:
	@echo "make serve      serve SmolLM2, fetched once; MODEL=tiny: the bundled model, MODEL=PATH: yours (ARGS: more options)"
	@echo "make chat       chat with a running server in the terminal"
	@echo "make test       all quick tests; make test-slow: the long ones"
	@echo "make test-clients  frameworks (langchain, litellm), which are installed, call a server"
	@echo "make test-ray   servers on Ray Serve, which is installed, through kills and moves"
	@echo "make test-page  the page in a real browser, which is installed if there is none; make pictures: docs/images"
	@echo "make lint       ruff and mypy; make format: let ruff rewrite"
	@echo "make bench      the benchmarks' figures"
	@echo "make client     write the synchronous client from the asynchronous one"
	@echo "make docs       bring the table of settings in docs/operations.md up to date"

PIP := $(BIN)/python -m pip install --disable-pip-version-check
# Behind a command of pip, whose --quiet would keep back which versions conflict.
TOLD := > $(VENV)/pip.log 2>&1 || { tail -n 60 $(VENV)/pip.log >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt
	@echo "installing the project and what it needs, PyTorch above all, into $(VENV): a few minutes ($(VENV)/pip.log tells more)"
	@$(PYTHON) -m venv $(VENV)
	@# This pip goes on with a download that broke, where the one that came with Python may begin anew.
	@$(PIP) 'pip>=25.1' $(TOLD)
	@$(PIP) -c constraints.txt -e '.[dev]' $(TOLD)
	@touch $@

serve: $(STAMP)
	@env -u OMP_NUM_THREADS $(BIN)/megacontext serve $(if $(MODEL),--model "$(MODEL)") $(ARGS)

chat: $(STAMP)
	@$(BIN)/megacontext chat $(ARGS)

# Two processes of one thread each: most tests wait for servers, files and clocks more than they compute. Files come in their order:
# by numbers of tests the longest test of all, which is alone in its file, would run last and by itself.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# Frameworks that bring much with them; make test runs the official clients.
CLIENTS := $(VENV)/.clients
$(CLIENTS): $(STAMP)
	@echo "installing LangChain and litellm"
	@$(PIP) -c constraints.txt -e '.[dev,clients]' $(TOLD)
	@touch $@

test-clients: $(CLIENTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' tests/server/test_langchain.py tests/server/test_calls_litellm.py \
	tests/server/test_embeddings.py $(ARGS)

# Chromium is the system's if there is one, else Debian's (for root), else the one that playwright fetches.
BROWSER := $(VENV)/.browser
$(BROWSER): $(STAMP)
	@echo "installing what drives a browser"
	@$(PIP) -c constraints.txt -e '.[dev,page]' $(TOLD)
	@command -v chromium || command -v google-chrome \
	|| { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y --no-install-recommends chromium; } \
	|| $(BIN)/python -m playwright install chromium
	@touch $@

# Only tests need it, so it is no part of the product.
AXE := $(VENV)/axe/axe.min.js
$(AXE): $(STAMP)
	@mkdir -p $(@D)
	cd $(@D) && npm pack --silent axe-core@4.14.1 && tar -xzf axe-core-4.14.1.tgz --strip-components=1 package/axe.min.js
	@touch $@

# Ray Serve, of which make test knows nothing.
RAY := $(VENV)/.ray
$(RAY): $(STAMP)
	@echo "installing Ray Serve"
	@$(PIP) -c constraints.txt -e '.[dev,ray]' $(TOLD)
	@touch $@

test-ray: $(RAY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' tests/server/test_on_ray.py $(ARGS)

test-page: $(BROWSER) $(AXE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/page -m 'not slow' $(ARGS)

pictures: $(BROWSER)
	$(BIN)/python -m bench.page_pictures $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m bench.$$name $(ARGS) || exit 1; done

client: $(STAMP)
	$(BIN)/python -m clients.sync_from_async

docs: $(STAMP)
	@$(BIN)/megacontext settings --into docs/operations.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
