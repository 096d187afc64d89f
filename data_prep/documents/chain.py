"""Applies the steps of the recipe's `data:` section to one document, in order.

Address -> normalise -> lines -> language -> quality rules -> classifier -> privacy (extraction has happened when a
record became a document). Every byte that a step takes and every document that it drops is counted under
`stage/reason`; one at which a step raises an error is dropped as `stage/failed`, and the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from configs.safety.user_code import UserCode
from configs.schema.data import Data, Language
from configs.schema.quality_rules import CustomRules, Rule
from configs.schema.sources import Source
from data_prep.chat.messages import Unusable
from data_prep.chat.shapes import still_usable
from data_prep.documents.document import UNIT, Document
from data_prep.funnel.tally import READ, Tally
from data_prep.quality import reason_to_drop
from data_prep.sources.unreadable import concerns_one, describe
from data_prep.text.normalize import normalize
from data_prep.workers.time_limit import TooSlow, limit, undisturbed


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that does not stay, as it was when that was decided."""

    key: str  # stage/reason
    document: Document
    size: int  # bytes of its text then
    detail: str | None = None


class _Drop(Exception):
    """Leaves the chain; carries `stage/reason` and the grounds."""

    def __init__(self, key: str, detail: str | None = None) -> None:
        super().__init__(key)
        self.key = key
        self.detail = detail


class _State:
    """A document on its way: the text, its UTF-8, and what was found out about it."""

    __slots__ = ("document", "encoded", "metadata", "tally", "text", "unit")

    def __init__(self, document: Document, tally: Tally) -> None:
        self.document = document
        self.text = document.text
        self.encoded = document.text.encode()
        self.metadata: dict[str, Any] = {}
        self.tally = tally
        self.unit = document.unit

    def rewrite(self, key: str, function: Callable[[str], str], detail: Callable[[], str] = str) -> None:
        """Changes the text; of a conversation or its like, each message by itself.

        `detail` is asked after the change what it was.
        """
        if self.unit is None:
            self.change(key, function(self.text), detail())
            return
        changed = self.unit.mapped(function)
        self.change(key, changed.text, detail())
        self.unit = changed
        try:
            still_usable(changed)
        except Unusable as error:
            raise _Drop(f"{key.partition('/')[0]}/{error.reason}", error.detail) from error

    def change(self, key: str, text: str, detail: str | None = None) -> None:
        """Sets the text and counts the bytes that went."""
        if text is self.text or text == self.text:
            return
        encoded = text.encode()
        with undisturbed:
            self.tally.add(key, 0, len(self.encoded) - len(encoded))
            if self.tally.wants(key):
                self.tally.example(key, self.document.id, self.text, after=text, detail=detail)
            self.text, self.encoded = text, encoded


class Chain:
    """The steps of one source, made ready once for many documents.

    Args:
        data: the recipe's section.
        source: where the documents come from.
        tally: counts and examples go there.
        code: of the user's own rules, see `data_prep.quality.rules.custom_rules`; None: read now.
    """

    def __init__(self, data: Data, source: Source, tally: Tally, code: Mapping[int, UserCode] | None = None) -> None:
        self._tally = tally
        self._language = source.language
        quality, language = data.quality, data.language

        def wanted(step: str, asked: object) -> bool:
            return bool(asked) and step not in source.skip

        names = quality.blocklist or quality.blocked_words
        lines = wanted("lines", data.lines.boilerplate or data.lines.patterns)
        identify = wanted("language", language.identify or language.keep)
        scored = quality.classifier if wanted("quality", quality.classifier) else None
        private = wanted("privacy", any(data.privacy.model_dump().values()))
        steps: list[tuple[str, Callable[[_State], None] | None]] = [
            ("quality", _addresses(quality.blocklist, quality.blocked_words) if names else None),
            (
                "normalize",
                lambda state: state.rewrite("normalize/normalized", lambda text: normalize(text, data.normalize)),
            ),
            ("quality", _basics(data)),
            ("lines", _lines(data) if lines else None),
            ("language", _identify(language, source.language) if identify else None),
            ("quality", _rules(quality.rules, code) if wanted("quality", quality.rules) else None),
            ("quality", _classifier(scored.path, scored.min_score) if scored else None),
            ("privacy", _privacy(data) if private else None),
        ]
        self._steps = [(stage, step) for stage, step in steps if step is not None]

    def __call__(self, document: Document) -> tuple[Document, bytes] | Dropped:
        """The document with its text as UTF-8 if it stays, else why not; counts what happened to it."""
        state = _State(document, self._tally)
        if self._language:
            state.metadata["language"] = self._language
        self._tally.add(READ, 1, document.read_bytes)
        if document.read_bytes != len(state.encoded):
            self._tally.add("extract/markup", 0, document.read_bytes - len(state.encoded))
        stage = "quality"
        try:
            with limit:
                for stage, step in self._steps:  # noqa: B007 (the handlers below ask which step it was)
                    step(state)
        except _Drop as drop:
            return self.drop(drop.key, replace(document, text=state.text), len(state.encoded), drop.detail)
        except TooSlow as slow:
            return self.drop("quality/too_slow", replace(document, text=state.text), len(state.encoded), str(slow))
        except BaseException as error:
            if not concerns_one(error):
                raise
            dropped = replace(document, text=state.text)
            return self.drop(f"{stage}/failed", dropped, len(state.encoded), describe(error))
        metadata = {**document.metadata, **state.metadata} if state.metadata else document.metadata
        if state.unit is not None:
            metadata = {**metadata, UNIT: state.unit.to_json()}
        return replace(document, text=state.text, metadata=metadata, unit=state.unit), state.encoded

    def drop(self, key: str, document: Document, size: int, detail: str | None = None) -> Dropped:
        """Counts a document that does not stay."""
        self._tally.add(key, 1, size)
        self._tally.example(key, document.id, document.text, detail=detail)
        return Dropped(key, document, size, detail)


# ---------------------------------------------------------------------------------------------------------------- steps
# Each is made once per worker; what it needs is imported only where the recipe asks for it.
def _basics(data: Data) -> Callable[[_State], None]:
    def step(state: _State) -> None:
        reason = reason_to_drop(state.text, state.encoded, data.quality)
        if reason:
            raise _Drop(f"quality/{reason}")

    return step


def _addresses(path: str | None, words: list[str]) -> Callable[[_State], None]:
    from data_prep.documents.blocklist import Blocklist

    blocked = Blocklist(path, words)

    def step(state: _State) -> None:
        url = state.document.url
        if url and blocked(url):
            raise _Drop("quality/blocked_url", url)

    return step


def _lines(data: Data) -> Callable[[_State], None]:
    from data_prep.documents.boilerplate import LinePass

    take_out = LinePass(data.lines)

    def step(state: _State) -> None:
        text, removed = take_out(state.text)
        state.change("lines/boilerplate", text, ", ".join(f"{reason} {count}" for reason, count in removed.items()))
        if not text.strip():
            raise _Drop("lines/only_boilerplate")

    return step


def _identify(settings: Language, known: str | None) -> Callable[[_State], None]:
    from data_prep.documents.language import identify

    def step(state: _State) -> None:
        language, confidence = (known, 1.0) if known else identify(state.text)
        state.metadata["language"] = language
        if not known:
            state.metadata["language_confidence"] = round(confidence, 4)
        if settings.keep and language not in settings.keep:
            raise _Drop(f"language/{language}", f"confidence {confidence:.3f}")
        if settings.keep and confidence < settings.confidence.get(language, settings.min_confidence):
            raise _Drop("language/uncertain", f"{language} {confidence:.3f}")

    return step


def _rules(settings: list[Rule], code: Mapping[int, UserCode] | None) -> Callable[[_State], None]:
    from data_prep.quality import Drop, TextFacts, build_rules

    rules = list(zip(build_rules(settings, code), settings, strict=True))

    def step(state: _State) -> None:
        language = state.metadata.get("language")
        facts = TextFacts(state.text)
        for rule, setting in rules:
            if setting.languages and language not in setting.languages:
                continue
            result = rule(facts)
            if isinstance(result, Drop):
                raise _Drop(f"quality/{result.reason}", result.detail)
            if result != facts.text and state.unit is None:  # a conversation stays whole
                state.change(f"quality/{_what_takes(setting)}", result)
                facts = TextFacts(result)

    return step


def _what_takes(setting: Rule) -> str:
    """Under which name a rule's changes of the text are counted."""
    return setting.code.rpartition(":")[2] if isinstance(setting, CustomRules) else f"{setting.rule}_lines"


def _classifier(path: str, min_score: float) -> Callable[[_State], None]:
    from data_prep.documents.classifier import QualityClassifier

    score = QualityClassifier.load(path)

    def step(state: _State) -> None:
        value = score(state.text)
        state.metadata["quality_score"] = round(value, 4)
        if value < min_score:
            raise _Drop("quality/low_quality_score", f"{value:.3f} < {min_score}")

    return step


def _privacy(data: Data) -> Callable[[_State], None]:
    from data_prep.documents.privacy import Redactor

    redact = Redactor(data.privacy)

    def step(state: _State) -> None:
        replaced: Counter[str] = Counter()

        def redacted(text: str) -> str:
            text, found = redact(text)
            replaced.update(found)
            return text

        state.rewrite(
            "privacy/redacted", redacted, lambda: ", ".join(f"{kind} {count}" for kind, count in replaced.items())
        )
        for kind, count in replaced.items():
            state.tally.marks[f"privacy/{kind}"] += count

    return step
