"""Parses the command line of `replica`. `launch/commands.py` has the functions of its subcommands."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.common.exit_codes import CONTINUES, add_debug, run_command
from configs.common.versions import own_version
from configs.safety.trust import add_trust, trusting
from configs.schema.shipped import shipped_recipes

_OVERRIDE = re.compile(r"^[A-Za-z_][\w.-]*=")
Add = Callable[[argparse.ArgumentParser], None]


# ------------------------------------------------------------------------------------------------- groups of arguments
def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe, such as demo")
    parser.add_argument(
        "overrides",
        metavar="a.b=value",
        nargs="*",
        default=[],
        help="settings that replace the recipe's, by their path",
    )


def _recipe_and_out(parser: argparse.ArgumentParser) -> None:
    _recipe(parser)
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    add_trust(parser)


def _stage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", metavar="NAME", help="this stage of the recipe, not its base")


def _data(parser: argparse.ArgumentParser) -> None:
    _recipe_and_out(parser)
    _stage(parser)
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="try the rules on N documents of every source, and write a page with the effects",
    )
    _ray(parser)


def _ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ray-address", metavar="ADDRESS", help="prepare data on this Ray cluster (see launch/ray.sh)")


def _all(parser: argparse.ArgumentParser) -> None:
    _ranks(parser)
    _ray(parser)


def _ranks(parser: argparse.ArgumentParser) -> None:
    _recipe_and_out(parser)
    parser.add_argument(
        "--ranks",
        "--num_accelerators",
        "--num_gpus",
        dest="ranks",
        type=int,
        metavar="N",
        help="processes on this machine (default: train.ranks, else one per GPU, else one)",
    )


def _train(parser: argparse.ArgumentParser) -> None:
    _ranks(parser)
    _stage(parser)
    parser.add_argument("--supervise", action="store_true", help="start again after a crash, a killed rank or a hang")
    restart_options(parser)


def restart_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--restarts` and `--pause`, the options of commands that restart training by themselves."""
    parser.add_argument(
        "--restarts", type=_count, default=3, metavar="K", help="give up after K restarts without progress (default: 3)"
    )
    parser.add_argument(
        "--pause", type=_seconds, default=5.0, metavar="SECONDS", help="wait before restarts (default: 5)"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return number


def _share(text: str) -> float:
    share = _number(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a probability above 0 and up to 1, got {text!r}")
    return share


def _seed(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from -2**63 to 2**63 - 1, got {text!r}")
    return int(text)


def _utf8(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # Python decodes bytes that are not UTF-8 to these
        raise argparse.ArgumentTypeError("expected text in UTF-8")
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected seconds, such as 5 or 0.5, got {text!r}")
    return float(text)


def run_directory(text: str) -> Path:
    """Returns the run directory that an argument names, `RUN` or `RUN:STAGE`; the type of every such argument."""
    from configs.schema.recipe import RecipeError, find_run

    try:
        return find_run(text)
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        type=run_directory,
        help="run directory, such as runs/demo; RUN:STAGE for one of its stages",
    )


def _run_and_checkpoint(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--step", dest="checkpoint_step", type=_count, metavar="N", help="use the checkpoint of step N, not the newest"
    )
    choice.add_argument("--best", action="store_true", help="use the checkpoint with the lowest validation loss")


def _eval(parser: argparse.ArgumentParser) -> None:
    _run_and_checkpoint(parser)
    parser.add_argument(
        "overrides", metavar="a.b=value", nargs="*", default=[], help="settings that replace the run's, by their path"
    )
    add_trust(parser)
    parser.add_argument("--again", action="store_true", help="score everything again, not only changed parts")


def _report(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--baseline", metavar="RUN", type=run_directory, help="compare with this run")
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a gate of the recipe fails")


def _export(parser: argparse.ArgumentParser) -> None:
    _run_and_checkpoint(parser)
    parser.add_argument(
        "directory", metavar="TARGET", type=Path, help="a directory for Hugging Face, or a FILE.gguf for llama.cpp"
    )
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="dtype of the weights (default: fp32)"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="maximum file size (default: 5GB)")
    parser.add_argument(
        "--verify", action="store_true", help="compare logits and ids with transformers; exit with 1 when they differ"
    )


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="Hugging Face directory (GPT-2, Llama, Qwen3)")
    parser.add_argument("--out", metavar="RUN", type=Path, help="new run directory (default: runs/<name of DIR>)")
    parser.add_argument("--recipe", metavar="RECIPE", help="use the evaluation section of this recipe")


def _sample(parser: argparse.ArgumentParser) -> None:
    _run_and_checkpoint(parser)
    parser.add_argument("--prompt", type=_utf8, required=True, help="text to continue")
    parser.add_argument(
        "--max-new-tokens", type=_count, default=200, metavar="N", help="generate at most N tokens (default: 200)"
    )
    parser.add_argument(
        "--temperature", type=_number, default=0.8, metavar="T", help="0: always the likeliest token (default: 0.8)"
    )
    parser.add_argument("--top-k", type=_count, metavar="K", help="sample among the K likeliest tokens (0: all)")
    parser.add_argument(
        "--top-p", type=_share, metavar="P", help="sample among the likeliest tokens whose probabilities add up to P"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="S", help="the same seed gives the same text (default: 0)"
    )


def _chat(parser: argparse.ArgumentParser) -> None:
    _run_and_checkpoint(parser)
    parser.add_argument(
        "--once", type=_utf8, metavar="TEXT", help="print the answer to TEXT alone (default: converse in a terminal)"
    )
    parser.add_argument("--system", type=_utf8, metavar="TEXT", help="system text (default: chat.system of the recipe)")
    parser.add_argument(
        "--temperature", type=_number, default=0.8, metavar="T", help="0: always the likeliest token (default: 0.8)"
    )
    parser.add_argument("--top-k", type=_count, metavar="K", help="sample among the K likeliest tokens (0: all)")
    parser.add_argument(
        "--top-p", type=_share, metavar="P", help="sample among the likeliest tokens whose probabilities add up to P"
    )
    parser.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="longest answer, in tokens (default: what fits the context)"
    )
    parser.add_argument(
        "--seed", type=_seed, metavar="S", help="the same seed gives the same answers (default: another each time)"
    )


def _serve(parser: argparse.ArgumentParser) -> None:
    _run_and_checkpoint(parser)
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="port; 0: a free one (default: 8000)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this machine)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name by which clients call this server"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="key that clients send (default: $REPLICA_API_KEY, else none)"
    )
    parser.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="longest answer, in tokens (default: what fits the context)"
    )
    parser.add_argument(
        "--rows", type=_positive, default=32, metavar="N", help="answers decoded at a time (default: 32)"
    )
    parser.add_argument(
        "--waiting", type=_count, default=64, metavar="N", help="requests that may wait for a row (default: 64)"
    )


def _trace(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--stage", metavar="NAME", help="this stage of the run, as RUN:NAME")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="training step, counted from 1")
    parser.add_argument(
        "--sample", type=_count, metavar="K", help="show answer K of the step in full, with each reward (grpo, ppo)"
    )


def _show(parser: argparse.ArgumentParser) -> None:
    _recipe_and_out(parser)
    _stage(parser)
    parser.add_argument("--run-directory", action="store_true", help="print only the run directory")


def _plan(parser: argparse.ArgumentParser) -> None:
    _recipe(parser)
    _stage(parser)
    parser.add_argument("--gpus", metavar="NxNAME", help="GPUs of a node, such as 8xH100 (default: this machine)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument("--price", type=float, metavar="P", help="price of one GPU for an hour")
    parser.add_argument("--probe", action="store_true", help="measure up to 20 steps on this machine")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="also check this recipe's run directory and its disk"
    )
    parser.add_argument(
        "overrides",
        metavar="a.b=value",
        nargs="*",
        default=[],
        help="settings that replace the recipe's, by their path",
    )
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes on this machine (default: as in training)")
    parser.add_argument("--nodes", type=int, metavar="N", help="fail unless N nodes report")
    parser.add_argument("--quick", action="store_true", help="use small messages and files, one rank a node")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE")


def _sweep(parser: argparse.ArgumentParser) -> None:
    _recipe_and_out(parser)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--depths", metavar="N,…", help="train models with these numbers of layers, predict the next one"
    )
    choice.add_argument(
        "--sizes", metavar="N,…", help="train models of these sizes, such as 1M,3M,10M, predict the next"
    )
    choice.add_argument("--vary", metavar="a.b=x,y", action="append", help="compare values of a setting; twice: a grid")
    parser.add_argument("--check", action="store_true", help="also train the predicted size, and compare")


def _tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["compare"], help="compare vocabularies")
    _recipe(parser)
    parser.add_argument(
        "--sizes", default="8k,16k,32k", metavar="N,…", help="BPE vocabulary sizes (default: 8k,16k,32k)"
    )
    parser.add_argument("--kinds", default="bpe", metavar="KIND,…", help="any of bpe, char, byte, kmer (default: bpe)")
    parser.add_argument(
        "--files",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="also compare these tokenizer.json files",
    )
    parser.add_argument(
        "--sample-bytes", type=int, default=10_000_000, metavar="N", help="bytes to read (default: 10000000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")


# name -> (description, example, function that adds the arguments)
COMMANDS: dict[str, tuple[str, str, Add]] = {
    "run": (
        "Run all stages: data, training, evaluation, report. Skip those whose inputs did not change.",
        "replica run demo --out runs/mine train.steps=200",
        _all,
    ),
    "data": (
        "Turn raw text into clean, deduplicated, counted documents, a tokenizer and token shards.",
        "replica data demo --sample 200",
        _data,
    ),
    "tokenizer": (
        "Compare vocabularies on a sample of the recipe's own text, before choosing one.",
        "replica tokenizer compare demo --sizes 2k,4k --kinds bpe,byte",
        _tokenizer,
    ),
    "train": (
        "Train; continue from the newest checkpoint if there is one.",
        "replica train demo --ranks 2 --supervise train.optimizer.lr=3e-4",
        _train,
    ),
    "eval": ("Score a checkpoint, by default the newest; write results.json.", "replica eval runs/demo --best", _eval),
    "report": ("Write report/index.html and report/report.md.", "replica report runs/demo --gate", _report),
    "export": (
        "Write a run's model as a Hugging Face directory or a GGUF file.",
        "replica export runs/demo exported/demo --dtype bf16 --verify",
        _export,
    ),
    "import": (
        "Make a run directory from a Hugging Face directory, for `eval` and `sample`.",
        "replica import exported/demo --out runs/imported --recipe demo",
        _import,
    ),
    "sample": ("Continue a prompt, token by token.", 'replica sample runs/demo --prompt "It was"', _sample),
    "chat": ("Talk to a model in the terminal.", "replica chat runs/assistant:sft --temperature 0", _chat),
    "serve": (
        "Serve a model: a web page, and an API that OpenAI's clients understand.",
        "replica serve runs/assistant:sft --port 8000",
        _serve,
    ),
    "trace": (
        "List the documents, conversations, pairs or answers of a training step; explain the reward of an answer.",
        "replica trace runs/demo --step 10",
        _trace,
    ),
    "doctor": (
        "Check versions, devices, links between ranks, disks, clocks, limits; exit with 1 when one will break a run.",
        "replica doctor demo --ranks 2",
        _doctor,
    ),
    "sweep": (
        "Train several sizes, fit loss against compute, predict the next size; or compare settings.",
        "replica sweep demo --depths 1,2,3 train.tokens_per_parameter=2",
        _sweep,
    ),
    "plan": (
        "Predict a run's memory by part and ZeRO stage, and its time, cost and data.",
        "replica plan llama-8b --gpus 8xH100 --nodes 8 --price 2.5",
        _plan,
    ),
    "show": (
        "Show the resolved recipe with every default, and where each value comes from.",
        "replica show demo model.num_layers=2",
        _show,
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="replica",
        description="Train a GPT from raw text, evaluate it and report the results.",
        epilog="Example: replica run demo   (help on one command: replica run --help)",
    )
    parser.add_argument("--version", action="version", version=f"replica {own_version()}")
    add_debug(parser)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (description, example, add_arguments) in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=description, description=description, epilog=f"Example: {example}", allow_abbrev=False
        )
        add_arguments(subparser)
        add_debug(subparser)
    return parser


def _recipe_before_files(argv: Sequence[str]) -> list[str]:
    """Moves the recipe out of the list of files in `tokenizer compare --files A B RECIPE`, as argparse cannot."""
    if list(argv[:2]) != ["tokenizer", "compare"]:
        return list(argv)
    among_files, known, moved, rest = False, shipped_recipes(), [], []
    for item in argv[2:]:
        if item.startswith("-"):
            among_files = item == "--files"
        if among_files and (item.endswith((".yaml", ".yml")) or item in known or _OVERRIDE.match(item)):
            moved.append(item)
        else:
            rest.append(item)
    return [*argv[:2], *moved, *rest]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line. Overrides may be given anywhere after the command."""
    parser = build_parser()
    arguments, left = parser.parse_known_args(_recipe_before_files(argv))
    overrides = [item for item in left if _OVERRIDE.match(item)]
    unknown = [item for item in left if item not in overrides]
    if unknown or (overrides and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (see `configs/common/exit_codes.py`)."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    resumes = arguments.command in {"run", "data", "train", "eval", "sweep"}

    def command() -> int:
        from launch import commands  # here, so that --help and mistakes in the command line cost nothing

        implementation: Callable[[argparse.Namespace], int] = getattr(commands, f"replica_{arguments.command}")
        with trusting(getattr(arguments, "trust", [])):
            return implementation(arguments)

    return run_command(command, getattr(arguments, "debug", False), CONTINUES if resumes else "stopped")


if __name__ == "__main__":
    sys.exit(main())
