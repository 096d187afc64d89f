"""Reads the evaluation sets of a recipe, for evaluation and for decontamination.

An item's key is a hash of its text, so that both find the same item, whatever is left out or cut off before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.common.versions import installed
from configs.schema.data import Normalize
from configs.schema.evaluation import ChatSet, Evaluation, PeopleSet, PerplexitySet, PreferenceSet
from configs.schema.pair_sets import PairSet
from configs.schema.recipe import Recipe
from configs.schema.sources import Source
from data_prep.decontamination.benchmark_tasks import SHIPPED_TASKS, check_places, task_passages
from data_prep.decontamination.chat_sets import read_people_prompts, read_preferences, read_prompts
from data_prep.decontamination.pair_files import read_all_pairs
from data_prep.documents.conversion import read_documents
from data_prep.documents.document import Document, Rejected, parent_id
from data_prep.sources.places import Location, as_pattern, expand, names_within
from data_prep.text.normalize import normalize

# Web archives hold pages that are no text and responses without one; to leave those out is what is meant.
_OF_OTHER_KINDS = {"http_status", "not_text_media"}

_Set = PerplexitySet | PairSet | ChatSet | PreferenceSet | PeopleSet
# Settings of a set that change no item of it.
_HOW_TO_SCORE = {
    *("path", "stride", "context", "windows", "start_token", "stream", "separator", "detokenize", "words", "by"),
    *("max_new_tokens", "tokenize", "samples", "temperature", "candidates"),
    *("score", "rouge", "split", "sentences", "max_sentences", "information_items"),
    *("question", "guidelines", "scales", "attention", "repeats"),
}


@dataclass(frozen=True)
class Item:
    """One scored thing: a document, a pair, a question with its answers."""

    set: str  # such as perplexity/heldout, translation/wmt, benchmark/piqa, file/test.jsonl
    key: str
    passages: tuple[str, ...]


def item_key(passages: Sequence[str]) -> str:
    """16 hexadecimal digits; passages keep their borders."""
    text = "\x00".join(passages).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def set_key(items: Iterable[Sequence[str]]) -> str:
    """32 hexadecimal digits of a set's content: the passages of its items, in order, with all borders."""
    digest = hashlib.blake2b(digest_size=16)
    for passages in items:
        digest.update(item_key(passages).encode())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class SetText:
    """A document of a perplexity set.

    Attributes:
        id: the record's own, or its file and number.
        text: normalised if the set says so.
        group: value of the field `by`.
    """

    id: str
    text: str
    group: str | None = None


def read_set(section: PerplexitySet, rules: Normalize) -> list[SetText]:
    """Reads the set's documents, as they stand or normalised like training text, empty ones too.

    Parts of a document that is too long for a shard are put together again.

    Raises:
        ValueError: a missing file, a broken one, a broken record in one, a record without the field `by`, or a set
            without text.
    """
    source = Source(
        name=section.name,
        path=section.path,
        text_field=section.text_field,
        text_documents=section.text_documents,
        max_documents=section.max_documents,
    )
    found: list[SetText] = []
    for document in _all_documents(source, f"perplexity set `{section.name}`"):
        if document.part:
            found[-1] = replace(found[-1], text=found[-1].text + document.text)
        else:
            identifier = parent_id(document.id, document.part)
            found.append(SetText(identifier, document.text, _group(section, document)))
    if section.normalize == "training":
        found = [replace(one, text=normalize(one.text, rules)) for one in found]
    if not any(one.text for one in found):
        raise ValueError(f"perplexity set `{section.name}`: no text in {section.path}")
    return found


def read_texts(section: PerplexitySet, rules: Normalize) -> list[str]:
    """Reads the texts of a set without the empty ones; see `read_set`."""
    return [one.text for one in read_set(section, rules) if one.text]


def _group(section: PerplexitySet, document: Document) -> str | None:
    """Returns the value of the field `by`, which may be a dotted path."""
    if section.by is None:
        return None
    value: Any = document.metadata
    if section.by in document.metadata:
        value = document.metadata[section.by]
    else:
        for key in section.by.split("."):
            value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str | int | bool) or value == "":
        fields = ", ".join(document.metadata) or "none but the text"
        raise ValueError(
            f"perplexity set `{section.name}`: document {document.id} has no text or number in the field "
            f"`{section.by}` (its other fields: {fields}); correct `by`, or add the field"
        )
    return str(value)


def _all_documents(source: Source, what: str) -> Iterator[Document]:
    """As `read_documents`, but a record that is no document is an error: a score must not be of an unknown part.

    Raises:
        ValueError: naming the file, the record and what is wrong with it.
    """
    yield from read_documents(source, on_reject=lambda item: refuse_broken(item, what))


def refuse_broken(item: Rejected, what: str) -> None:
    """Raises `ValueError` for a record that is no document, naming its file, its number and what is wrong with it.

    Responses of a web archive without text are meant to be left out.

    Args:
        item: the record.
        what: names the set in the message.
    """
    if item.reason in _OF_OTHER_KINDS:
        return
    file, _, place = item.where.rpartition(":")
    where = f"{file}, record {int(place) + 1}," if place.isdecimal() else item.where
    raise ValueError(
        f"{what}: {where} is not a document ({item.reason}: {item.excerpt}); correct it or take it out, and "
        "check that text_field names the field with the text"
    )


# ------------------------------------------------------------------------------------------------------ decontamination
def contents_of(recipe: Recipe, identify: Callable[[Any], Any]) -> dict[str, Any]:
    """Describes the sets that `data.decontaminate` names by settings and content. Parses nothing.

    Of lm-eval's own tasks it is the name and lm-eval's version; their data is fetched when they are read.

    Args:
        recipe: the sets are `evaluation` and `data.decontaminate`.
        identify: gives a file's size and digest.

    Raises:
        ValueError: a missing file.
    """
    settings, section = recipe.data.decontaminate, recipe.evaluation
    assert settings is not None
    found: dict[str, Any] = {"files": [identify(path) for path in _files(settings.files)]}
    tasks = list(settings.tasks)
    if settings.evaluation:
        for name, item in _named_sets(section):
            found[name] = _contents(item, identify)
        tasks += section.benchmarks.names
        found["normalize"] = recipe.data.normalize.model_dump(mode="json")
    if tasks:
        found["tasks"] = {"names": tasks, "files": _task_files(recipe, identify), "lm_eval": installed("lm_eval")}
    return found


def _named_sets(section: Evaluation) -> Iterator[tuple[str, _Set]]:
    """The sets that are files, by the names that scores and the comparison have for them."""
    for kind, sets in (
        ("perplexity", section.perplexity),
        ("translation", section.translation),
        ("information", section.information),
        ("summarization", section.summarization),
        ("chat", section.chat),
        ("preference", section.preference),
        ("people", section.people),
    ):
        yield from ((f"{kind}/{item.name}", item) for item in sets)


def _pair_sets(section: Evaluation) -> Iterator[tuple[str, PairSet]]:
    """Sets of pairs, by the names that scores have for them."""
    yield from ((name, item) for name, item in _named_sets(section) if isinstance(item, PairSet))


def _contents(item: _Set, identify: Callable[[Any], Any]) -> dict[str, Any]:
    own = item.model_dump(mode="json", exclude=_HOW_TO_SCORE)
    return {"settings": own, "files": [identify(path) for path in expand(item.path)]}


def _task_files(recipe: Recipe, identify: Callable[[Any], Any]) -> list[Any]:
    local = [path for place in _places(recipe) for path in sorted(Path(place).rglob("*")) if path.is_file()]
    return [identify(path) for path in local]


def changed_sets(recipe: Recipe, compared: dict[str, Any], identify: Callable[[Any], Any]) -> set[str]:
    """Names the scored sets whose content changed; `benchmark` stands for all tasks.

    A set that was not compared, or whose files are missing, is none of them.

    Args:
        recipe: the sets are those of `evaluation`.
        compared: what `contents_of` gave before.
        identify: gives a file's size and digest.
    """
    section, found = recipe.evaluation, set()
    for name, item in _named_sets(section):
        before = compared.get(name)
        if before is not None and _differs(before, partial(_contents, item, identify)):
            found.add(name)
    if section.benchmarks.tasks and "tasks" in compared:
        before = {"settings": {}, "files": compared["tasks"]["files"]}
        if _differs(before, lambda: {"settings": {}, "files": _task_files(recipe, identify)}):
            found.add("benchmark")
    return found


def _differs(before: dict[str, Any], contents: Callable[[], dict[str, Any]]) -> bool:
    try:
        now = contents()
    except ValueError:  # missing: scoring says so
        return False
    if "normalize" in now["settings"]:  # earlier versions always normalised
        usual = "spaces" if "source_field" in now["settings"] else "training"
        before = {**before, "settings": {"normalize": usual, **before["settings"]}}
    known = before["settings"].keys() & now["settings"].keys()  # another version has other settings
    return before["files"] != now["files"] or any(before["settings"][key] != now["settings"][key] for key in known)


def read_items(recipe: Recipe) -> Iterator[Item]:
    """All items of the sets that `data.decontaminate` names, set by set.

    Raises:
        ValueError: a set or task that cannot be read, by name.
    """
    settings, section = recipe.data.decontaminate, recipe.evaluation
    assert settings is not None
    if settings.evaluation:
        for texts in section.perplexity:
            for text in read_texts(texts, recipe.data.normalize):
                yield _item(f"perplexity/{texts.name}", [text])
        for name, pairs in _pair_sets(section):
            for pair in read_all_pairs(pairs):
                yield _item(name, pair.passages)
        yield from _assistant_items(section, recipe.chat.system)
        yield from _task_items(section.benchmarks.names, recipe, "evaluation.benchmarks.tasks")
    files = _files(settings.files)
    for name, path in zip(names_within(files), files, strict=True):
        listed = Source(name="set", path=as_pattern(path), text_field="*")
        for document in _all_documents(listed, "data.decontaminate.files"):
            yield _item(f"file/{name}", [document.text])
    further = [name for name in settings.tasks if not settings.evaluation or name not in section.benchmarks.names]
    yield from _task_items(further, recipe, "data.decontaminate.tasks")


def _assistant_items(section: Evaluation, system: str | None) -> Iterator[Item]:
    """Items of the sets for assistants, with the passages by which scores tell clean from touched ones."""
    for prompts in section.chat:
        for prompt in read_prompts(prompts, system)[0]:
            yield _item(f"chat/{prompts.name}", [prompt.text, prompt.reference or ""])
    for asked in section.people:
        for prompt in read_people_prompts(asked, system)[0]:
            yield _item(f"people/{asked.name}", [prompt.text, prompt.reference or ""])
    for preferences in section.preference:
        for pair in read_preferences(preferences, system)[0]:
            said = (*pair.prompt, pair.chosen, pair.rejected)
            yield _item(f"preference/{preferences.name}", [message.text for message in said])


def _task_items(names: Sequence[str], recipe: Recipe, setting: str) -> Iterator[Item]:
    if names:
        for task, docs in task_passages(names, _places(recipe), setting):
            for passages in docs:
                yield _item(f"benchmark/{task}", passages)


def _item(name: str, passages: Sequence[str]) -> Item:
    return Item(name, item_key(passages), tuple(passages))


def _files(paths: Sequence[str]) -> list[Location]:
    return expand(list(paths)) if paths else []


def _places(recipe: Recipe) -> list[str]:
    """Directories with task files: the shipped ones, and the recipe's own, which win."""
    own = recipe.evaluation.benchmarks.include_path
    if own is not None and not Path(own).is_dir():
        raise ValueError(f"evaluation.benchmarks.include_path: there is no directory {own}")
    return [str(SHIPPED_TASKS), *([own] if own is not None and Path(own).resolve() != SHIPPED_TASKS else [])]


def check_tasks(recipe: Recipe) -> None:
    """Refuses, before anything is done, a recipe whose tasks would be refused when they are opened.

    Raises:
        ValueError: as `benchmark_tasks.check_places`.
    """
    settings = recipe.data.decontaminate
    if recipe.evaluation.benchmarks.tasks or (settings is not None and settings.tasks):
        check_places(_places(recipe))
