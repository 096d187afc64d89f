"""Scores an evaluation part by part. Each part is stored separately, and a failure does not affect the others.

Scores are stored in `scores/` of the run with the fingerprint of a part's inputs, and beside them the items that they
are made of (`eval/items/store.py`). A part with a matching fingerprint is not scored again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from configs.common.exit_codes import explain
from configs.common.files import fingerprint, read_json, write_json
from configs.common.notices import say
from configs.schema.recipe import Recipe
from eval.items.item import Item
from eval.items.store import DIRECTORY as DIRECTORY
from eval.items.store import facts_of, items_file, stem, write_items
from eval.reading.journal import Journal
from eval.results import Failure, Result, Sample, as_json, from_json
from pretrain.parallel.lockstep import ALONE, Lockstep
from pretrain.phases import Phase

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched
    from data_prep.tokens.vocab import Vocab
    from eval.reading.reader import Reader


@dataclass(frozen=True)
class Scored:
    """What scoring gives: scores, generated texts to show, and the items that the scores are made of."""

    results: Sequence[Result] = ()
    samples: Sequence[Sample] = ()
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Part:
    """One part of an evaluation.

    Attributes:
        name: prefix of its scores' names, such as `translation/wmt`.
        inputs: everything that affects its scores, as JSON.
        work: computes the scores.
    """

    name: str
    inputs: Any
    work: Callable[[], Scored]

    def file(self, directory: Path) -> Path:
        """Returns the file of its scores. The file name is safe for any part name."""
        return directory / f"{stem(self.name)}.json"


class PartMaker(Protocol):
    """What a kind of score builds its parts from; see `eval.scorer.Scorer`."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def vocab(self) -> Vocab: ...

    @property
    def touched(self) -> Touched | None: ...

    @property
    def sets(self) -> dict[str, Any]: ...

    @property
    def progress(self) -> bool: ...

    def part(self, name: str, inputs: dict[str, Any], work: Callable[..., Scored], *arguments: Any) -> Part:
        """Returns a part that calls `work` with the arguments; `inputs` are its own, beside those of every part."""
        ...


@dataclass
class Outcome:
    """Scores and failures of the parts, in their order.

    Attributes:
        items: name of a part -> fingerprint of its inputs, of those parts whose items are stored.
    """

    results: list[Result] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    items: dict[str, str] = field(default_factory=dict)

    def add(self, scored: Scored) -> None:
        """Adds scores. If two parts give the same score (a task alone and in a group), the first is used."""
        known = {result.name for result in self.results}
        self.results += [result for result in scored.results if result.name not in known]
        self.samples += scored.samples


def score_parts(
    parts: Iterable[Part],
    directory: Path,
    again: bool = False,
    ranks: Lockstep = ALONE,
    journal: Journal | None = None,
) -> Outcome:
    """Scores the parts that have no stored scores. A failure is printed, and the next part follows.

    Args:
        parts: the parts, in order.
        directory: directory of stored scores; created when needed.
        again: score parts with stored scores again.
        ranks: the ranks that score together. Each calls this with the same parts, and has the same outcome.
        journal: keeps answers of the part under way.
    """
    outcome = Outcome()
    for number, part in enumerate(parts, start=1):
        ranks.report_phase(Phase.WORKING, number)
        try:
            with ranks.together(part.name):
                outcome.add(_scored(part, directory, again, ranks, journal))
        except Exception as error:  # no failure of one part may prevent the others
            outcome.failures.append(_failure(part.name, error, ranks.is_main))
            continue
        if items_file(directory, part.name).is_file():
            outcome.items[part.name] = fingerprint(part.inputs)
    return outcome


def _scored(part: Part, directory: Path, again: bool, ranks: Lockstep, journal: Journal | None) -> Scored:
    # What rank 0 finds counts: another rank may see the file later.
    stored = ranks.of_main(lambda: None if again else _kept(part, directory), f"stored scores of {part.name}")
    if stored is not None:
        return stored
    name = part.file(directory).stem
    with nullcontext() if journal is None else journal.keeping(name, fingerprint(part.inputs), again):
        scored = part.work()
        if ranks.is_main:
            _keep(part, directory, scored)
    return scored


def _failure(name: str, error: Exception, shown: bool) -> Failure:
    reason = explain(error)
    failure = Failure(name, reason or f"{type(error).__name__}: {error}", bug=reason is None)
    if shown:
        if reason is None:
            traceback.print_exception(error)
        say(f"{name} failed: {failure.reason}")
    return failure


def _kept(part: Part, directory: Path) -> Scored | None:
    """Returns the stored scores of a part, whose items stay in their file; None where they must be made again."""
    own = fingerprint(part.inputs)
    try:
        content = read_json(part.file(directory))
        if content["fingerprint"] != own or not _items_kept(part, directory, own, content["items"]):
            return None
        results = [from_json(item) for item in content["results"]]
        return Scored(results, [Sample(**item) for item in content["samples"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing, damaged or of another version: score it again


def _items_kept(part: Part, directory: Path, own: str, count: int) -> bool:
    """Tells whether the items that the scores are made of are stored."""
    facts = facts_of(items_file(directory, part.name))
    return facts is None if count == 0 else facts is not None and (facts["fingerprint"], facts["items"]) == (own, count)


def _keep(part: Part, directory: Path, scored: Scored) -> None:
    """Stores items first: scores without their items would not be used."""
    own = fingerprint(part.inputs)
    write_items(directory, part.name, own, scored.items)
    content = {
        "results": [as_json(result) for result in scored.results],
        "samples": [asdict(sample) for sample in scored.samples],
        "items": len(scored.items),
    }
    write_json(part.file(directory), {"name": part.name, "fingerprint": own, **content})
