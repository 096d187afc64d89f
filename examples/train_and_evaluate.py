"""Loads a recipe, prepares its data, trains and evaluates: what `replica run` does, from Python.

python examples/train_and_evaluate.py            # writes runs/tiny
"""

from __future__ import annotations

from pathlib import Path

from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare
from eval.results import load_results
from eval.suite import evaluate
from launch.run_stages import working_in
from pretrain.train import train

HERE = Path(__file__).parent


def main(*overrides: str) -> float:
    """Runs the tiny recipe; returns the bits per byte of the held-out text."""
    # A recipe is a YAML file. Overrides are the words that the command line takes too: `train.steps=50`.
    recipe = load(HERE / "tiny.yaml", overrides)

    # Inside, nobody else writes to the run directory, and the resolved recipe lies in it.
    with working_in(recipe):
        # Text to tokens. Ray starts with one worker for each core; with the same recipe again there is nothing to do.
        data = prepare(recipe)
        print(
            f"{sum(source.tokens for source in data.train):,} tokens to train on, {data.vocab_size} in the vocabulary"
        )

        # One process, one rank. The newest checkpoint of the run directory is where it goes on from.
        train(recipe)

        # Scores the newest checkpoint; everything that was measured lies in results.json.
        evaluate(recipe.run_directory)
    score = load_results(recipe.run_directory).by_name()["perplexity/heldout/bits_per_byte"].value
    print(f"{score:.3f} bits per byte; all scores: {recipe.run_directory}/results.json")
    return score


if __name__ == "__main__":
    main()
