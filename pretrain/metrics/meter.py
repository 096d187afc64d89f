"""Measures training steps and logs them: to metrics.jsonl, and on request to TensorBoard and Weights & Biases."""

from __future__ import annotations

import html
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from configs.common.notices import warn
from configs.safety.hide_secrets import mask
from configs.schema.recipe import Recipe
from pretrain.engine.engine import StepResult
from pretrain.metrics.metrics_file import JsonLines


class Writer(Protocol):
    """Where measurements go."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of a step."""

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes generated texts of a step, title -> text, where there is a place for them."""

    def close(self) -> None:
        """Flushes and closes."""


class TensorBoard:
    """Writes event files to `tensorboard/`; steps that are made again replace the earlier ones."""

    def __init__(self, directory: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=start_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        for title, text in texts.items():
            self._writer.add_text(title, _indented(text), step)

    def close(self) -> None:
        self._writer.close()


def _indented(text: str) -> str:
    """The text as a block of Markdown that shows every character as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


class WeightsAndBiases:
    """A W&B run, continued under the same id when training resumes."""

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.train.wandb
        assert settings is not None
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ValueError(
                "train.wandb is set, but wandb is not installed; run `pip install wandb` or drop train.wandb"
            ) from error
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or recipe.name,
            id=f"{recipe.name}-{recipe.fingerprint()[:12]}",
            resume="allow",
            dir=str(recipe.run_directory),
            config=mask(recipe.model_dump(mode="json")),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        import wandb

        shown = {title: wandb.Html(f"<pre>{html.escape(text)}</pre>") for title, text in texts.items()}
        if shown:
            self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


class Tracker:
    """All the writers of a run; none on ranks other than the main one."""

    def __init__(self, recipe: Recipe, start_step: int, enabled: bool) -> None:
        self._writers: list[Writer] = []
        if not enabled:
            return
        self._writers.append(JsonLines(recipe.run_directory, start_step))
        if recipe.train.tensorboard:
            self._writers.append(TensorBoard(recipe.run_directory / "tensorboard", start_step))
        if recipe.train.wandb is not None:
            self._writers.append(WeightsAndBiases(recipe))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Writes the values measured after `step` updates."""
        for writer in self._writers:
            writer.log(step, values)

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, title -> text, that the weights after `step` updates generated."""
        for writer in self._writers:
            writer.show(step, texts)

    def close(self) -> None:
        """Flushes and closes all writers."""
        for writer in self._writers:
            writer.close()


class Meter:
    """Turns steps into measurements.

    `code_nats`: the sum of each step's loss *before* its update, as long as no window was seen before. By prequential
    coding (Dawid 1984; Rissanen 1984) a model trained like this compresses the text so far to that many nats.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops: float,
        state: dict[str, Any],
        measure_peak: Callable[[], float] | None = None,
        codes_text: bool = True,
    ) -> None:
        """`peak_flops` of all devices together; `state` from a checkpoint continues its sums.

        `codes_text`: the loss is in nats of text, so that their sum is a code length.
        `measure_peak` is asked for the peak again when training is faster than that; None where nobody reads the rates.
        """
        self._flops_per_token, self._peak, self._measure_peak = flops_per_token, peak_flops, measure_peak
        self.state: dict[str, float] = {"targets": 0.0, "code_nats": 0.0, "code_bytes": 0.0, **state}
        self._since, self._targets, self._wait = time.monotonic(), 0.0, 0.0
        self._speed, self._once, self._codes_text = 0.0, dict[str, float](), codes_text
        self._measured_at: float | None = None  # targets seen when these were measured
        self._measured: dict[str, tuple[float, bool]] = {}  # curve -> value, and whether more is better

    def remark(self, values: dict[str, float]) -> None:
        """Adds values to the next measurement, once."""
        self._once.update(values)

    def add(self, result: StepResult, fresh: bool, data_wait: float) -> None:
        """Counts a step; `data_wait` is how many seconds it waited for its batch."""
        self._targets += result.targets
        self._wait += data_wait
        self.state["targets"] += result.targets
        if fresh and self._codes_text:
            self.state["code_nats"] += result.total
            self.state["code_bytes"] += result.target_bytes

    def measure(self, result: StepResult, learning_rate: float) -> dict[str, float]:
        """The step's own loss, and rates since the last call."""
        self._speed = self._targets / max(time.monotonic() - self._since, 1e-9)
        if self._speed * self._flops_per_token > self._peak:
            self._correct_peak()
        values = {
            "tokens": self.state["targets"],
            "train/loss": result.loss,
            "train/lr": learning_rate,
            "train/grad_norm": result.grad_norm,
            "train/tokens_per_s": self._speed,
            "train/mfu": self._speed * self._flops_per_token / self._peak,
            "train/peak_flops": self._peak,
            "train/memory_bytes": float(memory_bytes()),
            "train/data_wait_s": self._wait,
        }
        if self._codes_text:
            code_bits = self.state["code_nats"] / math.log(2)
            values["train/code_length_bits"] = code_bits
            values["train/code_bits_per_byte"] = code_bits / max(self.state["code_bytes"], 1.0)
        # JSON has neither NaN nor infinity.
        values |= {f"train/{name}": value for name, value in result.statistics.items() if math.isfinite(value)}
        values |= self._once
        self._since, self._targets, self._wait, self._once = time.monotonic(), 0.0, 0.0, {}
        return values

    def _correct_peak(self) -> None:
        """An MFU above 1 is a peak that was measured too low, beside other work; says so when it remains one."""
        if self._measure_peak is None:
            return
        self._peak = max(self._peak, self._measure_peak())
        if (mfu := self._speed * self._flops_per_token / self._peak) > 1:
            warn(
                f"an MFU of {mfu:.2f}: training is faster than the {self._peak:.3g} FLOP/s of matrix products "
                "here, measured twice; other work on the machine, or a wrong entry in pretrain/engine/devices.py. The "
                "tokens per second are right"
            )
            self._measure_peak = None

    def note_measured(self, values: Mapping[str, float], more_is_better: Callable[[str], bool | None]) -> None:
        """Keeps what was measured of the present weights, as far as its direction is known."""
        if self._measured_at != self.state["targets"]:
            self._measured_at, self._measured = self.state["targets"], {}
        directions = {name: more_is_better(name) for name in values}
        self._measured |= {name: (values[name], more) for name, more in directions.items() if more is not None}

    @property
    def measured(self) -> dict[str, tuple[float, bool]]:
        """Curve -> value, and whether more is better, of the present weights; empty if none since the last update."""
        return self._measured if self._measured_at == self.state["targets"] else {}

    @property
    def validation_loss(self) -> float | None:
        """The validation loss of the present weights; None when it was not measured since the last update."""
        return self.measured.get("val/loss", (None, False))[0]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside (validation, saving) does not count as training's."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def note(self, result: StepResult) -> str:
        """Beside the progress bar."""
        return f"loss {result.loss:.3f}  {self._speed:,.0f} tok/s" if self._speed else f"loss {result.loss:.3f}"


def memory_bytes() -> int:
    """The most memory used so far: of the GPU where there is one, else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
