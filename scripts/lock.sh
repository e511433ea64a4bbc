#!/bin/sh
# Writes requirements.lock (what the service runs on), requirements-dev.lock (tests, checks, benchmarks) and
# requirements-load.lock (load tests), and requirements-bench.lock (benchmarks beside their peers).
#
# grpcio is held at 1.75.0: it does 1.5 times the unary calls and up to 1.4 times the stream messages of 1.85
# (grpc/grpc#43092); see docs/decisions.md. The library's own ranges in pyproject.toml stay open.
set -eu
PYTHON=${PYTHON:-python3}
GRPC=1.75.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
freeze() { "$work/venv/bin/python" -m pip freeze --exclude-editable --exclude kvshard; }
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "grpcio==$GRPC" "grpcio-health-checking==$GRPC" "grpcio-reflection==$GRPC" "grpcio-status==$GRPC" .
freeze > requirements.lock
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint requirements.lock ".[dev]"
freeze > requirements-dev.lock
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint requirements-dev.lock ".[load]"
freeze > requirements-load.lock
# From the tests' packages again, so that the load tests' own are not among them; what both need has one version.
rm -rf "$work/venv"
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint requirements-load.lock ".[bench]"
freeze > requirements-bench.lock
