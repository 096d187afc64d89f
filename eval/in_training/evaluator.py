"""Scores parts of a recipe's evaluation every n steps of training: on training's ranks, with its weights of now.

Training knows this module by its name alone, see `pretrain.metrics.evaluated`. A part that fails is said and counted,
and training goes on. All ranks do the same, part by part, and what ends a part ends it on all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from configs.common.exit_codes import explain
from configs.common.notices import note, warn
from configs.schema.evaluation import PerplexitySet
from configs.schema.recipe import Recipe
from configs.schema.validation import CURVE, chosen
from data_prep.decontamination.evaluation_sets import SetText
from data_prep.tokens.shards import DataManifest
from eval.aggregate import CORE, core_results, core_tasks
from eval.in_training.bounded import AskedToStop, BoundedReader, OutOfTime, bounded_recipe, bounded_texts
from eval.in_training.record import Record, Recorder
from eval.likelihood.perplexity_set import compressed_set_results
from eval.parts import Part
from eval.reading.bound import BoundReader
from eval.reading.opening import reader_of
from eval.reading.ranked import RankedReader
from eval.reading.reader import LocalReader
from eval.remarks import remarks
from eval.results import Failure, Result, Sample
from eval.scorer import Scorer
from eval.stage_facts import applicable, asks_base, role_of
from pretrain.engine.engine import Engine
from pretrain.metrics.evaluated import Evaluator, StepScores
from pretrain.model.transformer import Transformer
from pretrain.parallel.lockstep import Lockstep
from pretrain.phases import Phase, ReportPhase

# The same for each step, or of another model.
_LEFT_OUT = ("compression", "preference")
_SAMPLE_TITLES = {
    **dict.fromkeys(("prompt", "chat", "document"), "samples"),
    "translation": "translation",
    "summary": "summaries",
}


def make_evaluator(recipe: Recipe, data: DataManifest, engine: Engine, start_step: int) -> Evaluator:
    """Makes the evaluator of a session; see `pretrain.metrics.evaluated.MakeEvaluator`."""
    return PartsEvaluator(recipe, data, engine, start_step)


@dataclass
class Progress:
    """What one evaluation has come to so far."""

    results: list[Result] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


class BoundedScorer(Scorer):
    """Scores the beginning of each perplexity set alone: `train.validation.max_tokens` of it, about."""

    bytes_per_token = 4.0

    def _texts_of(self, item: PerplexitySet) -> list[SetText]:
        if item.name not in self._texts:
            most = int(self.recipe.train.validation.max_tokens * self.bytes_per_token)
            self._texts[item.name] = bounded_texts(super()._texts_of(item), most)
        return self._texts[item.name]


class PartsEvaluator:
    """Scores what `train.validation.evaluation.parts` names; made once a session, on every rank."""

    def __init__(self, recipe: Recipe, data: DataManifest, engine: Engine, start_step: int) -> None:
        policy = recipe.train.validation.evaluation
        section = applicable(recipe.evaluation, role_of(recipe.train.objective), asks_base(recipe))
        self._recipe = bounded_recipe(recipe.model_copy(update={"evaluation": section}))
        self._patterns, self._seconds = list(policy.parts), policy.max_seconds
        self._averaged = chosen(CORE, self._patterns)
        if self._averaged:
            self._patterns += [f"benchmark/{task}" for task in core_tasks(section.core)]
        self._best_by = recipe.train.checkpoint.best_by if recipe.train.checkpoint.keep_best else ""
        self._vocab = data.vocab
        self._bytes_per_token = _bytes_per_token(data)
        self._scorer: BoundedScorer | None = None  # of the evaluation under way
        self._texts: dict[str, list[SetText]] = {}  # of all of them
        self._recorder = Recorder(recipe.run_directory, start_step) if engine.is_main else None
        self._first = ""  # the part to begin with
        self._said: dict[str, str] = {}  # remarks that hold
        self._failed = 0

    def __call__(self, engine: Engine, step: int, stop: Callable[[], int]) -> StepScores:
        """Scores the weights after `step` updates; see `pretrain.metrics.evaluated.Evaluator`."""
        began, ranks, lost = time.monotonic(), engine.ranks, list[Exception]()
        alive = _signs_of_life(engine)
        lockstep = Lockstep(ranks.rank, ranks.count, engine.gather, ranks.local_rank, alive, lost.append)
        found = Progress()
        with ExitStack() as open_weights:
            try:
                with lockstep.together("the weights"):
                    model = open_weights.enter_context(engine.reading(keep=False))
                    ranked = RankedReader(self._reader(engine, model), lockstep)
                    reader = BoundedReader(ranked, lockstep, self._seconds, stop, lambda: alive(Phase.EVALUATION))
                    parts = self._parts(reader, lockstep)
                self._score(parts, reader, lockstep, lost, found)
            except Exception as error:  # no failure may end training, but that of a rank, which there is no way round
                if lost:
                    raise
                found.failures.append(_failure("evaluation", error))
        found.results += self._baselines(found.results)
        self._scorer = None  # with its model, which at ZeRO stage 3 is a copy that training has no room for
        if self._averaged and not found.unfinished:
            averaged, failures = core_results(self._recipe.evaluation.core, found.results)
            found.results += averaged
            found.failures += failures
        return self._told(step, found, time.monotonic() - began)

    def close(self) -> None:
        """Flushes the record."""
        if self._recorder is not None:
            self._recorder.close()

    # ------------------------------------------------------------------------------------------------------------ parts
    def _score(
        self, parts: Sequence[Part], reader: BoundedReader, lockstep: Lockstep, lost: list[Exception], found: Progress
    ) -> None:
        """Scores part by part, until all are done or the time is over."""
        for number, part in enumerate(parts):
            try:
                with lockstep.together(part.name):
                    reader.check()
                    scored = part.work()
            except (OutOfTime, AskedToStop) as error:
                found.unfinished = [one.name for one in parts[number:]]
                if number == 0 and isinstance(error, OutOfTime):
                    # It had all the time there is. If it came first again, no other part would ever be scored.
                    found.unfinished.append(found.unfinished.pop(0))
                break
            except Exception as error:
                if lost:
                    raise
                found.failures.append(_failure(part.name, error))
                continue
            found.results += scored.results
            found.samples += scored.samples
        self._first = found.unfinished[0] if found.unfinished else ""

    def _reader(self, engine: Engine, model: Transformer) -> LocalReader | BoundReader:
        reader = reader_of(model, self._vocab, self._recipe)
        if engine.precision_of_autocast is not None:
            reader.precision = "bf16"  # of the products, whatever holds the weights
        return reader

    def _parts(self, reader: BoundedReader, lockstep: Lockstep) -> list[Part]:
        self._scorer = BoundedScorer(self._recipe, reader, self._vocab, None, {}, {}, False, lockstep, self._texts)
        self._scorer.bytes_per_token = self._bytes_per_token
        named = [part for part in self._scorer.parts() if part.name.partition("/")[0] not in _LEFT_OUT]
        parts = [part for part in named if chosen(part.name, self._patterns)]
        start = next((number for number, part in enumerate(parts) if part.name == self._first), 0)
        return parts[start:] + parts[:start]

    def _baselines(self, results: Sequence[Result]) -> list[Result]:
        """What gzip makes of the perplexity sets that were scored."""
        assert self._scorer is not None or not results
        scored = {one.named.subject for one in results if one.named.kind == "perplexity"}
        sets = [item for item in self._recipe.evaluation.perplexity if item.name in scored]
        texts = [(item, self._scorer._texts_of(item)) for item in sets] if self._scorer else []
        return [one for item, known in texts for one in compressed_set_results(item, known, ("gzip",))]

    # ------------------------------------------------------------------------------------------------------------- told
    def _told(self, step: int, found: Progress, seconds: float) -> StepScores:
        self._failed += len(found.failures)
        standing = remarks(found.results)
        if self._recorder is not None:
            self._say(step, found, standing)
            self._recorder.add(
                Record(step, seconds, found.results, found.samples, found.failures, found.unfinished, standing)
            )
        finite = [one for one in found.results if math.isfinite(one.value)]
        values = {f"{CURVE}{one.name}": one.value for one in finite}
        if self._best_by.startswith(CURVE) and self._best_by not in values and self._recorder is not None:
            warn(f"step {step:,}: {self._best_by}, which decides the best checkpoint, was not measured")
        return StepScores(
            {**values, f"{CURVE}seconds": seconds, f"{CURVE}failed_parts": float(len(found.failures))},
            {f"{CURVE}{one.name}": one.higher_is_better for one in finite if one.named.kind != "compression"},
            {f"{CURVE}samples/{number + 1} {one.title}": _shown(one) for number, one in enumerate(found.samples)},
        )

    def _say(self, step: int, found: Progress, standing: dict[str, str]) -> None:
        for failure in found.failures:
            warn(
                f"step {step:,}: {failure.name} could not be scored: {failure.reason}; training goes on "
                f"({self._failed} failed so far)"
            )
        if found.unfinished:
            warn(
                f"step {step:,}: not scored within train.validation.evaluation.max_seconds {self._seconds:g}: "
                f"{', '.join(found.unfinished)}; the next evaluation begins with the first of them"
            )
        for key, text in standing.items():
            if key not in self._said:
                note(f"step {step:,}: {text}")
        for key in self._said.keys() - standing.keys():
            if any(_concerns(key, one) for one in found.results):
                note(f"step {step:,}: this holds no more: {self._said.pop(key)}")
        self._said |= standing


def _signs_of_life(engine: Engine) -> ReportPhase:
    """Says that the rank evaluates, whatever the ranks' exchange calls it: each time its watch begins anew."""

    def report(phase: Phase, step: int | None = None) -> None:
        engine.report_phase(Phase.EVALUATION)

    return report


def _concerns(key: str, result: Result) -> bool:
    """Whether a score tells that the remark of this key does not hold any more."""
    return result.name == key or (key == "chance" and result.chance is not None)


def _failure(name: str, error: Exception) -> Failure:
    reason = explain(error)
    return Failure(name, reason or f"{type(error).__name__}: {error}", bug=reason is None)


def _shown(sample: Sample) -> str:
    return f"{sample.prompt}\n→ {sample.text}"


def _bytes_per_token(data: DataManifest) -> float:
    tokens = sum(source.tokens for source in data.train)
    return max(1.0, sum(source.bytes for source in data.train) / tokens) if tokens else 4.0
