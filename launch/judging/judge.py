"""Implements `replica judge`: asks models, serves or writes the page, imports votes, and prints what they say."""

from __future__ import annotations

import socket
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from configs.common.files import write_text
from configs.common.layout import PEOPLE
from configs.common.notices import note, say, warn
from configs.schema.recipe import load_run
from eval.people.outcome import Judgement, load_judgement, people_results
from eval.people.raters import habits
from eval.people.session import FILE, VOTES, Session, load_session, sessions_of
from eval.people.votes import import_votes, read_votes, set_aside
from launch.judging.asking import Wanted, open_session
from launch.judging.judging_page import page_file, precision

_SAMPLES = 1000


def judge(arguments: Namespace) -> None:
    """Does what the options ask for; without one of them, serves the page until a signal ends it.

    Raises:
        ValueError: see `open_session`, `import_votes`, `set_aside`; or a port that cannot be used.
    """
    actions: list[tuple[bool, Callable[[Session, Path], None]]] = [
        (bool(arguments.votes), lambda session, directory: _import(session, directory, arguments.votes)),
        (arguments.aside is not None, lambda session, directory: _set_aside(session, directory, arguments)),
        (arguments.restore is not None, lambda session, directory: _restore(session, directory, arguments.restore)),
        (arguments.results, print_results),
    ]
    chosen = [action for asked, action in actions if asked]
    if arguments.because is not None and arguments.aside is None:
        raise ValueError("--because is the reason of --set-aside RATER; give both")
    if chosen:
        session, directory = _there(arguments)
        for action in chosen:
            action(session, directory)
        return
    session, directory = open_session(_wanted(arguments))
    say(f"people/{session.name}: {precision(session)}")
    if arguments.file is not None:
        write_text(arguments.file, page_file(session))
        say(f"{arguments.file}: open it in a browser; import the votes that it saves with --import FILE")
        return
    _serve(session, directory, arguments)


def _wanted(arguments: Namespace) -> Wanted:
    if not any(isinstance(run, Path) for run in arguments.runs):
        raise ValueError("no run is named; give its directory: replica judge RUN")
    stages = tuple(filter(None, (arguments.models or "").split(",")))
    return Wanted(
        runs=[run for run in arguments.runs if isinstance(run, Path)],
        stages=stages,
        name=arguments.set,
        prompts=arguments.prompts,
        kind="ratings" if arguments.rate else None,
        overrides=[*(text for text in arguments.runs if isinstance(text, str)), *arguments.overrides],
        again=arguments.again,
    )


def _there(arguments: Namespace) -> tuple[Session, Path]:
    """Returns the session of the run that is there.

    Raises:
        ValueError: when there is none, or several and none is named.
    """
    wanted = _wanted(arguments)
    run = load_run(wanted.runs[0]).run_directory
    known = [directory.name for directory in sessions_of(run)]
    name = wanted.name or (known[0] if len(known) == 1 else None)
    if name is None or not (run / PEOPLE / name / FILE).is_file():
        which = f"no session `{name}`" if name else "no session" if not known else "several sessions"
        raise ValueError(
            f"{run} has {which}{': ' + ', '.join(known) if known else ''}; "
            + ("name one with --set" if known else f"begin one with `replica judge {run}`")
        )
    return load_session(run / PEOPLE / name), run / PEOPLE / name


def _import(session: Session, directory: Path, files: list[Path]) -> None:
    for file in files:
        new, known = import_votes(file, directory / VOTES, session)
        say(f"{file}: {new:,} new lines{f', {known:,} were there already' if known else ''}")
    print_results(session, directory)


def _set_aside(session: Session, directory: Path, arguments: Namespace) -> None:
    if arguments.because is None:
        raise ValueError("--set-aside needs a reason, for whoever reads the results: --because TEXT")
    set_aside(directory / VOTES, session, arguments.aside, arguments.because)
    print_results(session, directory)


def _restore(session: Session, directory: Path, rater: str) -> None:
    set_aside(directory / VOTES, session, rater, None)
    print_results(session, directory)


def print_results(session: Session, directory: Path) -> None:
    """Prints the scores of the votes so far, and what makes a rater's votes doubtful."""
    judgement = load_judgement(directory)
    file = read_votes(directory / VOTES, session)
    if file.torn:
        warn(f"{directory / VOTES}: the last line was torn, as by a crash, and is left out")
    results = people_results(judgement, _SAMPLES)
    width = max(len(result.name) for result in results)
    for result in results:
        bounds = "" if result.low is None else f"{result.low:9.3f} – {result.high:.3f}"
        print(f"{result.name:{width}}  {result.value:9.3f}  {bounds:21}  n {result.n:,}")
    note(results[0].interval)
    for remark in doubts(judgement):
        warn(remark)
    run = directory.parent.parent
    note(f"`replica eval {run}` writes these into results.json, for the report and the gates")


def doubts(judgement: Judgement) -> list[str]:
    """Says what makes votes doubtful, rater by rater."""
    session, found = judgement.session, []
    for rater in judgement.raters:
        found += [f"{rater.name} {remark}" for remark in habits(session, rater)]
        if any(vote.rater != rater.name for vote in rater.first):
            found.append(f"{rater.name} voted under a name that another browser had; both are counted")
    if found:
        found.append("these votes are counted; leave a rater's out with --set-aside RATER --because TEXT")
    return found


# ---------------------------------------------------------------------------------------------------------------- serve
def _serve(session: Session, directory: Path, arguments: Namespace) -> None:
    from launch.chat.serve import KEY_VARIABLE, LOOPBACK, listening, make_server, read_key, server_packages, url

    with server_packages("`replica judge --file PAGE.html` needs none"):
        from launch.judging.judging_server import JudgingApi, make_judging_app
    key = read_key(arguments.key_file)
    read_votes(directory / VOTES, session)  # a damaged file is told before anybody votes
    with listening(arguments.host, arguments.port) as bound:
        address, port = bound.getsockname()[:2]
        if not address.startswith(LOOPBACK) and key is None:
            warn(
                f"{address} is reached by other machines, and no key is asked for: whoever reaches it can vote; give "
                f"--key-file FILE or set {KEY_VARIABLE}"
            )
        names = (arguments.host, socket.gethostname(), *arguments.allow_host)
        app = make_judging_app(JudgingApi(session, directory), names, key)
        say(f"judging at {url(address, port)}")
        say("Ctrl-C ends it; votes are kept, and the same command goes on")
        make_server(app).run(sockets=[bound])
    if read_votes(directory / VOTES, session).lines:
        print_results(session, directory)
