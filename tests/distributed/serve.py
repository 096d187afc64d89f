"""One rank of a group that stays: does what each line of its standard input asks for, and answers `done`.

A line names a module beside this one and recipe files: `{"work": "train_many", "recipes": […]}`. What training prints
goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from pretrain import session  # noqa: F401 (what all work needs is imported before objects are set apart)
from pretrain.engine.engine import connected
from pretrain.parallel.ranks import find_ranks


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        gc.freeze()  # torch's and DeepSpeed's objects: each run would walk over them
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
