"""Makes people's votes a part of an evaluation: their scores stand in `results.json` like all others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.common.layout import PEOPLE
from eval.items.item import Item, beginning, hash_of
from eval.parts import Part, Scored
from eval.people.missing import KIND
from eval.people.outcome import Judgement, load_judgement, people_facts, people_results, without_votes
from eval.people.raters import TIE, chosen_place
from eval.people.session import Session, sessions_of
from pretrain.checkpoint.manifest import newest


def current_sessions(run: Path, checkpoint: str) -> list[str]:
    """Names the sessions of a run that have votes about the present checkpoints, see `outdated`."""
    old = outdated(run, checkpoint)
    return [directory.name for directory in sessions_of(run) if directory.name not in old]


def people_parts(
    run: Path, names: Sequence[str], sets: dict[str, Any], common: dict[str, Any], bootstrap_samples: int
) -> list[Part]:
    """Returns a part for each session.

    Args:
        run: the run directory.
        names: of the sessions.
        sets: identities of files, those of votes under `votes_name` of their set.
        common: inputs of every score.
        bootstrap_samples: number of resamples of each interval.
    """
    return [
        Part(
            f"{KIND}/{name}",
            {"code": common["code"], "bootstrap": bootstrap_samples, "votes": sets.get(votes_name(name))},
            partial(_score, run / PEOPLE / name, bootstrap_samples),
        )
        for name in names
    ]


def votes_name(name: str) -> str:
    """The name of a session's files among the sets of an evaluation."""
    return f"votes of {name}"


def _score(directory: Path, samples: int) -> Scored:
    judgement = load_judgement(directory)
    return Scored(people_results(judgement, samples), (), _items(judgement))


def _items(judgement: Judgement) -> list[Item]:
    """What raters said of each trial: grades, or how often each model was preferred to the other."""
    session = judgement.session
    added: dict[str, dict[str, list[float]]] = {}
    for rater in judgement.raters:
        for vote in rater.first:
            trial = session.by_id[vote.trial]
            assert trial.models is not None
            measures = added.setdefault(trial.id, {})
            if session.rates:
                for scale, grade in vote.ratings.items():
                    _add(measures, f"{scale}/{session.names[trial.models[0]]}", grade)
            elif (place := chosen_place(session, vote)) != TIE:
                one, other = sorted(trial.models, reverse=True)
                won = float(trial.models[place] == one)
                _add(measures, f"preferred/{session.names[one]}/{session.names[other]}", won)
    return [_item(session, trial, measures) for trial, measures in added.items()]


def _add(measures: dict[str, list[float]], name: str, value: float) -> None:
    found = measures.setdefault(name, [0.0, 0.0])
    found[0] += value
    found[1] += 1


def _item(session: Session, trial_id: str, measures: dict[str, list[float]]) -> Item:
    trial = session.by_id[trial_id]
    asked = session.prompts[trial.prompt]
    assert trial.models is not None
    return Item(
        id=trial_id,
        hash=hash_of(asked.text, asked.reference or ""),
        asked=beginning(asked.text),
        reference=beginning(asked.reference) if asked.reference else None,
        answer=beginning(trial.answers[0]) if len(trial.answers) == 1 else None,
        choices=tuple(
            f"{session.names[model]}: {beginning(text)}"
            for model, text in zip(trial.models, trial.answers, strict=True)
            if len(trial.answers) > 1
        ),
        measures={name: (above, below) for name, (above, below) in measures.items()},
    )


def outdated(run: Path, checkpoint: str) -> dict[str, str]:
    """Maps the sessions that give no scores now to the reason: answers of earlier checkpoints, or no vote yet.

    Asking people takes days. An evaluation in the meantime has not failed. A session that cannot be read is none of
    them: scoring it tells why.
    """
    found = {}
    for directory in sessions_of(run):
        try:
            judgement = load_judgement(directory)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        reason = _moved_on(judgement.session, run, checkpoint)
        if reason is None and not judgement.votes:
            reason = without_votes(judgement)
        if reason:
            found[judgement.session.name] = reason
    return found


def _moved_on(session: Session, run: Path, checkpoint: str) -> str | None:
    for model in session.models:
        if model.run == ".":
            now: str | None = checkpoint
        elif Path(model.run).is_absolute():  # another run: its name and fingerprint are in the results
            continue
        else:
            found = newest(run / model.run)
            now = found.fingerprint if found is not None else None
        if now is not None and now != model.fingerprint:
            return (
                f"people judged {model.name} at step {model.step:,}, and it is another checkpoint now; "
                "ask again with `replica judge --again`"
            )
    return None


def people_section(run: Path, checkpoint: str, failed: Collection[str]) -> list[dict[str, Any]]:
    """Returns what `results.json` says of each session beside its scores.

    Args:
        run: the run directory.
        checkpoint: fingerprint of the checkpoint that is scored.
        failed: names of the parts that failed.
    """
    old = outdated(run, checkpoint)
    found: list[dict[str, Any]] = []
    for directory in sessions_of(run):
        if directory.name in old:
            found.append({"set": directory.name, "outdated": old[directory.name]})
        elif f"{KIND}/{directory.name}" not in failed:
            found.append(people_facts(load_judgement(directory)))
    return found
