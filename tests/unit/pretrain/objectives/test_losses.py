"""Losses of conversations and pairs by themselves: what counts, what does not, and what is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from configs.schema.model import Model
from configs.schema.objectives import Preference, RewardModelling
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.shards import load_manifest
from pretrain.batches.source import Batch, BatchSource
from pretrain.batches.unit_rows import UnitRows
from pretrain.batches.units import Weigh, last_answer, learnt, scored
from pretrain.engine.loss_module import LossModule
from pretrain.model.transformer import Transformer
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.objectives.preference import Answers, PreferenceOptimisation, pair_loss
from pretrain.objectives.reward_modelling import RewardModel
from tests.parts.small_units import chat_vocab, prepare_units
from tests.parts.training_run import tiny_recipe

LOSSES = get_args(Preference.model_fields["loss"].annotation)
SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 96, "init_std": 0.1}


def model(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Model(**{**SHAPE, **settings}), chat_vocab().size)


def preference(loss: str, **settings: Any) -> LossModule:
    smoothing = {"label_smoothing": 0.1} if loss == "robust" else {}
    return PreferenceOptimisation(model(), Preference(kind="dpo", loss=loss, **smoothing, **settings))  # type: ignore[arg-type]


def reward() -> RewardModel:
    made = RewardModel(model(), RewardModelling(kind="reward", center=0.1, margin=True))
    torch.nn.init.normal_(made.reward_head.weight)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("data")
    return {unit: prepare_units(directory / unit, unit) for unit in ("conversation", "pair")}  # type: ignore[arg-type]


def pairs(data: dict[str, Path], weigh: Weigh, documents: int = 8) -> Batch:
    manifest = load_manifest(data["pair"])
    references = {"tiny": torch.linspace(-9, -3, 80, dtype=torch.float64).numpy()}
    rows = UnitRows(manifest.train, manifest.vocab, 96, weigh, 2, references)
    return rows.batch([(0, document) for document in range(documents)])


def sums_and_gradients(module: LossModule, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    module.train().zero_grad()
    sums = module(*batch.inputs, **batch.columns).reshape(-1)
    sums[0].backward()
    return sums.detach(), [p.grad.clone() for p in module.parameters() if p.grad is not None]


# ------------------------------------------------------------------------------------------------------------- formulas
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_prefers_the_chosen(loss: str) -> None:
    """Its gradient raises the chosen answer; where nothing is preferred yet, DPO's loss is ln 2."""
    log_probs = torch.tensor([[-6.0, -6.0], [-3.0, -9.0], [-9.0, -3.0]], requires_grad=True)
    answers = Answers(log_probs, torch.full((3, 2), 3.0), torch.full((3, 2), -6.0, dtype=torch.float64))
    settings = Preference(kind="dpo", loss=loss, beta=0.5, **({"label_smoothing": 0.1} if loss == "robust" else {}))  # type: ignore[arg-type]
    found = pair_loss(settings, answers)
    losses = found.losses
    losses.sum().backward()
    assert log_probs.grad is not None and (log_probs.grad[0] * torch.tensor([-1, 1]) > 0).all()
    assert losses[1] < losses[0] < losses[2] or loss == "ipo"  # which wants a difference of its own, and no more
    if loss == "sigmoid":
        assert losses[0].item() == pytest.approx(math.log(2), abs=1e-7)
        assert losses[1].item() == pytest.approx(math.log1p(math.exp(-0.5 * 6)), abs=1e-6)
    assert not found.rewards.requires_grad


def test_smoothing_and_the_supervised_term() -> None:
    answers = Answers(torch.tensor([[-2.0, -5.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[-3.0, -3.0]]))
    margin = 0.5 * ((-2 + 3) - (-5 + 3))
    right, wrong = -math.log1p(math.exp(-margin)), -math.log1p(math.exp(margin))
    conservative = pair_loss(Preference(kind="dpo", beta=0.5, label_smoothing=0.2), answers).losses
    assert conservative.item() == pytest.approx(-0.8 * right - 0.2 * wrong, abs=1e-6)
    supervised = pair_loss(Preference(kind="dpo", beta=0.5, sft_weight=0.3), answers).losses
    assert supervised.item() == pytest.approx(-right + 0.3 * 1.0, abs=1e-6), "1 nat a token of the chosen"


# ------------------------------------------------------------------------------------------------- what does not count
def test_given_tokens_get_no_gradient(data: dict[str, Path]) -> None:
    """Whatever becomes of the mask on its way, the loss would fall; so the gradient itself is looked at."""
    manifest = load_manifest(data["conversation"])
    rows = UnitRows(manifest.train, manifest.vocab, 96, learnt)
    batch, module = rows.batch([(0, document) for document in range(4)]), LanguageModelling(model()).train()
    kept: list[Tensor] = []

    def keep(_: object, __: object, hidden: Tensor) -> None:
        hidden.retain_grad()
        kept.append(hidden)

    module.model.norm.register_forward_hook(keep)
    module(*batch.inputs).backward()
    assert kept[0].grad is not None
    assert torch.equal(kept[0].grad.abs().sum(-1) > 0, batch.weights > 0)


@pytest.mark.parametrize("make", [lambda: preference("sigmoid"), reward], ids=["dpo", "reward"])
def test_rows_that_hold_nothing_add_nothing(data: dict[str, Path], make: Callable[[], LossModule]) -> None:
    weigh = scored if make is reward else last_answer
    batch, module = pairs(data, weigh), make()
    sums, gradients = sums_and_gradients(module, batch)
    assert sums[0] > 0
    manifest = load_manifest(data["pair"])
    references = {"tiny": torch.linspace(-9, -3, 80, dtype=torch.float64).numpy()}
    rows = UnitRows(manifest.train, manifest.vocab, 96, weigh, 2, references)
    more = rows.batch([(0, document) for document in range(8)], rows=12)
    again, others = sums_and_gradients(module, more)
    torch.testing.assert_close(again, sums)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6 * max(1.0, float(one.abs().max())), rtol=0)
    nothing, zeros = sums_and_gradients(module, rows.batch([], rows=4))
    assert not nothing.any() and not any(gradient.any() for gradient in zeros), "and no NaN"


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_batch_add_up(data: dict[str, Path], loss: str) -> None:
    """Cut into micro-batches, each to its own longest row: the same sums and gradients."""
    module, batch = preference(loss), pairs(data, last_answer)
    sums, gradients = sums_and_gradients(module, batch)
    parts = [sums_and_gradients(module, batch.rows(start, start + 2)) for start in range(0, 8, 2)]
    assert len({batch.rows(start, start + 2).tokens.shape[1] for start in range(0, 8, 2)}) > 1, "widths that differ"
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(0), sums, atol=1e-4, rtol=1e-5)
    for whole, *pieces in zip(gradients, *(part for _, part in parts), strict=True):
        torch.testing.assert_close(torch.stack(pieces).sum(0), whole, atol=1e-5, rtol=1e-4)


def test_the_head_that_nobody_reads_gets_a_zero_and_not_nothing(data: dict[str, Path]) -> None:
    """ZeRO stages treat a missing gradient differently: one of them would decay the weight, another would not."""
    module = reward()
    assert module.model.lm_head is not None
    sums_and_gradients(module, pairs(data, scored))
    assert module.model.lm_head.weight.grad is not None and not module.model.lm_head.weight.grad.any()


# ----------------------------------------------------------------------------------------------------- packed and alone
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packed_conversations_are_those_alone(tmp_path: Path, data: dict[str, Path], family: str) -> None:
    settings: dict[str, Any] = {"objective": {"kind": "sft"}, "packing": "best_fit", "global_batch_size": 3}
    recipe = tiny_recipe(tmp_path, data["conversation"], **settings)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"context_length": 96})})
    manifest, module = load_manifest(data["conversation"]), LanguageModelling(model(family=family))
    source = BatchSource(recipe, manifest)
    batch, spans = source.batch(0), source.documents(0)
    sums, gradients = sums_and_gradients(module, batch)
    rows = UnitRows(manifest.train, manifest.vocab, 96, learnt)
    numbers = [int(span.id.split()[1]) for row in spans for span in row]
    assert len(numbers) > 5
    alone = [sums_and_gradients(module, rows.batch([(0, number)]).rows(0, 1)) for number in numbers]
    assert sums.item() == pytest.approx(sum(float(part) for part, _ in alone), rel=1e-5)
    for whole, *pieces in zip(gradients, *(part for _, part in alone), strict=True):
        torch.testing.assert_close(
            torch.stack(pieces).sum(0), whole, atol=1e-5 * float(whole.abs().max()) + 1e-5, rtol=0
        )
    mixed = sums_and_gradients(module, replace(batch, positions=None))[0]
    assert abs(mixed - sums) > 1e-3 * sums, "without the mask they do see each other"


# --------------------------------------------------------------------------------------------------------------- learnt
def test_one_conversation_is_learnt_to_its_end() -> None:
    """`<|end|>` is a target like any other: nothing masks it as padding, and its row is trained."""
    vocab, module = chat_vocab(), LanguageModelling(model(init_std=0.02)).train()
    template = ChatTemplate(vocab)
    messages = [Message.of("user", "Who?"), Message.of("assistant", "Me.")]
    rendered = template.render(messages)
    ids, kinds = torch.tensor([[*rendered.ids, template.bos]]), torch.tensor([*rendered.kinds[1:], 0])
    weights = torch.from_numpy(learnt(kinds.numpy()))[None]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        (module(ids[:, :-1], ids[:, 1:], weights) / weights.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        after = module.model(torch.tensor([[*template.prompt(messages[:1]), *vocab.encode("Me.")]]))[0, -1].softmax(-1)
    assert after[template.end] > 0.9
