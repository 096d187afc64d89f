"""The items of one part of an evaluation as a table, as they are stored: one row an item, one column a fact.

| column                             | type           | meaning                                                   |
|------------------------------------|----------------|-----------------------------------------------------------|
| id, hash, subject                  | string         | which item this is, see `eval.items.item.Item`            |
| asked, reference, answer           | string         | texts, shortened                                          |
| choices                            | list of string | options of a multiple-choice question                     |
| log_likelihoods                    | list of double | nats, of each choice or of the document                   |
| bytes, tokens                      | int64          | of what was scored                                        |
| seconds                            | double         | its share of the time of its batch                        |
| tags                               | list of string | subsets, such as clean and touched                        |
| numerator/METRIC, denominator/METRIC | double       | what it adds to a score; null where it has no such score  |
| statistics/METRIC                  | list of double | sufficient statistics of a score of the whole corpus      |
| units/METRIC                       | list of double | numerators and denominators of its stretches, in turn     |
| note/NAME                          | string         | what else is worth knowing                                |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.items.item import Item

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
NUMERATOR, DENOMINATOR, STATISTICS, UNITS, NOTE = "numerator/", "denominator/", "statistics/", "units/", "note/"


@dataclass(frozen=True)
class Units:
    """What one score is made of, (n,) each: the items, or the stretches of few documents.

    The score is `sum(numerators) / sum(denominators)`, perhaps converted (a perplexity has no units).

    Attributes:
        ids: unique in the set. A stretch has the id of its document, `#` and its number.
        hashes: 16 hexadecimal digits of what was asked.
        of_documents: true for stretches, which are not independent of one another as documents are.
    """

    ids: list[str]
    hashes: list[str]
    numerators: Floats
    denominators: Floats
    of_documents: bool = False


def to_table(items: Sequence[Item]) -> pa.Table:
    """Writes items as an Arrow table with the columns above."""
    import pyarrow as pa

    text, number, size = pa.string(), pa.float64(), pa.int64()
    plain: dict[str, Any] = {
        "id": text, "hash": text, "subject": text, "asked": text, "reference": text, "answer": text,
        "choices": pa.list_(text), "log_likelihoods": pa.list_(number), "bytes": size, "tokens": size,
        "seconds": number, "tags": pa.list_(text),
    }  # fmt: skip
    columns = {name: pa.array([getattr(item, name) for item in items], kind) for name, kind in plain.items()}
    for metric in _names(items, lambda item: item.measures):
        pairs = [item.measures.get(metric, (None, None)) for item in items]
        columns[NUMERATOR + metric] = pa.array([above for above, _ in pairs], number)
        columns[DENOMINATOR + metric] = pa.array([below for _, below in pairs], number)
    kinds: list[tuple[str, Callable[[Item], Any], Any]] = [
        (STATISTICS, lambda item: item.statistics, pa.list_(number)),
        (UNITS, lambda item: item.units, pa.list_(number)),
        (NOTE, lambda item: item.notes, text),
    ]
    for prefix, of, kind in kinds:
        for name in _names(items, of):
            columns[prefix + name] = pa.array([of(item).get(name) for item in items], kind)
    return pa.table(columns)


def _names(items: Sequence[Item], of: Callable[[Item], Any]) -> list[str]:
    """The keys of all items, in the order in which they first occur."""
    return list(dict.fromkeys(name for item in items for name in of(item)))


@dataclass(frozen=True)
class ItemTable:
    """The items of a part.

    Attributes:
        part: name of the part, such as `benchmark/piqa`.
        fingerprint: of the part's inputs: checkpoint, settings, set and code.
        table: the columns.
    """

    part: str
    fingerprint: str
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def subjects(self) -> list[str]:
        """The tasks or sets that it holds, in order."""
        return list(dict.fromkeys(self._subjects))

    def metrics(self, subject: str | None = None) -> list[str]:
        """Names the measures of a subject; None: of all."""
        return self._named(NUMERATOR, subject)

    def corpus_metrics(self, subject: str | None = None) -> list[str]:
        """Names the scores of the whole corpus that have sufficient statistics."""
        return self._named(STATISTICS, subject)

    def items(self) -> Iterator[Item]:
        """Yields all items, in order."""
        names = self.table.column_names
        plain = [name for name in names if "/" not in name]
        with_prefix = {
            prefix: [(name.removeprefix(prefix), name) for name in names if name.startswith(prefix)]
            for prefix in (NUMERATOR, STATISTICS, UNITS, NOTE)
        }
        for row in self.table.to_pylist():
            present = {
                prefix: [(short, row[name]) for short, name in known if row[name] is not None]
                for prefix, known in with_prefix.items()
            }
            own: dict[str, Any] = {
                name: tuple(value) if isinstance(value := row[name], list) else value for name in plain
            }
            yield Item(
                **own,
                measures={metric: (above, row[DENOMINATOR + metric]) for metric, above in present[NUMERATOR]},
                statistics={name: tuple(values) for name, values in present[STATISTICS]},
                units={name: tuple(values) for name, values in present[UNITS]},
                notes=dict(present[NOTE]),
            )

    def measure(self, metric: str, subject: str | None = None, tag: str | None = None) -> Units | None:
        """Returns what a score is made of, in the order of the items; None where it has no such measure.

        Args:
            metric: such as `acc`.
            subject: of these items alone.
            tag: of these items alone, such as `clean`.
        """
        if metric not in self.metrics():
            return None
        above, below = (self._numbers(prefix + metric) for prefix in (NUMERATOR, DENOMINATOR))
        rows = np.flatnonzero(~np.isnan(above) & self._chosen(subject, tag))
        if not len(rows):
            return None
        ids, hashes = ([column[row] for row in rows] for column in (self._ids, self._hashes))
        if UNITS + metric not in self.table.column_names:
            return Units(ids, hashes, above[rows], below[rows])
        stretches = [self.table.column(UNITS + metric)[int(row)].as_py() for row in rows]
        if any(stretch is None for stretch in stretches):
            return Units(ids, hashes, above[rows], below[rows])
        numbers = np.array([value for stretch in stretches for value in stretch], dtype=np.float64).reshape(-1, 2)
        counts = [len(stretch) // 2 for stretch in stretches]
        own = [f"{name}#{number}" for name, count in zip(ids, counts, strict=True) for number in range(count)]
        # Documents that were cut another way are no equal units.
        cut = [f"{name}/{count}" for name, count in zip(hashes, counts, strict=True) for _ in range(count)]
        return Units(own, cut, numbers[:, 0], numbers[:, 1], of_documents=True)

    def statistics(
        self, metric: str, subject: str | None = None, tag: str | None = None
    ) -> tuple[list[str], list[str], Floats] | None:
        """Returns ids, hashes and sufficient statistics (n, k) of a score of the whole corpus; None without them."""
        if STATISTICS + metric not in self.table.column_names:
            return None
        values = self.table.column(STATISTICS + metric).to_pylist()
        rows = [row for row in np.flatnonzero(self._chosen(subject, tag)) if values[row] is not None]
        if not rows:
            return None
        ids, hashes = ([column[row] for row in rows] for column in (self._ids, self._hashes))
        return ids, hashes, np.array([values[row] for row in rows], dtype=np.float64)

    def _named(self, prefix: str, subject: str | None) -> list[str]:
        chosen = self._chosen(subject, None)
        return [
            name.removeprefix(prefix)
            for name in self.table.column_names
            if name.startswith(prefix)
            and (subject is None or bool((chosen & self.table.column(name).is_valid().to_numpy()).any()))
        ]

    def _chosen(self, subject: str | None, tag: str | None) -> npt.NDArray[np.bool_]:
        mask = np.ones(len(self), dtype=bool)
        if subject is not None:
            mask &= np.array([name == subject for name in self._subjects], dtype=bool)
        if tag is not None:
            mask &= np.array([tag in tags for tags in self.table.column("tags").to_pylist()], dtype=bool)
        return mask

    @cached_property
    def _subjects(self) -> list[str]:
        """The subject of each item; where it names none, that of the part."""
        own = self.part.split("/", 1)[-1]
        return [name or own for name in self.table.column("subject").to_pylist()]

    @cached_property
    def _ids(self) -> list[str]:
        """The id of each item; with the subject before it where there are several."""
        ids: list[str] = self.table.column("id").to_pylist()
        if len(self.subjects) < 2:
            return ids
        return [f"{subject}/{own}" for subject, own in zip(self._subjects, ids, strict=True)]

    @cached_property
    def _hashes(self) -> list[str]:
        return list(self.table.column("hash").to_pylist())

    def _numbers(self, name: str) -> Floats:
        """A column of numbers; NaN for null."""
        return np.asarray(self.table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
