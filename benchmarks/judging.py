"""Simulates voters with known strengths, and counts how often the intervals of `replica judge` hold the truth.

python benchmarks/judging.py            # about 6 minutes on two cores; --times 100 for a look

Each case draws voters anew many times. Where prompts and raters differ, the truth is the strength in the votes of
4,000 prompts and 200 raters: what is estimated is the mean over prompts and raters, not one rater's taste.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eval.people.davidson import ELO, PairVotes, fit
from eval.people.intervals import intervals
from tests.parts.voters import simulate

GAMMA, LOG_NU = 0.2, -0.5
# models' strengths, prompts, raters, spread of prompts and raters
CASES = (
    ((0.3, -0.3), 100, 1, 0.0),
    ((0.3, -0.3), 400, 1, 0.0),
    ((0.6, 0.2, -0.2, -0.6), 50, 1, 0.0),
    ((0.6, 0.2, -0.2, -0.6), 50, 3, 0.0),
    ((0.4, 0.0, -0.4), 40, 6, 0.0),
    ((0.4, 0.0, -0.4), 40, 6, 0.3),
    ((0.4, 0.0, -0.4), 40, 12, 0.3),
)


def truth(theta: tuple[float, ...], spread: float) -> np.ndarray:
    """Strengths and effect of position over very many prompts and raters, of shape (models + 1,)."""
    if spread == 0:
        return np.array([*(np.array(theta) - np.mean(theta)), GAMMA])
    votes = simulate(np.random.default_rng(987654321), theta, GAMMA, LOG_NU, 4000, 200, spread)
    keys = votes.left * 1000 + votes.right * 10 + votes.outcome
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    few = PairVotes(*(getattr(votes, name)[first] for name in PairVotes.__dataclass_fields__))
    found = fit(few, len(theta), counts[None].astype(np.float64))
    return np.array([*found.theta[0], found.gamma[0]])


def cover(case: tuple[tuple[float, ...], int, int, float], times: int, samples: int) -> str:
    """One row of the table."""
    theta, prompts, raters, spread = case
    true, hits, width = truth(theta, spread), np.zeros(len(theta) + 1), 0.0
    for time in range(times):
        votes = simulate(np.random.default_rng(time), theta, GAMMA, LOG_NU, prompts, raters, spread)

        def estimates(weights: np.ndarray, votes: PairVotes = votes) -> np.ndarray:
            found = fit(votes, len(theta), weights)
            apart = found.theta[:, :1] - found.theta[:, -1:]
            return np.concatenate([found.theta, found.gamma[:, None], apart], axis=1)

        *found, apart = intervals(estimates, votes.prompt, votes.rater if raters >= 5 else None, samples)
        for number, bounds in enumerate(found):
            low, high = bounds or (true[number], true[number])
            hits[number] += low <= true[number] <= high
        assert apart is not None
        width += (apart[1] - apart[0]) / 2 * ELO
    shares = hits / times
    return (
        f"| {len(theta)} | {prompts} | {raters} | {spread:g} | {shares[:-1].mean():.1%} | {shares[:-1].min():.1%} | "
        f"{shares[-1]:.1%} | ±{width / times:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=500, help="simulations of each case (default: 500)")
    parser.add_argument("--samples", type=int, default=400, help="resamples of each interval (default: 400)")
    arguments = parser.parse_args()
    print(
        "| models | prompts | raters | spread | strengths held | the worst | position held | first against last, Elo |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        print(cover(case, arguments.times, arguments.samples), flush=True)


if __name__ == "__main__":
    main()
