# Common tasks. The first call of a target creates .venv and installs what it needs: the packages of a run for the demo,
# the development packages as well for everything else. A second call installs nothing.
export PYTHON ?= python3
PY := .venv/bin/python
RUN := .venv/.installed
INSTALLED := .venv/.installed-dev

# Two threads on busy cores stall small models: each test process uses one. Our own modules are compiled once.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test test-all test-slow test-cpus test-web test-deepeval browser soak
.PHONY: check lint type imports format bench docs install clean

demo: $(RUN)  ## a small model learns to turn tickets into JSON
	HF_HUB_OFFLINE=1 $(PY) -m sft.train experiment=demo

test: $(INSTALLED)  ## the fast tests, offline
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist loadfile -m "not slow and not browser"

test-all: $(INSTALLED)  ## the slow ones too
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist loadfile -m "not browser"

test-cpus: $(INSTALLED)  ## the numeric tests under restricted instruction sets, with one thread and with two
	$(PY) .ci/test-cpus

test-slow: $(INSTALLED)  ## only the slow ones; TESTS=PATH for some of them
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist loadfile -m "slow and not browser" $(TESTS)

test-web: $(INSTALLED) browser  ## the page of sft.webui in a real browser
	$(TEST_ENV) $(PY) -m pytest -m browser

# Debian's own packages; as another user than root, sudo asks
browser:  ## installs Chromium and its driver
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  SUDO=$$([ $$(id -u) = 0 ] || echo sudo); \
	  $$SUDO apt-get update && $$SUDO apt-get install -y --no-install-recommends chromium chromium-driver; }

# DeepEval requires an older click and rich than huggingface_hub and sft were tested with: it gets a separate environment
# on top of .venv.
test-deepeval: .venv-deepeval/.installed  ## judge.scorer=deepeval through DeepEval itself, on loopback
	$(TEST_ENV) .venv-deepeval/bin/python -m pytest -p no:deepeval tests/deepeval/check_deepeval.py

.venv-deepeval/.installed: $(INSTALLED)
	test -x .venv-deepeval/bin/python || $(PY) -m venv .venv-deepeval
	.venv-deepeval/bin/python -c "import sysconfig as s; open(s.get_path('purelib') + '/sft_tests.pth', 'w').write('import site; site.addsitedir(r\'' + '$(abspath .venv)/lib/python' + s.get_python_version() + '/site-packages\')\n')"
	.venv-deepeval/bin/python -m pip install -q deepeval==4.3.1
	touch $@

soak: $(INSTALLED)  ## 50 runs killed at random moments and resumed, each compared with an uninterrupted one
	$(PY) tests/soak/soak.py --rounds 50 --jobs 2

check: lint type imports  ## what CI checks beside the tests, and a commit with pre-commit

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: $(INSTALLED)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

type: $(INSTALLED)
	.venv/bin/mypy

imports: $(INSTALLED)  ## imports go one way, and tests lie where what they test lies
	$(TEST_ENV) $(PY) -m pytest tests/test_imports.py

bench: $(INSTALLED)  ## data preparation compared with TRL's
	$(PY) benchmarks/data.py

install: $(INSTALLED)

$(RUN): pyproject.toml constraints.txt .ci/install
	.ci/install
	touch $@

$(INSTALLED): pyproject.toml constraints.txt .ci/install
	.ci/install dev
	touch $(RUN) $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
