"""Training against twenty lines of plain torch in float64, and its sums against direct computation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import TokenStream, load_manifest
from data_prep.tokens.vocab import Vocab
from pretrain.batches.source import BatchSource
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import step_directories
from pretrain.model.transformer import Transformer
from pretrain.optimizer.schedule import learning_rate
from pretrain.session import initial_weights, run
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Three epochs of a small corpus, clipped, accumulated, with weight decay."""
    directory = tmp_path_factory.mktemp("trained")
    data = prepare_data(directory / "data", {"a": 3_000, "b": 1_000})
    settings = {"steps": None, "epochs": 2.5, "micro_batch_size": 2, "validation": {"every": 10, "max_tokens": 900}}
    recipe = tiny_recipe(directory, data, grad_clip=1.6, schedule={"warmup_steps": 5}, **settings)
    assert run(recipe)
    return recipe


def reference_losses(recipe: Recipe) -> tuple[list[float], list[float], Transformer]:
    """Losses and gradient norms of the same training in float64, by torch alone."""
    data = load_manifest(recipe.data_directory)
    model = Transformer(recipe.model, recipe.model.padded_vocab(data.vocab_size))
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    read = initial_weights(model, shapes, recipe.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name))
    model.double()
    settings, batches = recipe.train.optimizer, BatchSource(recipe, data)
    steps = -(-int(2.5 * batches.windows) // recipe.train.global_batch_size)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": decayed}, {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=settings.weight_decay, foreach=False)
    losses, norms = [], []
    for step in range(steps):
        batch = batches.batch(step)
        loss = F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.grad_clip)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.train.schedule, settings.lr, step, steps)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, model


def test_training_equals_plain_torch(trained: Recipe) -> None:
    losses, norms, model = reference_losses(trained)
    logged = metric_lines(trained.run_directory, "train/loss")
    assert sorted(logged) == list(range(1, len(losses) + 1))
    assert max(abs(logged[step + 1] - loss) for step, loss in enumerate(losses)) < 2e-5
    logged_norms = metric_lines(trained.run_directory, "train/grad_norm")
    assert max(abs(logged_norms[step + 1] - norm) for step, norm in enumerate(norms)) < 2e-4
    assert max(norms) > 1.6 > min(norms), "clipping was at work, and not always"
    weights = load_weights(step_directories(trained.run_directory)[0])
    for one, other in zip(weights.parameters(), model.parameters(), strict=True):
        assert (one - other).abs().mean() < 1e-5


def test_code_length_is_the_sum_over_the_first_epoch(trained: Recipe) -> None:
    data, losses = load_manifest(trained.data_directory), metric_lines(trained.run_directory, "train/loss")
    batches = BatchSource(trained, data)
    whole = batches.windows // 8  # steps before the first that sees a window again
    bits = sum(losses[step + 1] for step in range(whole)) * 8 * 32 / math.log(2)
    logged = metric_lines(trained.run_directory, "train/code_length_bits")
    assert abs(logged[whole] - bits) < 1e-6 * bits
    assert logged[max(logged)] == logged[whole], "later epochs add nothing"
    token_bytes = Vocab.load(data.tokenizer).token_bytes
    counted = sum(int(token_bytes[batches.batch(step).targets.numpy()].sum()) for step in range(whole))
    per_byte = metric_lines(trained.run_directory, "train/code_bits_per_byte")
    assert abs(per_byte[max(per_byte)] - bits / counted) < 1e-9 * bits


def test_validation_equals_a_direct_float64_computation(trained: Recipe) -> None:
    data = load_manifest(trained.data_directory)
    model = load_weights(step_directories(trained.run_directory)[0]).double()
    stream = TokenStream(data.validation[0].prefixes)
    token_bytes = Vocab.load(data.tokenizer).token_bytes
    nats, target_bytes = 0.0, 0
    for start in range(0, 900, 32):
        window = torch.from_numpy(stream.read(start, min(32, 900 - start) + 1))
        logits = model(window[None, :-1])[0]
        nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
        target_bytes += int(token_bytes[window[1:].numpy()].sum())
    run_directory = trained.run_directory
    last = max(metric_lines(run_directory, "val/loss"))
    assert abs(metric_lines(run_directory, "val/loss")[last] - nats / 900) < 1e-5
    assert abs(metric_lines(run_directory, "val/perplexity")[last] / math.exp(nats / 900) - 1) < 1e-5
    assert abs(metric_lines(run_directory, "val/bits_per_byte")[last] - nats / math.log(2) / target_bytes) < 1e-5
