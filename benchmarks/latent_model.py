"""A masked model with a latent vector for each row, its loss and bounds, and text written with it in few passes.

After VADD (arXiv:2505.17384). A recognition model reads the clean row and says where its latent z lies: a Gaussian
with mean and deviation of their own for each dimension. The model gets z, projected to its width and added to every
embedding, and predicts what is hidden. The prior of z is a standard Gaussian. For each z there is a bound of masked
diffusion, so

    E_q[bound given z] + KL(q || prior)  >=  -log p(row),

and the sum stands beside the bound of a model without a latent. z is drawn once for a row and stays in all passes (the
sampler that the paper calls VADD-CS). VADD's recognition model reads the masked row too; here one z must serve all
passes, so it reads the clean row alone.

Shapes: B rows, T positions, D width, Z dimensions of the latent, N hidden tokens, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.model import Model
from configs.schema.recipe import Recipe
from pretrain.batches.masked import MaskedBatches, evenly_apart, masked, random_order
from pretrain.batches.source import Batch, BatchSource
from pretrain.denoising.predictor import LOWEST
from pretrain.model.transformer import Transformer
from pretrain.optimizer.groups import build_optimizer
from pretrain.optimizer.schedule import learning_rate

RECOGNITION_LAYERS = 2

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Treatment:
    """What keeps a latent from being ignored.

    Attributes:
        weight: of the KL divergence in the loss, after the warm-up. The bound that is reported has weight 1.
        warmup: share of the steps in which the weight rises from 0.
        free: nats of a row's KL divergence that cost nothing, the same for each dimension (arXiv:1606.04934).
    """

    weight: float = 1.0
    warmup: float = 0.0
    free: float = 0.0

    def cost(self, divergences: Tensor, progress: float) -> Tensor:
        """The term of the loss, in nats of all rows: divergences (B, Z), and the share of the steps that are done."""
        weight = self.weight * (min(1.0, progress / self.warmup) if self.warmup else 1.0)
        rows, size = divergences.shape
        return weight * rows * divergences.mean(dim=0).clamp(min=self.free / size).sum()


@dataclass(frozen=True, eq=False)
class Posterior:
    """Where the latents of rows lie: mean and logarithm of the deviation, (B, Z) each."""

    mean: Tensor
    log_std: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Latents (B, Z) by standard normal numbers (B, Z)."""
        return self.mean + self.log_std.exp() * noise

    @property
    def divergences(self) -> Tensor:
        """KL divergence of each dimension from a standard Gaussian, nats (B, Z)."""
        return 0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1) - self.log_std


class Recognition(nn.Module):
    """Reads clean rows from both sides; the mean of its last states gives the posterior.

    Its embedding is the model's own, so that two blocks are most of what it adds.
    """

    def __init__(self, model: Transformer, size: int) -> None:
        super().__init__()
        # A row has one token more than the model has inputs: the last target.
        layers = {"num_layers": RECOGNITION_LAYERS, "context_length": model.config.context_length + 1}
        self.reader = Transformer(model.config.model_copy(update={**layers, "causal": False}), model.vocab_size)
        self.reader.embed, self.reader.lm_head = model.embed, None
        self.gaussian = nn.Linear(model.config.hidden_size, 2 * size)
        # Latents that differ from row to row at first: the model soon ignores what is mostly noise.
        nn.init.normal_(self.gaussian.weight[:size], std=model.config.hidden_size**-0.5)
        nn.init.zeros_(self.gaussian.weight[size:])
        nn.init.zeros_(self.gaussian.bias[:size])
        nn.init.constant_(self.gaussian.bias[size:], -1.0)

    def forward(self, rows: Tensor) -> Posterior:
        """Of clean rows (B, T + 1)."""
        mean, log_std = self.gaussian(self.reader.backbone(rows).mean(dim=1)).chunk(2, dim=-1)
        return Posterior(mean, log_std)


class LatentModel(nn.Module):
    """A masked model, with a latent where `size` is not 0."""

    def __init__(self, config: Model, vocab_size: int, mask_id: int, size: int = 0) -> None:
        """`vocab_size`: number of ids of the tokenizer; those that pad the embedding are never drawn."""
        super().__init__()
        self.model = Transformer(config, config.padded_vocab(vocab_size))
        self.vocab_size, self.mask_id, self.size = vocab_size, mask_id, size
        self.recognition = Recognition(self.model, size) if size else None
        self.condition = nn.Linear(size, config.hidden_size, bias=False) if size else None
        if self.condition is not None:
            nn.init.normal_(self.condition.weight, std=config.init_std)

    def states(self, tokens: Tensor, z: Tensor | None) -> Tensor:
        """States (B, T, D) of `Transformer.backbone`, with z (B, Z) in every embedding."""
        model = self.model
        x = model.embed(tokens)
        if self.condition is not None:
            assert z is not None
            # As large as an embedding at first. A latent that drowns the tokens keeps the model from learning to read.
            x = x + self.condition(z).unsqueeze(1) * self.size**-0.5
        assert model.position is None, "positions are rotations here"
        rotation = model._rotation(torch.arange(tokens.shape[1]), x.dtype)
        first_values: Tensor | None = None
        for block in model.blocks:
            x, first_values = block(x, rotation, None, None, first_values)
        out: Tensor = model.norm(x)
        return out

    def hidden_nats(self, batch: Batch, z: Tensor | None, *, trained: bool = False) -> Tensor:
        """Weighted nats (B,) of the hidden targets. In training the mask stays in the softmax, as in the recipes."""
        weights = batch.weights
        rows, _ = places = weights.nonzero(as_tuple=True)
        logits = self.model.head(self.states(batch.tokens, z)[places]).float()
        if not trained:
            logits = self.allowed(logits)
        nats = F.cross_entropy(logits, batch.targets[places], reduction="none") * weights[places]
        return torch.zeros(len(weights)).index_add(0, rows, nats)

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits (N, V) without the mask and padding, as `pretrain.denoising.predictor` gives them."""
        logits = logits[:, : self.vocab_size]
        logits[:, self.mask_id] = LOWEST
        return logits

    def posterior(self, rows: Tensor) -> Posterior | None:
        """Of clean rows (B, T + 1); None without a latent."""
        return None if self.recognition is None else self.recognition(rows)


def clean_rows(batch: Batch) -> Tensor:
    """Rows (B, T + 1) behind a batch of masked stretches: the first input is always seen, the others are targets."""
    return torch.cat([batch.tokens[:, :1], batch.targets], dim=1)


def train(module: nn.Module, recipe: Recipe, steps: int, loss: Callable[[int], Tensor]) -> None:
    """Trains by the recipe's optimizer and schedule; `loss` of a step in nats per target."""
    optimizer, settings = build_optimizer(module, recipe.train.optimizer), recipe.train
    module.train()
    for step in range(steps):
        rate = learning_rate(settings.schedule, settings.optimizer.lr, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        optimizer.zero_grad()
        torch.autograd.backward(loss(step))
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.grad_clip)
        optimizer.step()
    module.eval()


def train_masked(module: LatentModel, batches: MaskedBatches, recipe: Recipe, steps: int, treatment: Treatment) -> None:
    """Trains on the bound and what the treatment makes of the KL divergence; a mean over targets, hidden or not."""
    noise = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> Tensor:
        batch = batches.batch(step)
        posterior, z, cost = module.posterior(clean_rows(batch)), None, torch.zeros(())
        if posterior is not None:
            z = posterior.draw(torch.randn(posterior.mean.shape, generator=noise))
            cost = treatment.cost(posterior.divergences, step / steps)
        return (module.hidden_nats(batch, z, trained=True).sum() + cost) / batch.targets.numel()

    train(module, recipe, steps, loss)


def train_causal(model: Transformer, batches: BatchSource, recipe: Recipe, steps: int) -> None:
    """Trains a causal model."""

    def loss(step: int) -> Tensor:
        batch = batches.batch(step)
        return model.loss(batch.tokens, batch.targets, batch.weights) / batch.targets.numel()

    train(model, recipe, steps, loss)


# -------------------------------------------------------------------------------------------------------------- bounds
def opened(targets: int, passes: int) -> list[int]:
    """How many of the targets each pass fills in, as `pretrain.denoising.denoise` does."""
    counts, left = [], targets
    for remaining in range(min(passes, targets), 0, -1):
        counts.append(-(-left // remaining))
        left -= counts[-1]
    return counts


def draws_of(rows: int, targets: int, passes: int | None, count: int) -> Iterator[tuple[Floats, float]]:
    """Levels (B,) of `pretrain.batches.masked` for each draw, and the share that its nats of n / k have in the bound.

    `passes` None: the bound of masked diffusion, k even on 1 … n. Else the nats of a text that is written in so many
    passes, whose tokens of one pass are drawn as if independent: as many are hidden as a pass finds, in turn.
    """
    if passes is None:
        levels = evenly_apart(0, "latent", np.arange(rows), count)
        yield from ((levels[:, number], 1 / count) for number in range(count))
        return
    counts = opened(targets, passes)
    hidden = targets - np.cumsum([0, *counts[:-1]])
    repeats = max(1, count // len(counts))
    for _ in range(repeats):
        for k, filled in zip(hidden, counts, strict=True):
            yield np.full(rows, (k - 0.5) / targets), filled / targets / repeats


@dataclass(frozen=True, eq=False)
class Bound:
    """Upper bound of the nats of each row, (B,) each: of its targets given z, and of z."""

    text: Floats
    latent: Floats

    @property
    def nats(self) -> Floats:
        """What a row costs in all."""
        return self.text + self.latent


@torch.inference_mode()
def bound(module: LatentModel, rows: Ints, passes: int | None = None, draws: int = 16, seed: int = 0) -> Bound:
    """The bound of clean rows (B, T + 1), as `draws_of` takes it; each draw has masks and a latent of its own.

    Masks do not depend on the model, so differences between models are those of pairs.
    """
    every = torch.from_numpy(rows)
    tokens, targets = every[:, :-1].contiguous(), every[:, 1:].contiguous()
    clean = Batch(tokens, targets, torch.ones(targets.shape), 0, False)
    posterior, noise = module.posterior(every), torch.Generator().manual_seed(seed)
    text = np.zeros(len(rows))
    for number, (levels, share) in enumerate(draws_of(len(rows), targets.shape[1], passes, draws)):
        order = random_order(seed, "latent", np.arange(len(rows)), number, targets.shape[1])
        z = None if posterior is None else posterior.draw(torch.randn(posterior.mean.shape, generator=noise))
        text += share * module.hidden_nats(masked(clean, module.mask_id, levels, order), z).double().numpy()
    latent = np.zeros(len(rows)) if posterior is None else posterior.divergences.double().sum(dim=1).numpy()
    return Bound(text, latent)


# ------------------------------------------------------------------------------------------------------------- writing
@torch.inference_mode()
def written(
    module: LatentModel, starts: Ints, length: int, passes: int, temperature: float, z: Tensor | None, seed: int
) -> Ints:
    """Continues starts (B, s) by `length` tokens (B, length) in random order, in so many passes.

    The noise is that of the seed alone, so models differ by what they predict.
    """
    begun = starts.shape[1]
    noise = torch.Generator().manual_seed(seed)
    row = torch.full((len(starts), begun + length), module.mask_id)
    row[:, :begun] = torch.from_numpy(starts)
    order = begun + torch.rand(len(starts), length, generator=noise).argsort(dim=1)
    done = 0
    for count in opened(length, passes):
        places = order[:, done : done + count]
        states = module.states(row[:, :-1], z)
        chosen = states.gather(1, (places - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1])).flatten(0, 1)
        logits = module.allowed(module.model.head(chosen).float())
        gumbel = -torch.rand(logits.shape, generator=noise).clamp(min=1e-20).log().neg().log()
        row.scatter_(1, places, (logits / temperature + gumbel).argmax(dim=-1).view(places.shape))
        done += count
    return row[:, begun:].numpy()
