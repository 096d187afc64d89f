"""Looks up the windows that stand at the slots of a step."""

from __future__ import annotations

import numpy as np

from pretrain.batches.order import SlotWindows, WindowOrder

PLACED_SLOTS = 1024


class StepSlots:
    """The windows of each step, looked up for several steps at once: that costs little more."""

    def __init__(self, order: WindowOrder, per_step: int) -> None:
        """`per_step`: slots that a step reads."""
        self.order, self.per_step = order, per_step
        nothing = np.zeros(0, dtype=np.int64)
        self._placed = (-1, SlotWindows(nothing, nothing, nothing))

    def windows(self, step: int) -> SlotWindows:
        """Source, epoch and window of the slots [step * per_step, (step + 1) * per_step)."""
        steps = max(1, PLACED_SLOTS // self.per_step)
        stretch, place = divmod(step, steps)
        known, windows = self._placed
        if known != stretch:
            first, end = stretch * steps * self.per_step, self.order.end
            stop = first + steps * self.per_step
            windows = self.order.windows_at(np.arange(first, stop if end is None else min(stop, end), dtype=np.int64))
            self._placed = stretch, windows  # at once, so that threads may share this object
        rows = slice(place * self.per_step, (place + 1) * self.per_step)
        assert rows.stop <= len(windows.window), "a step beyond the planned end of the run"
        return SlotWindows(windows.source[rows], windows.epoch[rows], windows.window[rows])
