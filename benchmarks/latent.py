"""A learned latent for masked diffusion (VADD, arXiv:2505.17384): is text that is written in few passes better for it?

    python benchmarks/latent.py [ARM …] [--out runs/latent] [--seed 1] [--start DIR] [--characters] [--tiny]

Trains small models on the demo's novels, each with the same tokens in the same order, on one thread:

    base            masked diffusion
    matched         masked diffusion with the two layers that the recognition model has
    latent-…        the base with a latent vector for each row; they differ in what keeps the latent from being ignored

Figures are of held-out novels: the bound in bits per byte with the KL divergence of the latent in it; the same for text
that is written in 1, 4, 8 and 16 passes, whose tokens of one pass are drawn as if independent; and text written in 4, 8
and 16 passes, of which a causal model of another seed gives nats per token. Dull text is likely text, so that is
compared at equal entropy of the unigrams, as in `benchmarks/critic.py`. Intervals are of a bootstrap over rows.

With `--start` all arms but `matched` begin with the base of a finished run, and the base goes on as they do. With
`--characters` a token is a character, and those of one pass depend on each other far more. A control comes first: rows
that are one of 16 fixed phrases, in one pass. There a latent must win, or it is not learnt.

Writes `latent.json` and `latent.md` into the directory. Finished models are not trained again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from critic import Gain, Texts, gain, passages
from latent_model import (
    RECOGNITION_LAYERS,
    Bound,
    Ints,
    LatentModel,
    Treatment,
    bound,
    train_causal,
    train_masked,
    written,
)

from configs.common.files import read_json, write_json, write_text
from configs.schema.model import Model
from configs.schema.recipe import Recipe, load
from data_prep.decontamination.evaluation_sets import read_set
from data_prep.tokens.shards import DataManifest, DocumentSpan
from data_prep.tokens.vocab import Vocab
from pretrain.batches.masked import MaskedBatches
from pretrain.batches.source import Batch, BatchSource
from pretrain.model.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
BASE, MATCHED, JUDGE = "base", "matched", "judge"
PASSES = (4, 8, 16)
BOUND_PASSES = (1, *PASSES, None)
MASKED = ["train.objective={kind: masked_diffusion}", "stages=[]"]  # from new weights
_SIZES = ["model.num_layers=3", "model.hidden_size=96", "model.num_heads=3", "model.context_length=128",
          "train.global_batch_size=16", "train.micro_batch_size=16", "train.tokens=1_000_000"]  # fmt: skip
_TINY = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=1", "model.context_length=16",
         "data.tokenizer.vocab_size=300", "data.sources.0.max_bytes=300000", "train.tokens=2_048"]  # fmt: skip
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
COMPARED = (0.8, 1.0)  # with any temperature of another model that gives the same entropy
_CHARACTERS = 'data.tokenizer={kind: char, special_tokens: ["<|endoftext|>", "<|mask|>"]}'
_RESAMPLES = 1000


@dataclass(frozen=True)
class Arm:
    """A model to train.

    Attributes:
        more_layers: beside those of the base.
        size: dimensions of the latent; 0: none.
        treatment: of the KL divergence.
    """

    name: str
    what: str
    more_layers: int = 0
    size: int = 0
    treatment: Treatment = field(default_factory=Treatment)


ARMS = (
    Arm(BASE, "no latent"),
    Arm(MATCHED, f"no latent, {RECOGNITION_LAYERS} more layers", more_layers=RECOGNITION_LAYERS),
    Arm("latent-warmup", "KL counts 0 to 1 over half the steps", size=32, treatment=Treatment(warmup=0.5)),
    Arm("latent-free", "16 nats of KL are free", size=32, treatment=Treatment(free=16.0)),
    Arm("latent-light", "KL counts 0 to 0.25 over half the steps", size=32, treatment=Treatment(0.25, warmup=0.5)),
    Arm("latent-plain", "KL counts 1 from the start", size=32),
)


@dataclass(frozen=True, eq=False)
class Held:
    """Held-out rows (B, T + 1) and the UTF-8 bytes of the targets of each (B,)."""

    rows: Ints
    sizes: Ints

    def bits_per_byte(self, nats: np.ndarray) -> float:
        """Of nats (B,)."""
        return float(nats.sum() / np.log(2) / self.sizes.sum())

    def change(self, nats: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
        """By how many bits per byte nats (B,) are more than others, with the interval of a bootstrap over rows."""
        random, difference = np.random.default_rng(0), nats - other
        chosen = random.integers(0, len(nats), (_RESAMPLES, len(nats)))
        drawn = difference[chosen].sum(axis=1) / np.log(2) / self.sizes[chosen].sum(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return self.bits_per_byte(difference), float(low), float(high)


@dataclass(eq=False)
class Measured:
    """What came out for an arm: its bounds by passes (None: any), and texts by passes; of a `shown` name."""

    arm: Arm
    parameters: int
    seconds: float | None
    bounds: dict[int | None, Bound]
    texts: dict[int, list[Texts]]
    told: dict[int, list[Texts]] = field(default_factory=dict)  # with the latent of the held-out row itself


# --------------------------------------------------------------------------------------------------------------- data
def recipe_of(out: Path, seed: int, *, tiny: bool = False, characters: bool = False) -> Recipe:
    """Masked diffusion on the demo's novels; runs of all seeds share their data."""
    overrides = [*MASKED, *_SIZES, *(_TINY if tiny else []), f"seed={1233 + seed}", "report.gates=[]"]
    overrides += [_CHARACTERS] if characters else []
    return load(
        ROOT / "configs" / "diffusion.yaml",
        [*overrides, "evaluation.samples.prompts=[]"],
        {"out": str(out / f"seed-{seed}"), "data.directory": str(out / "data")},
    )


def prepared(recipe: Recipe) -> DataManifest:
    """Prepares the data, or finds them; text as short as this needs no Ray."""
    from data_prep.stages.pipeline import prepare_inline

    return prepare_inline(recipe)


def held_out(recipe: Recipe, vocab: Vocab, count: int) -> Held:
    """Stretches of the held-out novels, evenly apart."""
    texts = [one.text for one in read_set(recipe.evaluation.perplexity[0], recipe.data.normalize)]
    rows = passages(texts, vocab, count, recipe.model.context_length + 1)
    return Held(rows, vocab.token_bytes[rows[:, 1:]].sum(axis=1))


class Phrases:
    """The control: each row is one of some phrases of random tokens behind a token that says nothing."""

    opens_with_input, windows, mask_id, vocab_size = True, 10**9, 1, 34

    def __init__(self, count: int, length: int, rows: int) -> None:
        random = np.random.default_rng(0)
        self.phrases, self.global_batch = random.integers(2, self.vocab_size, (count, length)), rows

    def rows(self, step: int, count: int) -> Ints:
        """Rows (B, T + 1)."""
        chosen = np.random.default_rng([1, step]).integers(0, len(self.phrases), count)
        return np.concatenate([np.zeros((count, 1), dtype=np.int64), self.phrases[chosen]], axis=1)

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """See `pretrain.batches.source.BatchSource`."""
        rows = torch.from_numpy(self.rows(step, self.global_batch))
        targets = rows[:, 1:].contiguous()
        return Batch(rows[:, :-1].contiguous(), targets, torch.ones(targets.shape), 0, False)

    def documents(self, step: int) -> list[list[DocumentSpan]]:
        """There are none."""
        return []


# ------------------------------------------------------------------------------------------------------------- training
def model_of(arm: Arm, config: Model, vocab_size: int, mask_id: int, seed: int) -> LatentModel:
    """A new model; the weights of the base are the same with a latent and without."""
    torch.manual_seed(seed)
    layers = config.num_layers + arm.more_layers
    return LatentModel(config.model_copy(update={"num_layers": layers}), vocab_size, mask_id, arm.size)


def trained(
    arm: Arm, recipe: Recipe, data: DataManifest, start: Path | None = None
) -> tuple[LatentModel, float | None]:
    """The model of an arm, and the processor seconds of its training; None where it was there.

    `start`: the directory of a finished run, whose base it begins with.
    """
    vocab, file = data.vocab, recipe.run_directory / f"{arm.name}.pt"
    assert vocab.mask_id is not None
    module = model_of(arm, recipe.model, vocab.size, vocab.mask_id, recipe.seed)
    if file.is_file():
        module.load_state_dict(torch.load(file, weights_only=True))
        return module.eval(), None
    if start is not None and not arm.more_layers:
        module.load_state_dict(torch.load(start / f"{BASE}.pt", weights_only=True), strict=False)
    begun = time.process_time()
    batches = MaskedBatches(BatchSource(recipe, data), vocab.mask_id, recipe.seed)
    train_masked(module, batches, recipe, steps_of(recipe), arm.treatment)
    torch.save(module.state_dict(), file)
    return module, time.process_time() - begun


def steps_of(recipe: Recipe) -> int:
    """Updates for the recipe's tokens."""
    assert recipe.train.tokens is not None
    return recipe.train.tokens // (recipe.train.global_batch_size * recipe.model.context_length)


def judge_of(recipe: Recipe, data: DataManifest) -> Transformer:
    """A causal model with more layers and another seed, which reads the same text in another order."""
    other = recipe.model_copy(update={"seed": recipe.seed + 1000})
    layers = recipe.model.num_layers + RECOGNITION_LAYERS
    torch.manual_seed(other.seed)
    model = Transformer(
        recipe.model.model_copy(update={"num_layers": layers, "causal": True}),
        recipe.model.padded_vocab(data.vocab.size),
    )
    file, batches = recipe.run_directory / f"{JUDGE}.pt", BatchSource(other, data)
    if file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    train_causal(model, batches, other, steps_of(recipe) * 3 // 2)
    torch.save(model.state_dict(), file)
    return model


# ------------------------------------------------------------------------------------------------------------ measuring
def judged(judge: Transformer, vocab_size: int, starts: Ints, ids: Ints, temperature: float) -> Texts:
    """Texts (B, length) behind their starts (B, s), with the judge's nats of each."""
    rows = torch.from_numpy(np.concatenate([starts, ids], axis=1))
    with torch.inference_mode():
        log_probs = judge.log_probs_and_entropy(rows[:, :-1], rows[:, 1:].contiguous(), vocab_size=vocab_size)[0]
    return Texts(temperature, ids, -log_probs[:, starts.shape[1] - 1 :].double().sum(dim=1).numpy())


def measured(
    arm: Arm, module: LatentModel, seconds: float | None, judge: Transformer, held: Held, samples: int, seed: int
) -> Measured:
    """Bounds of all held-out rows, and texts that begin with the first token of some of them."""
    bounds = {passes: bound(module, held.rows, passes) for passes in BOUND_PASSES}
    texts, told = dict[int, list[Texts]](), dict[int, list[Texts]]()
    rows = held.rows[:samples]
    starts, length = rows[:, :1], rows.shape[1] - 1
    noise = torch.Generator().manual_seed(seed)
    z = own = None
    if module.size:
        z = torch.randn(len(rows), module.size, generator=noise)
        with torch.inference_mode():
            posterior = module.posterior(torch.from_numpy(rows))
        assert posterior is not None
        own = posterior.draw(torch.randn(z.shape, generator=noise))

    def at(passes: int, temperature: float, latent: torch.Tensor | None) -> Texts:
        ids = written(module, starts, length, passes, temperature, latent, seed)
        return judged(judge, module.vocab_size, starts, ids, temperature)

    for passes in PASSES:
        texts[passes] = [at(passes, temperature, z) for temperature in TEMPERATURES]
        if own is not None:
            told[passes] = [at(passes, temperature, own) for temperature in COMPARED]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Measured(arm, parameters, seconds, bounds, texts, told)


@dataclass(frozen=True)
class Control:
    """Phrases in one pass: nats of a row in all, of its latent, and the share of written rows that are phrases."""

    name: str
    nats: float
    latent: float
    whole: float


def control(recipe: Recipe, steps: int, rows: int = 256) -> list[Control]:
    """Trains two models on phrases, or finds their figures; the entropy is log 16 = 2.77 nats."""
    file = recipe.run_directory / "control.json"
    if file.is_file():
        return [Control(**values) for values in read_json(file)]
    config = recipe.model.model_copy(
        update={"num_layers": 2, "hidden_size": 64, "num_heads": 2, "num_kv_heads": None, "context_length": 8}
    )
    phrases, found = Phrases(16, 8, 32), list[Control]()
    for arm in (ARMS[0], Arm("latent", "", size=8, treatment=Treatment(warmup=0.5))):
        module = model_of(arm, config, phrases.vocab_size, phrases.mask_id, recipe.seed)
        train_masked(module, MaskedBatches(phrases, phrases.mask_id, recipe.seed), recipe, steps, arm.treatment)
        one = bound(module, phrases.rows(-1 % 2**32, rows), passes=1)
        z = torch.randn(rows, arm.size, generator=torch.Generator().manual_seed(0)) if arm.size else None
        ids = written(module, np.zeros((rows, 1), dtype=np.int64), 8, 1, 1.0, z, 0)
        whole = (ids[:, None] == phrases.phrases).all(axis=-1).any(axis=1)
        found.append(Control(arm.name, float(one.nats.mean()), float(one.latent.mean()), float(whole.mean())))
    write_json(file, [asdict(one) for one in found])
    return found


# --------------------------------------------------------------------------------------------------------------- tables
def gains(one: Measured, other: Measured) -> dict[int, list[Gain]]:
    """An arm's texts beside another's at equal entropy, by passes."""
    return {
        passes: [gain(texts, other.texts[passes]) for texts in group if texts.temperature in COMPARED]
        for passes, group in one.texts.items()
    }


def bound_table(found: Sequence[Measured], held: Held) -> str:
    """Bits per byte of held-out text, by the passes in which it is written."""
    heads = ["any" if passes is None else str(passes) for passes in reversed(BOUND_PASSES)]
    lines = [f"| arm | parameters | KL (nats a row) | {' | '.join(heads)} | any, beside the base (95%) | seconds |"]
    lines += ["|---" * (len(heads) + 5) + "|"]
    base = next(one for one in found if one.arm.name == BASE)
    for one in found:
        values = [f"{held.bits_per_byte(one.bounds[passes].nats):.3f}" for passes in reversed(BOUND_PASSES)]
        change, low, high = held.change(one.bounds[None].nats, base.bounds[None].nats)
        beside = "" if one is base else f"{change:+.3f} ({low:+.3f} to {high:+.3f})"
        took = "" if one.seconds is None else f"{one.seconds:.0f}"
        latent = f"{one.bounds[None].latent.mean():.2f}" if one.arm.size else ""
        lines.append(f"| {one.arm.name} | {one.parameters:,} | {latent} | {' | '.join(values)} | {beside} | {took} |")
    return "\n".join(lines) + "\n"


def text_table(found: Sequence[Measured], beside: str) -> str:
    """The judge's nats per token of each arm's texts, and the change from another arm's texts of the same entropy."""
    lines = [
        "| text of | passes | temperature | nats | entropy | change at equal entropy | 95% interval |",
        "|---" * 7 + "|",
    ]
    other = next(one for one in found if one.arm.name == beside)
    lines[0] = lines[0].replace("change", f"change from {beside}")
    for one in (one for one in found if one is not other):
        told = Measured(one.arm, 0, None, {}, one.told)
        for name, kind in ((one.arm.name, one), (f"{one.arm.name}, z of held-out rows", told)):
            for passes, group in gains(kind, other).items():
                for at in group:
                    both = f"{at.critic:.3f} | {at.entropy:.3f} | {at.change:+.1%} | {at.low:+.1%} to {at.high:+.1%}"
                    lines.append(f"| {name} | {passes} | {at.temperature:g} | {both} |")
    return "\n".join(lines) + "\n"


def as_json(found: Sequence[Measured], held: Held) -> list[Mapping[str, object]]:
    """All figures, temperatures too."""
    return [
        {
            "arm": one.arm.name, "parameters": one.parameters, "seconds": one.seconds,
            "kl_nats_per_row": float(one.bounds[None].latent.mean()),
            "bits_per_byte": {str(passes): held.bits_per_byte(own.nats) for passes, own in one.bounds.items()},
            "texts": [
                {"passes": passes, "told": kind, "temperature": text.temperature, "nats": text.nats_per_token,
                 "entropy": text.entropy}
                for kind, group in ((False, one.texts), (True, one.told))
                for passes, texts in group.items()
                for text in texts
            ],
        }
        for one in found
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing; prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", default=[arm.name for arm in ARMS], metavar="ARM")
    parser.add_argument("--out", type=Path, default=Path("runs/latent"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, metavar="DIR", help="such as runs/latent/seed-1")
    parser.add_argument("--characters", action="store_true", help="a token is a character; give it another --out")
    parser.add_argument("--tiny", action="store_true", help="minutes of training become steps")
    given = parser.parse_args(arguments)
    if unknown := set(given.arms) - {arm.name for arm in ARMS}:
        parser.error(f"no arm {', '.join(sorted(unknown))}; choose from {', '.join(arm.name for arm in ARMS)}")
    torch.set_num_threads(1)
    recipe = recipe_of(given.out.resolve(), given.seed, tiny=given.tiny, characters=given.characters)
    recipe.run_directory.mkdir(parents=True, exist_ok=True)
    rows, samples, steps = (4, 2, 4) if given.tiny else (128, 96, 800)
    controls = control(recipe, steps)
    data = prepared(recipe)
    held, judge = held_out(recipe, data.vocab, rows), judge_of(recipe, data)
    real = judged(judge, data.vocab.size, held.rows[:samples, :1], held.rows[:samples, 1:], 1.0)
    lines = ["| phrases | nats a row in one pass | KL | rows that are phrases |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.nats:.2f} | {one.latent:.2f} | {one.whole:.1%} |" for one in controls]
    about = f"The held-out rows: {real.nats_per_token:.3f} nats a token, entropy {real.entropy:.3f}.\n"
    found = list[Measured]()
    for arm in (arm for arm in ARMS if arm.name in {BASE, *given.arms}):
        module, seconds = trained(arm, recipe, data, given.start)
        found.append(measured(arm, module, seconds, judge, held, samples, recipe.seed))
        tables = ["\n".join(lines) + "\n", bound_table(found, held)]
        tables += [text_table(found, name) for name in (BASE, MATCHED) if name in {one.arm.name for one in found}]
        write_text(recipe.run_directory / "latent.md", "\n".join([*tables, about]))
        write_json(recipe.run_directory / "latent.json", as_json(found, held))
    print((recipe.run_directory / "latent.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
