"""One rank of a group that stays: does what each line of its standard input asks for, and answers `done`.

A line names a module beside this one and recipe files: `{"work": "train_many", "recipes": […]}`. What training prints
goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from pretrain.engine.connection import connected
from pretrain.parallel.ranks import find_ranks


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        ranks = find_ranks()
        with connected(ranks):  # once: gloo cannot join twice through the same port
            for line in sys.stdin:
                order = json.loads(line)
                work = importlib.import_module(f"tests.distributed.{order['work']}")
                try:
                    work.main(ranks, [Path(recipe) for recipe in order["recipes"]])
                    answer = "done"
                except Exception:
                    traceback.print_exc()
                    answer = "failed"
                print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
