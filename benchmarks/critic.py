"""A critic among candidates: does it make text that a third model finds likelier, and that is as varied?

    python benchmarks/critic.py MASKED CRITIC JUDGE [--out FILE.json] [--samples 64] [--tokens 128] [--steps 16]
        [--candidates 8] [--order random]

MASKED is a run of masked diffusion, CRITIC and JUDGE are causal runs of the same tokenizer, trained with other seeds.
Passages of the first perplexity set of MASKED's recipe are continued in few passes, with and without the critic. The
judge gives nats per token. Dull text is likely text, so what is compared is at equal entropy of the unigrams: without a
critic the temperature goes from low to high, and its nats are interpolated at the entropy that the critic's text has.
Intervals are of a bootstrap over passages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from configs.common.files import write_json
from configs.schema.denoising import Denoising
from configs.schema.recipe import find_run, load_run
from data_prep.decontamination.evaluation_sets import read_set
from data_prep.tokens.vocab import Vocab
from eval.reading.reader import LocalReader
from eval.reading.windows import Window
from launch.models.infilling import open_critic
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.load_weights import load_weights
from pretrain.denoising.candidates import CriticDenoiser
from pretrain.denoising.denoise import Denoiser
from pretrain.denoising.predictor import predictor_of
from pretrain.generation.player import Request
from pretrain.generation.sampling import Sampling

ALONE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)  # temperatures without a critic
JUDGED = (0.7, 0.8, 0.9, 1.0)
_PROMPT, _RESAMPLES, _SEED = 32, 500, 1234

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts of one setting: ids (samples, tokens), and the judge's nats of each (samples,)."""

    temperature: float
    ids: Ints
    nats: Floats

    def of(self, chosen: Ints) -> Texts:
        """A resample."""
        return Texts(self.temperature, self.ids[chosen], self.nats[chosen])

    @property
    def nats_per_token(self) -> float:
        """The mean of the judge's nats."""
        return float(self.nats.sum() / self.ids.size)

    @property
    def entropy(self) -> float:
        """Nats of the distribution of all tokens, whatever their places."""
        counts = np.bincount(self.ids.ravel())
        shares = counts[counts > 0] / self.ids.size
        return float(-(shares * np.log(shares)).sum())


@dataclass(frozen=True)
class Gain:
    """The judge's nats per token with a critic and, at the same entropy, without; the relative change with interval."""

    temperature: float
    entropy: float
    critic: float
    alone: float
    change: float
    low: float
    high: float


def at_entropy(alone: Sequence[Texts], entropy: float) -> float:
    """Nats per token without a critic at an entropy; NaN beyond the temperatures that were tried."""
    points = sorted((one.entropy, one.nats_per_token) for one in alone)
    xs, ys = zip(*points, strict=True)
    return float(np.interp(entropy, xs, ys, left=np.nan, right=np.nan))


def gain(judged: Texts, alone: Sequence[Texts]) -> Gain:
    """Compares at equal entropy. NaN where no temperature gives that entropy without a critic."""

    def change(chosen: Ints) -> float:
        own, others = judged.of(chosen), [one.of(chosen) for one in alone]
        return own.nats_per_token / at_entropy(others, own.entropy) - 1

    count, random = len(judged.ids), np.random.default_rng(_SEED)
    resampled = [change(random.integers(0, count, count)) for _ in range(_RESAMPLES)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5]) if not np.isnan(resampled).all() else (np.nan, np.nan)
    other = at_entropy(alone, judged.entropy)
    whole = judged.nats_per_token / other - 1
    return Gain(judged.temperature, judged.entropy, judged.nats_per_token, other, whole, float(low), float(high))


def written(denoiser: Denoiser, judge: LocalReader, prompts: Ints, tokens: int, temperature: float) -> Texts:
    """Continues prompts (samples, n) by `tokens` tokens each, and has them judged."""
    samplings = [Sampling(temperature, seed=number) for number in range(len(prompts))]
    answers = denoiser.run([Request(row.tolist(), tokens, own) for row, own in zip(prompts, samplings, strict=True)])
    ids = np.array([answer.ids for answer in answers])
    scores = judge.score([Window(row, tokens) for row in np.concatenate([prompts, ids], axis=1)])
    return Texts(temperature, ids, np.array([score.nats for score in scores]))


def passages(texts: Sequence[str], vocab: Vocab, count: int, length: int) -> Ints:
    """Beginnings (count, length) of passages that lie evenly apart in some texts."""
    ids = np.array([token for text in texts for token in vocab.encode(text)], dtype=np.int64)
    if len(ids) < count * length:
        raise ValueError(f"the text has {len(ids):,} tokens, too few for {count} passages of {length}; ask for fewer")
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return np.stack([ids[start : start + length] for start in starts])


def table(alone: Sequence[Texts], judged: Sequence[Texts], gains: Sequence[Gain]) -> str:
    """A Markdown table of all settings, and one of the comparison."""
    lines = ["| critic | temperature | judge's nats per token | entropy of unigrams (nats) |", "|---|---|---|---|"]
    for name, group in (("no", alone), ("yes", judged)):
        lines += [f"| {name} | {one.temperature:g} | {one.nats_per_token:.3f} | {one.entropy:.3f} |" for one in group]
    lines += [
        "",
        "| critic at temperature | entropy | with critic | without, at this entropy | change | 95% interval |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for one in gains:
        lines.append(
            f"| {one.temperature:g} | {one.entropy:.3f} | {one.critic:.3f} | {one.alone:.3f} | {one.change:+.1%} | "
            f"{one.low:+.1%} to {one.high:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("masked", "critic", "judge"):
        parser.add_argument(name, type=find_run)
    parser.add_argument("--out", type=Path)
    for name, value in (("samples", 64), ("tokens", 128), ("steps", 16), ("candidates", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--order", choices=["random", "confidence"], default="random")
    options = parser.parse_args()
    checkpoint = choose_checkpoint(options.masked, Choice())
    vocab, recipe = Vocab.load(checkpoint.tokenizer), load_run(options.masked)
    critic = open_critic(options.critic, checkpoint, vocab)
    open_critic(options.judge, checkpoint, vocab)  # the same must hold of the judge
    judge = LocalReader(load_weights(choose_checkpoint(options.judge, Choice())), vocab.size)
    texts = [one.text for one in read_set(recipe.evaluation.perplexity[0], recipe.data.normalize)]
    prompts = passages(texts, vocab, options.samples, _PROMPT)
    plan = Denoising(steps=options.steps, order=options.order, block=options.tokens)
    predictor = predictor_of(load_weights(checkpoint), vocab)
    plain = Denoiser(predictor, vocab.size, plan)
    choosing = CriticDenoiser(critic, options.candidates, predictor, vocab.size, plan)
    sides = [(plain, temperature) for temperature in ALONE] + [(choosing, temperature) for temperature in JUDGED]
    texts_of = []
    for number, (denoiser, temperature) in enumerate(sides, start=1):
        texts_of.append(written(denoiser, judge, prompts, options.tokens, temperature))
        print(f"{number} of {len(sides)} settings", file=sys.stderr, flush=True)
    alone, judged = texts_of[: len(ALONE)], texts_of[len(ALONE) :]
    gains = [gain(one, alone) for one in judged]
    print(table(alone, judged, gains))
    if options.out is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        settled = json.loads(json.dumps([asdict(one) for one in gains]).replace("NaN", "null"))
        write_json(options.out, {"settings": settings, "gains": settled})


if __name__ == "__main__":
    main()
