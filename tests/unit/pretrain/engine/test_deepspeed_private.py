"""A DeepSpeed that renames or no longer uses a private name ends with an error, before it updates a weight."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.engine import deepspeed_private
from pretrain.engine.deepspeed_private import (
    ESTIMATORS,
    IMPORTED,
    Layout,
    PrivateName,
    UnknownDeepSpeed,
    check_engine,
    check_imported,
    imported,
    names_of,
)
from pretrain.engine.drop_update import drop_update

PRETRAIN = Path(deepspeed_private.__file__).parents[1]
STAGES = {Layout.WHOLE: 0, Layout.FLAT: 2, Layout.FLAT_BF16: 1, Layout.SUBGROUPS: 3}
ZERO = [layout for layout in Layout if layout is not Layout.WHOLE]


class Base:
    """The optimizer that ZeRO calls: an update takes 1 from the weight."""

    weight = 1

    def step(self) -> None:
        self.weight -= 1


def flat_step(self: Any) -> None:
    self.overflow = False
    if self.check_grad_overflow:
        self.check_overflow(partition_gradients=True)
    self.loss_scaler.cur_scale /= 1 + self.overflow
    if not self.overflow:
        self.optimizer.step()


def bf16_step(self: Any) -> None:
    self.overflow = False
    self.optimizer.step()


def subgroups_step(self: Any) -> None:
    self.overflow = False
    self._overflow_check_and_loss_scale_update(update_scale=False)
    if not self.overflow:
        self.optimizer.step()


def stand_in(layout: Layout, step: Callable[[Any], None] | None = None) -> tuple[Any, list[Any]]:
    """An engine and its parameters with every name that 0.19.8 has, and its way through a step."""
    methods: dict[Layout, dict[str, Any]] = {
        Layout.FLAT: {"step": flat_step, "check_overflow": lambda self, **_: None},
        Layout.FLAT_BF16: {"step": bf16_step, "clear_hp_grads": lambda self: None, "clear_lp_grads": lambda self: None},
        Layout.SUBGROUPS: {
            "step": subgroups_step,
            "_overflow_check_and_loss_scale_update": lambda self, **_: False,
            "get_param_id": lambda self: 0,
            "_get_param_partition_rank": lambda self: 0,
        },
    }

    def parameter(mapping: Any) -> Any:
        piece = SimpleNamespace(ds_numel=1)
        return SimpleNamespace(_hp_mapping=mapping, ds_numel=1, ds_tensor=piece, convert_to_zero_parameters=print)

    own, whole = SimpleNamespace(start=0, numel=1), SimpleNamespace(start=0, numel=1)
    mapping = SimpleNamespace(param_group_index=0, hp_fragment_address=own, lp_fragment_address=whole)
    if layout is Layout.WHOLE:
        optimizer: Any = object.__new__(torch.optim.SGD)  # its constructor loads the compiler, for seconds
    else:
        optimizer = type(layout.value, (), methods[layout] | ({"step": step} if step else {}))()
        optimizer.overflow, optimizer.optimizer, optimizer.check_grad_overflow = False, Base(), False
        optimizer.loss_scaler = SimpleNamespace(cur_scale=1024.0)
        optimizer.fp32_partitioned_groups_flat, optimizer.grad_position = [], {}
    engine = SimpleNamespace(optimizer=optimizer, enable_backward_allreduce=True, mpu=None)
    engine.get_global_grad_norm = lambda: 1.0
    engine.was_step_applied = lambda: not optimizer.overflow
    engine.step = lambda: optimizer.step()
    return engine, [parameter(None), parameter(mapping)]  # the first lies on other ranks


def remove(engine: Any, parameters: list[Any], item: PrivateName) -> None:
    """Renames the attribute where 0.19.8 has it."""
    owners = {
        "engine": [engine],
        "optimizer": [engine.optimizer],
        "optimizer class": [type(engine.optimizer)],
        "parameter": parameters,
        "mapping": [parameters[1]._hp_mapping],
    }[item.owner]
    *path, last = item.name.split(".")
    for owner in owners:
        for name in path:
            owner = getattr(owner, name)
        setattr(owner, f"{last}_of_a_later_version", getattr(owner, last))
        delattr(owner, last)


@pytest.mark.parametrize("layout", Layout)
def test_an_engine_that_has_all_names_passes(layout: Layout) -> None:
    engine, parameters = stand_in(layout)
    assert check_engine(engine, STAGES[layout], parameters) is layout


@pytest.mark.parametrize(
    ("layout", "item"),
    [(layout, item) for layout in Layout for item in names_of(layout)],
    ids=lambda value: value.value if isinstance(value, Layout) else value.name,
)
def test_each_name_that_is_missing_ends_the_start(layout: Layout, item: PrivateName) -> None:
    engine, parameters = stand_in(layout)
    remove(engine, parameters, item)
    with pytest.raises(UnknownDeepSpeed) as refused:
        check_engine(engine, STAGES[layout], parameters)
    said = str(refused.value)
    assert f"has no `{item.name}`, which training uses to {item.purpose}" in said
    assert "tried: 0.19.8" in said and "pip install deepspeed==0.19.8" in said
    assert re.match(r"DeepSpeed \d+\.\d+", said), "the installed version"


@pytest.mark.parametrize("layout", Layout)
def test_an_optimizer_of_another_class_is_refused(layout: Layout) -> None:
    engine, parameters = stand_in(layout)
    engine.optimizer = SimpleNamespace(**vars(engine.optimizer))
    with pytest.raises(UnknownDeepSpeed, match=rf"is a SimpleNamespace, not a .*{layout.value}"):
        check_engine(engine, STAGES[layout], parameters)


@pytest.mark.parametrize("item", [*IMPORTED, *ESTIMATORS], ids=lambda item: item.name)
def test_the_installed_version_has_every_imported_name(item: PrivateName, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(item.owner, item.name)
    monkeypatch.delattr(f"{item.owner}.{item.name}")
    with pytest.raises(UnknownDeepSpeed, match=rf"{item.owner} has no `{item.name}`"):
        imported(item.owner, item.name)
    if item in IMPORTED:
        with pytest.raises(UnknownDeepSpeed, match=item.name):
            check_imported()


@pytest.mark.parametrize("layout", ZERO)
def test_a_refused_update_is_not_made(layout: Layout) -> None:
    engine, _ = stand_in(layout)
    optimizer, base = engine.optimizer, engine.optimizer.optimizer
    before = dict(vars(optimizer))
    drop_update(engine, layout)
    assert base.weight == 1 and optimizer.loss_scaler.cur_scale == 1024
    assert vars(optimizer) == before | {"overflow": True}
    engine.step()
    assert base.weight == 0, "the next step updates again"


@pytest.mark.parametrize("layout", ZERO)
def test_nor_by_a_version_that_asks_another_method(layout: Layout) -> None:
    """The names are all there, but nothing looks at them: the update ends in an error, with the weights as before."""

    def step(self: Any) -> None:
        self.optimizer.step()

    engine, parameters = stand_in(layout, step)
    optimizer = engine.optimizer
    if layout is Layout.FLAT_BF16:  # whose `step` is hidden: here the engine calls something else
        engine.step = lambda: step(optimizer)
    check_engine(engine, STAGES[layout], parameters)
    with pytest.raises(UnknownDeepSpeed, match="makes an update that was refused"):
        drop_update(engine, layout)
    assert optimizer.optimizer.weight == 1
    assert "step" not in vars(optimizer.optimizer), "left as it was found"


@pytest.mark.parametrize("layout", ZERO)
def test_nor_by_one_that_renamed_it(layout: Layout) -> None:
    engine, parameters = stand_in(layout)
    method = next(item for item in names_of(layout) if item.owner == "optimizer class")
    remove(engine, parameters, method)
    with pytest.raises(UnknownDeepSpeed, match=method.name):
        drop_update(engine, layout)
    assert engine.optimizer.optimizer.weight == 1


@pytest.mark.parametrize("layout", ZERO)
def test_a_step_that_asks_nothing_is_an_error(layout: Layout) -> None:
    engine, _ = stand_in(layout)
    engine.step = lambda: None
    with pytest.raises(UnknownDeepSpeed, match="did not ask"):
        drop_update(engine, layout)


def test_attributes_of_deepspeed_are_read_in_its_room_alone() -> None:
    listed = {part for layout in Layout for item in names_of(layout) for part in item.name.split(".")}
    unusual = {
        name for name in listed if name.startswith(("_", "ds_", "hp_", "lp_", "fp32_")) or name.endswith("_overflow")
    }
    assert len(unusual) >= 10
    for file in PRETRAIN.rglob("*.py"):
        if file.parent.name != "engine":
            found = {name for name in unusual if re.search(rf"\b{name}\b", file.read_text(encoding="utf-8"))}
            assert not found, f"{file} reads {found}"


def test_no_other_file_reaches_into_deepspeed() -> None:
    """What is imported from it elsewhere is public."""
    public = {"deepspeed", "deepspeed.accelerator"}
    for file in PRETRAIN.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found = {name for name in names if name.split(".")[0] == "deepspeed"}
            assert found <= public, f"{file}:{node.lineno}: list {found - public} in deepspeed_private.py"
