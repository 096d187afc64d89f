"""Settings for all tests, made before any of them imports torch."""

import os
import signal

# OpenMP threads that spin while they wait starve each other when tests share the cores with other work: on two busy
# cores a small training step took ten times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A runner in the background of a shell ignores Ctrl-C, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
