#!/usr/bin/env bash
# The GPU set in under eight minutes on one GPU, as one Markdown table; all options are those of benchmarks/gpu.py.
#   benchmarks/gpu.sh --markdown gpu.md [--nanogpt DIR] [--litgpt PYTHON] [--trainer PYTHON]
# PYTHON names the interpreter (default: that of the project's environment, else python3).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
exec timeout --kill-after=5 "${LIMIT:-480}" "$PYTHON" benchmarks/gpu.py "$@"
