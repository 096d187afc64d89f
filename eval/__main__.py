"""Scores a run (`python -m eval run RUN`), or renders its report and checks its gates (`python -m eval report RUN`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.common.exit_codes import add_debug, run_command
from configs.safety.trust import add_trust, trusting

GATE_FAILED = 1


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    add_debug(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="score the newest checkpoint; write results.json")
    run.add_argument("run", type=Path, metavar="RUN", help="run directory")
    run.add_argument("overrides", nargs="*", metavar="evaluation.a.b=value", help="settings of the evaluation section")
    add_trust(run)
    report = commands.add_parser("report", help="write report/index.html and report/report.md")
    report.add_argument("run", type=Path, metavar="RUN", help="run directory")
    report.add_argument("--baseline", type=Path, metavar="RUN", help="another run to compare the scores with")
    report.add_argument("--gate", action="store_true", help="exit with 1 when a gate of the recipe fails")
    for command in (run, report):
        add_debug(command)
    return parser


def score(run: Path, overrides: Sequence[str] = ()) -> int:
    """Scores a run unless its results are current."""
    from eval.currency import is_current
    from eval.suite import evaluate

    if not overrides and is_current(run):
        print(f"{run}: results.json is up to date")
        return 0
    print(evaluate(run, overrides))
    return 0


def report(run: Path, baseline: Path | None = None, gate: bool = False) -> int:
    """Renders the report; with `gate`, prints each gate and returns 1 when one fails."""
    from eval.report.gates import check_gates
    from eval.report.page import write_report

    print(write_report(run, baseline))
    failed = 0
    for item in check_gates(run, baseline) if gate else []:
        print(f"{'passes' if item.passed else 'FAILS '}  {item}")
        failed += not item.passed
    return GATE_FAILED if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 when a gate failed, or 2 for a user error."""
    arguments = build_parser().parse_args(argv)

    def command() -> int:
        if arguments.command == "run":
            with trusting(arguments.trust):
                return score(arguments.run, arguments.overrides)
        return report(arguments.run, arguments.baseline, arguments.gate)

    return run_command(command, debug=getattr(arguments, "debug", False))


if __name__ == "__main__":
    sys.exit(main())
