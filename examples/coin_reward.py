"""A control: a reward that knows nothing. An answer gets 1 or 0 by a coin that its own text tosses.

Reinforcement learning that gains by such a reward would gain by training as such, not by what the reward says:

    replica train assistant --stage grpo --trust examples CONTROL

with the stage's directory moved away, after `replica data` with the same words. `CONTROL` is
`stages.grpo.objective.rewards={custom: [{code: examples/coin_reward.py:coin}]}`.
"""

from __future__ import annotations

import hashlib


def coin(text: str, reference: str | None) -> float:
    """Returns 1 for half of all texts, whatever the reference is."""
    return float(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1)


def main() -> None:
    """Prints what right and wrong answers to sums get on average: the same, but for chance."""
    for name, wrong in (("right", 0), ("wrong", 10)):
        rewards = [coin(f"{a} + {b}\n#### {a + b + wrong}", str(a + b)) for a in range(100) for b in range(100, 200)]
        print(f"{name} answers: {sum(rewards) / len(rewards):.2f}")


if __name__ == "__main__":
    main()
