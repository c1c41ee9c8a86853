# Needs Python 3.11 to 3.13 and make; every target creates what it uses in .venv.
#
#   make demo        squeeze the service's memory and watch it cope
#   make serve       the service on the embedded model, in the foreground
#   make test        every test           make lint   every static check
#   make bench       measure              make gpu-check   what only a CUDA device can tell
#   make deb         a Debian package     make lock        newer packages for it, by their hashes
#
# ARGS="..." is handed to the command; PYTHON=... and TORCH=... choose versions. BENCHES="..." names
# some of what bench runs, which takes about an hour: make bench BENCHES=served ARGS=--keep

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint bench gpu-check deb lock tools clean

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$python && break; done)
TORCH  ?= 2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := $(VENV)/bench/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check "torch==$(TORCH)"
ARGS   ?=
BENCHES ?= decode contexts curve streams served switches policies replay modes mqtt

# Nothing here means to reach a model hub; a missing file must say so and not go looking for it.
demo serve test bench gpu-check: export HF_HUB_OFFLINE = 1

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	@$(BIN)/adaptive-kv demo $(ARGS)

serve: $(VENV)/.installed
	@exec $(BIN)/adaptive-kv serve $(ARGS)

test: $(VENV)/.installed-test tools
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin" $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy adaptive_kv policies tests $(wildcard tools/*.py benchmarks/*.py)
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-bench
	@for name in $(BENCHES); do \
		echo "make: benchmarks/$$name.py" >&2; \
		$(PEERS)/python benchmarks/$$name.py $(ARGS) || exit 1; \
	done
	@$(PEERS)/python benchmarks/performance.py

gpu-check: $(VENV)/.installed-test
	@$(BIN)/python benchmarks/gpu_check.py $(ARGS)
	@$(BIN)/python -m pytest -q -m gpu

deb: $(VENV)/.installed-test
	@$(BIN)/python tools/build_deb.py dist
	@! command -v lintian >/dev/null || lintian --fail-on error,warning dist/*.deb

lock: $(VENV)/.installed-test
	@$(BIN)/python tools/make_lock.py

clean:
	@rm -rf $(VENV) build dist demo-report.html

# Set-up talks on stderr: the last line that `make demo` writes on stdout is the demo's own.

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 to 3.13, or PYTHON=..." >&2; exit 1; }
	@echo "make: setting up $(VENV) with $(PYTHON) and torch $(TORCH), once" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >&2
	@touch $@

# First and by itself, so that no other requirement chooses its version.
$(VENV)/.torch-$(TORCH): $(VENV)/.python
	@$(PIP) >&2
	@touch $@

$(VENV)/.installed: $(VENV)/.torch-$(TORCH) pyproject.toml
	@$(PIP) --quiet -e '.[demo]' >&2
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch-$(TORCH) pyproject.toml
	@$(PIP) --quiet -e '.[demo,test]' >&2
	@touch $@ $(VENV)/.installed

# What we are measured against, in an environment upon the other one: transformers imports some of it
# wherever it finds it. hqq needs none of the kernels that it would build for a GPU.
$(VENV)/.installed-bench: $(VENV)/.installed-test
	@test -x $(PEERS)/python || $(BIN)/python -m venv $(VENV)/bench >&2
	@below=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	own=$$($(PEERS)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$below')" > "$$own/below.pth"
	@DISABLE_CUDA=1 $(PEERS)/python -m pip install --disable-pip-version-check --quiet \
		"torch==$(TORCH)" -e '.[bench]' >&2 && touch $@ \
		|| echo "make: not all of what we are measured against could be installed" >&2

# The tests talk to a real broker, look with a real browser, have Prometheus' own tool check what is
# for it, build a driver of their own and boot a systemd with what a box has. Without the right to
# install what these need, they say that it is absent.
tools:
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin"; wanted=; \
	command -v mosquitto >/dev/null || wanted="$$wanted mosquitto"; \
	command -v chromium >/dev/null || wanted="$$wanted chromium"; \
	command -v cc >/dev/null || command -v gcc >/dev/null || wanted="$$wanted gcc libc6-dev"; \
	command -v systemd-nspawn >/dev/null || wanted="$$wanted systemd systemd-container"; \
	command -v dbus-daemon >/dev/null || wanted="$$wanted dbus"; \
	/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || wanted="$$wanted python3-venv"; \
	test -n "$$wanted" || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "make: cannot install$$wanted from here; please do" >&2; exit 0; \
	fi; \
	echo "make: installing$$wanted" >&2; export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get -qq update && apt-get -qq install -y --no-install-recommends $$wanted; } \
		</dev/null >/dev/null || echo "make: could not install$$wanted" >&2
	@command -v promtool >/dev/null || test -x $(BIN)/promtool || \
		{ echo "make: getting promtool" >&2; tools/get_promtool.sh $(CURDIR)/$(BIN)/promtool; } \
		</dev/null >/dev/null 2>&1 || echo "make: could not get promtool" >&2
