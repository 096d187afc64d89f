"""The subcommands that score a run and report it: `replica eval`, `replica report`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from configs.safety.trust import add_trust
from launch.commands.arguments import add_run, add_run_and_checkpoint, positive, run_directory
from launch.commands.command import Command


def _eval_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "overrides", metavar="a.b=value", nargs="*", default=[], help="settings that replace the run's, by their path"
    )
    add_trust(parser)
    parser.add_argument("--again", action="store_true", help="score everything again, not only changed parts")
    parser.add_argument(
        "--items",
        nargs="?",
        const="",
        metavar="PART",
        help="score nothing; show the items of the scores: of all parts, or the worst of PART, such as benchmark/piqa",
    )
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="with --items: write all items to FILE.parquet, FILE.csv or FILE.jsonl"
    )
    parser.add_argument(
        "--ranks",
        type=positive,
        metavar="N",
        help="processes on this machine (default: as many as training had, as far as there are GPUs or cores)",
    )


def replica_eval(arguments: Namespace) -> int:
    """`replica eval`: scores a checkpoint and writes results.json; with `--items`, shows what it was made of."""
    from configs.schema.recipe import load_run

    if arguments.items is not None or arguments.to is not None:
        return _show_items(load_run(arguments.run).run_directory, arguments)
    from launch.processes.evaluation import says_results

    path = _evaluate(arguments)
    if path is not None and says_results():
        print(path)
    return 0


def _evaluate(arguments: Namespace) -> Path | None:
    """Evaluates here or on ranks of this machine, or takes part as a rank that a launcher started.

    Raises:
        ValueError: when such a rank is to start ranks itself; see also `eval.suite.evaluate`.
    """
    from configs.schema.recipe import load_run
    from pretrain.checkpoint.choice import Choice
    from pretrain.parallel.ranks import is_launched

    choice = Choice(arguments.checkpoint_step, arguments.best)
    if is_launched():
        if arguments.ranks is not None:
            raise ValueError(
                "--ranks starts processes, but a launcher has started this one as a rank; leave --ranks out"
            )
        from launch.processes.evaluation_rank import evaluate_as_rank

        return evaluate_as_rank(arguments.run, arguments.overrides, choice, arguments.again)
    from launch.processes.evaluation import evaluation_ranks, score_run

    recipe = load_run(arguments.run)
    ranks = evaluation_ranks(recipe, arguments.ranks)
    return score_run(recipe.run_directory, ranks, arguments.overrides, choice, arguments.again)


def _show_items(run: Path, arguments: Namespace) -> int:
    """Prints or writes the items of the scores in results.json.

    Raises:
        ValueError: for options that choose what to score.
    """
    from eval.report.item_listing import export_items, print_items

    if arguments.items is None:
        raise ValueError("--to writes items; give --items too")
    others = {"--step": arguments.checkpoint_step is not None, "--best": arguments.best, "--again": arguments.again}
    given = [name for name, is_given in others.items() if is_given] + arguments.overrides[:1]
    if given:
        raise ValueError(
            f"--items shows the items of the scores in {run}/results.json and scores nothing: leave out {given[0]}, or "
            "score first"
        )
    if arguments.to is None:
        print_items(run, arguments.items)
    else:
        count = export_items(run, arguments.items, arguments.to)
        print(f"{arguments.to}: {count:,} items")
    return 0


EVAL = Command(
    "eval",
    "Score a checkpoint, by default the newest; write results.json.",
    "replica eval runs/demo --best",
    _eval_arguments,
    replica_eval,
    resumes=True,
)


def _report_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    against = parser.add_mutually_exclusive_group()
    against.add_argument(
        "--baseline", metavar="RUN", type=run_directory, help="compare with this run (default: report.baseline)"
    )
    against.add_argument("--first", action="store_true", help="no baseline exists yet: leave gates that need one open")
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a gate of the recipe fails")
    parser.add_argument(
        "--junit", metavar="FILE", type=Path, help="also write gates and scores as JUnit XML, for CI's test reporters"
    )
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, help="also copy what a later --baseline needs: scores, items, report"
    )


def replica_report(arguments: Namespace) -> int:
    """`replica report`: writes the page and the Markdown summary; with `--gate`, returns 1 when a gate failed."""
    from configs.schema.recipe import load_run
    from eval.report.keep_results import keep_results
    from launch.headlines import print_verdict
    from launch.run_stages import report_stage

    try:
        run = load_run(arguments.run).run_directory
        report_stage(run, arguments.baseline)
        code = print_verdict(run, arguments.junit, arguments.baseline, arguments.first)
        if arguments.keep is not None:
            keep_results(run, arguments.keep)
    except Exception as error:
        if arguments.junit is not None:
            from eval.report.junit import write_junit_of_error

            write_junit_of_error(arguments.junit, arguments.run, error)
        raise
    return code if arguments.gate else 0


REPORT = Command(
    "report",
    "Write report/index.html and report/report.md.",
    "replica report runs/demo --gate",
    _report_arguments,
    replica_report,
)
