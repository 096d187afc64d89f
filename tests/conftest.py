"""Settings for all tests, made before any of them imports torch."""

import os

# OpenMP threads that spin while they wait starve each other when tests share the cores with other work: on two busy
# cores a small training step took ten times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
