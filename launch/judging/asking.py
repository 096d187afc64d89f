"""Has models answer the prompts of a set, and makes a judging session of the answers."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from configs.common.layout import PEOPLE
from configs.common.notices import note
from configs.common.progress import progress_bar
from configs.schema.evaluation import PeopleSet
from configs.schema.recipe import RESOLVED_NAME, Recipe, RecipeError, find_run, load, load_run
from data_prep.chat.messages import Message, Prompt
from data_prep.decontamination.chat_sets import read_people_prompts
from eval.people.session import FILE, Asked, JudgedModel, Kind, Session, load_session, plan

if TYPE_CHECKING:
    from launch.chat.served_model import ServedModel

_ROWS = 32  # answers that decode together


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        runs: run directories; the session is kept in the first.
        stages: names of stages of the first run, or `base`; empty: the runs themselves.
        name: of the set; None: the first of the recipe.
        prompts: file of the prompts instead of the recipe's.
        kind: `pairs` or `ratings`; None: as the session has it, or `pairs`.
        overrides: settings `evaluation.…=value`.
        again: replace a session that is there.
    """

    runs: Sequence[Path]
    stages: Sequence[str] = ()
    name: str | None = None
    prompts: Path | None = None
    kind: Kind | None = None
    overrides: Sequence[str] = ()
    again: bool = False


def open_session(wanted: Wanted) -> tuple[Session, Path]:
    """Returns the session and its folder: the one that is there, or a new one, for which the models answer.

    Raises:
        ValueError: when the session that is there is another one than asked for, or a model cannot answer.
    """
    recipe = load_run(wanted.runs[0])
    section = people_set(recipe, wanted)
    directory = recipe.run_directory / PEOPLE / section.name
    if (directory / FILE).is_file() and not wanted.again:
        session = load_session(directory)
        _check_same(session, wanted, section)
        return session, directory
    models = _models(wanted, recipe)
    session = _answered(section, models, wanted.kind or "pairs", recipe)
    if (directory / FILE).is_file():
        _put_away(directory)
    session.save(directory)
    for remark in session.notes:
        note(remark)
    return session, directory


def people_set(recipe: Recipe, wanted: Wanted) -> PeopleSet:
    """Returns the set that is asked for, from the recipe or of the file that is given.

    Raises:
        ValueError: when there is none.
    """
    if foreign := [text for text in wanted.overrides if not text.startswith("evaluation.people")]:
        raise RecipeError(f"override `{foreign[0]}`: `replica judge` takes overrides of `evaluation.people` only")
    overrides = list(wanted.overrides)
    if wanted.prompts is not None:
        overrides.insert(0, _with_prompts(recipe, wanted.name or "main", wanted.prompts))
    if overrides:
        recipe = load(recipe.run_directory / RESOLVED_NAME, overrides)
    if wanted.prompts is not None:
        return next(item for item in recipe.evaluation.people if item.name == (wanted.name or "main"))
    sets = {item.name: item for item in recipe.evaluation.people}
    if wanted.name is not None and wanted.name not in sets:
        kept = recipe.run_directory / PEOPLE / wanted.name
        if (kept / FILE).is_file():
            return load_session(kept).settings
        raise ValueError(
            f"evaluation.people has no set `{wanted.name}`, only {', '.join(sets) or 'none'}; give its prompts with "
            "--prompts FILE"
        )
    if not sets:
        kept = recipe.run_directory / PEOPLE / "main"
        if (kept / FILE).is_file():
            return load_session(kept).settings
        raise ValueError(
            "there is nothing to ask: give --prompts FILE (.jsonl with a field `prompt`, or .txt, a prompt a line), or "
            "write a set into `evaluation.people` of the recipe"
        )
    return sets[wanted.name] if wanted.name is not None else next(iter(sets.values()))


def _with_prompts(recipe: Recipe, name: str, prompts: Path) -> str:
    """Returns the override that has a set ask about the prompts of a file; the set alone, where the recipe has none."""
    path = str(prompts.resolve())
    known = [item.model_dump(mode="json") for item in recipe.evaluation.people]
    if name in {item["name"] for item in known}:
        sets = [{**item, "path": path} if item["name"] == name else item for item in known]
    else:
        sets = [{"name": name, "path": path}]
    return f"evaluation.people={json.dumps(sets)}"


def _check_same(session: Session, wanted: Wanted, section: PeopleSet) -> None:
    names = tuple(wanted.stages)
    again = "; votes on it stay valid, so leave the option out, or make a new session with --again"
    if names and names != session.names:
        raise ValueError(f"people/{session.name} is about {', '.join(session.names)}{again}")
    if wanted.kind is not None and wanted.kind != session.kind:
        raise ValueError(f"people/{session.name} asks for {session.kind}, not {wanted.kind}{again}")
    section = section.model_copy(update={"scales": section.rated_on})
    before, now = (one.model_dump(exclude={"path"}) for one in (session.settings, section))
    if changed := [name for name in before if before[name] != now[name]]:
        note(f"people/{session.name} was made with another {', '.join(changed)}; --again makes a new session")


def _put_away(directory: Path) -> None:
    """Moves a session with its votes aside. Nothing that people said is deleted."""
    target = directory.parent.parent / f"{PEOPLE}-earlier"
    target.mkdir(exist_ok=True)
    number = 1
    while (target / f"{directory.name}-{number}").exists():
        number += 1
    directory.rename(target / f"{directory.name}-{number}")
    note(f"the earlier session and its votes are in {target / f'{directory.name}-{number}'}")


# -------------------------------------------------------------------------------------------------------------- models
def _models(wanted: Wanted, recipe: Recipe) -> dict[str, Path]:
    """Maps names to run directories."""
    if wanted.stages:
        if len(wanted.runs) > 1:
            raise ValueError("--models names stages of one run; give one run, or leave --models out")
        return {name: find_run(f"{wanted.runs[0]}:{name}") for name in wanted.stages}
    names = [load_run(run).name for run in wanted.runs]
    if len(set(names)) < len(names) or "/" in "".join(names):  # runs of one recipe; a score's name has parts
        names = [run.resolve().name for run in wanted.runs]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two models are called {twice[0]}; rename a run directory")
    return dict(zip(names, wanted.runs, strict=True))


def _answered(section: PeopleSet, models: Mapping[str, Path], kind: Kind, recipe: Recipe) -> Session:
    from launch.chat.served_model import open_served_model
    from pretrain.checkpoint.choice import Choice

    prompts, left = read_people_prompts(section, None)
    if str(left):
        note(str(left))
    for name, run in models.items():
        _check_model(name, run)
    judged: list[JudgedModel] = []
    answers: list[list[str | None]] = []
    for name, run in models.items():
        served = open_served_model(run, Choice())
        how = "greedy" if section.temperature == 0 else f"temperature {section.temperature:g}"
        settings = f"{how}, at most {section.max_new_tokens} tokens"
        judged.append(JudgedModel(name, _place(run, recipe), served.step, served.fingerprint, settings))
        with progress_bar(f"answers of {name}", len(prompts)) as bar:
            answers.append(_answers(served, prompts, section, recipe.seed, bar.update))
        del served
        gc.collect()
    rows = [
        Asked(_shown(prompt), tuple(text for text in said if text is not None), prompt.reference)
        for prompt, said in zip(prompts, zip(*answers, strict=True), strict=True)
        if None not in said
    ]
    if over := len(prompts) - len(rows):
        note(f"{over:,} of {len(prompts):,} prompts leave no room for an answer in the context, and are left out")
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return plan(section, kind, judged, rows, made, recipe.seed)


def _check_model(name: str, run: Path) -> None:
    """Raises `ValueError` for a model that cannot answer, before another one is asked."""
    from launch.chat.served_model import answering_checkpoint
    from pretrain.checkpoint.choice import Choice

    try:
        answering_checkpoint(run, Choice())
    except ValueError as error:
        raise ValueError(f"the model {name}: {error}") from error


def _place(run: Path, recipe: Recipe) -> str:
    here, there = recipe.run_directory.resolve(), run.resolve()
    return str(there.relative_to(here)) if there.is_relative_to(here) else str(there)


def _shown(prompt: Prompt) -> str:
    """The prompt as raters read it: a single message as it is, a conversation with the roles."""
    said = [message for message in prompt.messages if message.role != "system"]
    if len(said) == 1:
        return said[0].text
    return "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in said)


def _answers(
    served: ServedModel, prompts: Sequence[Prompt], section: PeopleSet, seed: int, report: Callable[[int], object]
) -> list[str | None]:
    """The answer to each prompt; None where it leaves no room. A base model continues the text."""
    from launch.chat.served_model import TooLong

    out: list[str | None] = []
    for start in range(0, len(prompts), _ROWS):
        asked: list[list[int] | None] = []
        for prompt in prompts[start : start + _ROWS]:
            try:
                asked.append(_ids(served, prompt))
            except TooLong:
                asked.append(None)
        out += _played(served, asked, section, seed, start)
        report(len(out))
    return out


def _played(
    served: ServedModel, asked: Sequence[list[int] | None], section: PeopleSet, seed: int, first: int
) -> list[str | None]:
    """Answers that decode together. One that is cut at its longest length ends in an ellipsis, for raters to know."""
    from launch.chat.answers import ScoredToken
    from launch.chat.served_model import Draws

    player, rows, out = served.player(), {}, [None if ids is None else "" for ids in asked]
    for place, ids in enumerate(asked):
        if ids is not None:
            length = min(section.max_new_tokens, served.context_length - len(ids))
            draws = Draws(section.temperature, max_new_tokens=length, seed=seed, slot=first + place)
            (row,) = player.add(served.request(ids, draws))
            rows[row] = place, served.answer_text(context=() if served.template else ids)
    while rows:
        for event in player.step():
            place, text = rows[event.row]
            piece = text.push(ScoredToken.of(event), event.finished)
            out[place] = f"{out[place]}{piece.text}{' …' if piece.finish == 'length' else ''}"
            if event.finished:
                del rows[event.row]
    return [text if text is None else text.strip() for text in out]


def _ids(served: ServedModel, prompt: Prompt) -> list[int]:
    if served.template is None:
        return served.text_prompt(prompt.messages[-1].text)
    head = [Message.of("system", served.system)] if served.system and prompt.messages[0].role != "system" else []
    return served.chat_prompt([*head, *prompt.messages])[0]
