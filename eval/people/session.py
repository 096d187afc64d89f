"""Plans what people are shown, and keeps what they must not see: which model gave which answer.

A session is a folder of a run directory, `people/NAME`: `session.json` with the secret, and `votes.jsonl`. What a page
shows is `Session.blind`; its hash is in every vote.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from configs.common.files import fingerprint, read_json, write_json
from configs.common.layout import PEOPLE
from configs.schema.evaluation import PeopleSet

SCHEMA = 1
FILE, VOTES = "session.json", "votes.jsonl"
FEWEST_WORDS, FEWEST_LETTERS = 5, 12  # of a text that is worse for everybody when it is shuffled
Kind = Literal["pairs", "ratings"]


@dataclass(frozen=True)
class JudgedModel:
    """A model whose answers are judged.

    Attributes:
        name: as results name it.
        run: its run directory; relative to the run of the session where it lies in it, `.` for that run itself.
        step: of its checkpoint.
        fingerprint: of its checkpoint.
        settings: how its answers were written, such as `greedy, at most 256 tokens`.
    """

    name: str
    run: str
    step: int
    fingerprint: str
    settings: str


@dataclass(frozen=True)
class Asked:
    """A prompt with the answer of each model, in the order of the models.

    Attributes:
        text: the prompt as raters read it.
        reference: a right answer or real continuation, if the set has one.
    """

    text: str
    answers: tuple[str, ...]
    reference: str | None = None


@dataclass(frozen=True)
class Trial:
    """One or two answers that a rater sees together.

    Attributes:
        id: says nothing about the models.
        prompt: number of the prompt.
        answers: the texts, in an order that depends on their content alone.
        models: numbers of the models that gave them; None for a trial that tests attention.
        good: of a trial that tests attention, the place of the good answer; -1 if the only answer is bad.
    """

    id: str
    prompt: int
    answers: tuple[str, ...]
    models: tuple[int, ...] | None
    good: int | None = None


@dataclass(frozen=True)
class Session:
    """What people judge.

    Attributes:
        name: of the set; results are named `human/NAME/…`.
        kind: `pairs`: which of two answers is better; `ratings`: how good one answer is on each scale.
        settings: of the set, as the recipe's section has them.
        made: when, in UTC.
        alike: pairs of models with identical answers: (prompt, model, model). Nobody is asked; they are ties.
    """

    name: str
    kind: Kind
    settings: PeopleSet
    made: str
    models: tuple[JudgedModel, ...]
    prompts: tuple[Asked, ...]
    trials: tuple[Trial, ...]
    alike: tuple[tuple[int, int, int], ...] = ()
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def blind(self) -> dict[str, Any]:
        """What a page may hold: no names of models or runs, and no place where one model always stands."""
        shown = {
            "kind": self.kind,
            "question": self.settings.question,
            "guidelines": self.settings.guidelines,
            "scales": [scale.model_dump(mode="json") for scale in self.settings.scales] if self.rates else [],
            "repeats": self.settings.repeats,
            "trials": [
                {
                    "id": trial.id,
                    "prompt": self.prompts[trial.prompt].text,
                    "answers": [{"text": text, "hash": text_hash(text)} for text in trial.answers],
                }
                for trial in self.trials
            ],
        }
        return {"page": fingerprint(shown)[:16], **shown}

    @property
    def page(self) -> str:
        """Hash of all that the page shows."""
        return str(self.blind["page"])

    @property
    def rates(self) -> bool:
        """Tells whether answers are rated on scales, and not compared."""
        return self.kind == "ratings"

    @cached_property
    def by_id(self) -> dict[str, Trial]:
        """Maps ids to trials."""
        return {trial.id: trial for trial in self.trials}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(model.name for model in self.models)

    def save(self, directory: Path) -> Path:
        """Writes `session.json`, readable by the owner alone: raters on the same machine must not see it."""
        target = directory / FILE
        content = {"schema": SCHEMA, "page": self.page, **asdict(self), "settings": self.settings.model_dump()}
        write_json(target, content)
        target.chmod(0o600)
        return target


def load_session(directory: Path) -> Session:
    """Reads `session.json`.

    Raises:
        ValueError: when it is missing, of another version, or its page was changed by hand.
    """
    path = directory / FILE
    if not path.is_file():
        raise ValueError(f"{directory} has no {FILE}: nobody was asked yet; begin with `replica judge RUN`")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise ValueError(f"{path} was written by another version; make a new session with `replica judge --again`")
    session = Session(
        name=raw["name"],
        kind=raw["kind"],
        settings=PeopleSet.model_validate(raw["settings"]),
        made=raw["made"],
        models=tuple(JudgedModel(**model) for model in raw["models"]),
        prompts=tuple(Asked(one["text"], tuple(one["answers"]), one["reference"]) for one in raw["prompts"]),
        trials=tuple(_trial(one) for one in raw["trials"]),
        alike=tuple((one[0], one[1], one[2]) for one in raw["alike"]),
        notes=tuple(raw["notes"]),
    )
    if session.page != raw["page"]:
        raise ValueError(
            f"{path} was changed after its page was made: votes on the page no longer belong to it; restore the file"
        )
    return session


def _trial(raw: dict[str, Any]) -> Trial:
    models = None if raw["models"] is None else tuple(raw["models"])
    return Trial(raw["id"], raw["prompt"], tuple(raw["answers"]), models, raw["good"])


def sessions_of(run: Path) -> list[Path]:
    """Lists the folders of all sessions of a run, by name. Earlier ones that were replaced are not among them."""
    return sorted(path.parent for path in (run / PEOPLE).glob(f"*/{FILE}"))


def text_hash(text: str) -> str:
    """Returns the 16 hex digits by which a vote names an answer."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------- plan
def plan(
    settings: PeopleSet, kind: Kind, models: Sequence[JudgedModel], prompts: Sequence[Asked], made: str, seed: int
) -> Session:
    """Plans a session: every pair of models on every prompt (or every answer), and trials that test attention.

    Equal inputs give an equal session, and with it an equal page.

    Raises:
        ValueError: when there is nothing to judge, or two models have one name.
    """
    settings = settings.model_copy(update={"scales": settings.rated_on})  # as they are now, whatever becomes usual
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"two of the models have one name: {', '.join(names)}; name the runs differently")
    if kind == "pairs" and len(models) < 2:
        raise ValueError(
            "a comparison needs two models; give more runs, or stages with --models sft,grpo. To have one model rated "
            "on a scale, use --rate"
        )
    tests, note = _attention_tests(settings, kind, prompts, seed)
    trials, alike = (_pairs if kind == "pairs" else _single)(prompts, seed)
    if not trials:
        raise ValueError("the models give identical answers to every prompt; there is nothing to judge")
    return Session(
        settings.name, kind, settings, made, tuple(models), tuple(prompts), tuple(_spread(trials, tests)),
        tuple(alike), (note,) if note else (),
    )  # fmt: skip


def _pairs(prompts: Sequence[Asked], seed: int) -> tuple[list[Trial], list[tuple[int, int, int]]]:
    trials, alike = [], []
    for number, asked in enumerate(prompts):
        for one, other in combinations(range(len(asked.answers)), 2):
            if asked.answers[one] == asked.answers[other]:
                alike.append((number, one, other))
                continue
            key = _key(seed, "pair", number, asked.answers[one], asked.answers[other])
            models = (one, other) if int(key[0], 16) & 1 else (other, one)
            trials.append(Trial(key, number, tuple(asked.answers[model] for model in models), models))
    return _shuffled(trials), alike


def _single(prompts: Sequence[Asked], seed: int) -> tuple[list[Trial], list[tuple[int, int, int]]]:
    trials = [
        Trial(_key(seed, "answer", number, str(model), text), number, (text,), (model,))
        for number, asked in enumerate(prompts)
        for model, text in enumerate(asked.answers)
    ]
    return _shuffled(trials), []


def _shuffled(trials: list[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: trial.id)


def _key(seed: int, *parts: str | int) -> str:
    """The id of a trial. It is a hash, so that nothing can be read from it."""
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()[:12]


def _attention_tests(
    settings: PeopleSet, kind: Kind, prompts: Sequence[Asked], seed: int
) -> tuple[list[Trial], str | None]:
    """Makes trials with a planted bad answer: the words of a good one in random order.

    The good one is the set's reference where there is one, for a weak model's own text may be no better than shuffled.
    """
    found: list[Trial] = []
    order = sorted(range(len(prompts)), key=lambda number: _key(seed, "attention", number))
    for number in order:
        if len(found) == settings.attention:
            break
        asked = prompts[number]
        for good in filter(None, (asked.reference, *asked.answers)):
            bad = shuffled_text(good, _key(seed, "shuffle", number))
            if bad is not None:
                key = _key(seed, "test", number, good, bad)
                if kind == "ratings":
                    found.append(Trial(key, number, (bad,), None, -1))
                else:
                    place = int(key[0], 16) & 1
                    found.append(Trial(key, number, (bad, good) if place else (good, bad), None, place))
                break
    if len(found) < settings.attention:
        return found, (
            f"{len(found)} of {settings.attention} attention tests could be made: too few prompts have an answer of "
            f"{FEWEST_WORDS} words"
        )
    return found, None


def shuffled_text(text: str, key: str) -> str | None:
    """Returns the text with its words (without blanks: its letters) in random order; None if it is too short."""
    words = text.split()
    joint = " "
    if len(words) < FEWEST_WORDS:
        words, joint = list("".join(words)), ""
        if len(words) < FEWEST_LETTERS:
            return None
    generator = random.Random(key)
    for _ in range(10):
        generator.shuffle(words)
        if (bad := joint.join(words)) != joint.join(text.split()):
            return bad
    return None  # the same word again and again


def _spread(trials: list[Trial], tests: list[Trial]) -> list[Trial]:
    """Puts the tests among the trials at about equal distances, so that who stops early meets some too."""
    out = list(trials)
    for number, test in enumerate(tests):
        away = int(test.id[:4], 16) / 0xFFFF
        out.insert(round((number + away) * (len(trials) + len(tests)) / len(tests)), test)
    return out
