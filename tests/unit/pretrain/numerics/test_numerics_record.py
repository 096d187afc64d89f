"""What a run says of its numbers: compared once, not again on resuming, and repeated bit for bit by compiled code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.common.numerics_record import numerics_lines
from configs.schema.train import Train
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.manifest import newest
from pretrain.engine import compiling
from pretrain.numerics import circumstances
from pretrain.numerics.kernel_check import WrongKernels
from pretrain.numerics.repeatable import deterministic_algorithms, is_deterministic, promise
from pretrain.session import run
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """Stands for torch's: `compiler(change)` makes compiled calls return `change(loss)`; no machine code is made."""

    def install(change: Callable[[Tensor], Tensor]) -> None:
        monkeypatch.setattr(torch, "compile", lambda call, *_, **__: lambda *inputs: change(call(*inputs)))

    monkeypatch.setattr(compiling, "PAYS_FROM_FLOPS", {"cpu": 0.0})
    return install


def train(directory: Path, data: Path, **settings: Any) -> Path:
    directory.mkdir(exist_ok=True)
    settings = {"steps": 4, "checkpoint": {"every": 2}, **settings}
    recipe = tiny_recipe(directory, data, **settings)
    run(recipe)
    return recipe.run_directory


def said(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "numerics.json").read_text())
    return content


@pytest.mark.slow
def test_wrong_compiled_code_trains_as_if_nothing_was_compiled(
    tmp_path: Path, data: Path, compiler: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = train(tmp_path / "plain", data, compile=False)
    compiler(lambda loss: loss * math.nan)
    wrong = train(tmp_path / "wrong", data)
    assert "warning: compiled code computes something else" in capfd.readouterr().err
    for key in ("train/loss", "train/grad_norm"):
        assert metric_lines(wrong, key) == metric_lines(plain, key), "and the comparison left no trace"
    assert metric_lines(wrong, "check/compiled") == {1: 0.0}
    assert "goes on uncompiled" in numerics_lines(wrong)[0] and "Repeats bit for bit" in numerics_lines(wrong)[1]
    with pytest.raises(WrongKernels, match="Nothing was trained"):
        train(tmp_path / "refused", data, compile=True)
    assert newest(tmp_path / "refused" / "run") is None


@pytest.mark.slow
def test_a_resumed_run_takes_the_checkpoints_word_until_something_changes(
    tmp_path: Path, data: Path, compiler: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(lambda loss: loss * 1.5)
    directory = train(tmp_path / "run", data, steps=4)
    assert said(directory)["compiled"] is False and Choice().find(directory).state["numerics"]["step"] == 0
    compiler(lambda loss: loss)  # would pass now, but the run goes on as it began
    capfd.readouterr()
    accept = {"accept_changed": [], "every": 2}
    train(tmp_path / "run", data, steps=6, checkpoint=accept)
    assert "not compared again" in capfd.readouterr().err and said(directory)["compiled"] is False
    assert set(metric_lines(directory, "check/compiled")) == {1}
    monkeypatch.setattr(circumstances, "_hardware", lambda device: {"machine": "another"})
    train(tmp_path / "run", data, steps=8, checkpoint=accept)
    heard = capfd.readouterr().err
    assert heard.index("compiling the model") < heard.index("compiled code and attention by products agree with plain")
    assert said(directory)["compiled"] is True and metric_lines(directory, "check/compiled") == {1: 0.0, 7: 1.0}


# --------------------------------------------------------------------------------------------------- bit for bit again
@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def embedding_gradients(repetitions: int) -> tuple[list[Tensor], str]:
    """The gradient of an embedding by compiled code, several times, and the code."""
    from torch._inductor.utils import run_and_get_code  # a second, which every process would spend on collecting

    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32, (8, 256), generator=generator)
    upstream = torch.randn(8, 256, 48, generator=generator)
    compiled = torch.compile(
        lambda ids, upstream: torch.ops.aten.embedding_dense_backward(upstream, ids, 32, -1, False)
    )
    first, code = run_and_get_code(compiled, ids, upstream)
    return [first, *(compiled(ids, upstream) for _ in range(repetitions - 1))], "\n".join(code)


@pytest.mark.slow
def test_compiled_code_adds_up_in_one_order(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiled code finds torch through this variable, which torch leaves behind.
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "0")
    _, code = embedding_gradients(1)
    assert "atomic_add" in code, "what makes compiled code differ from run to run"
    with deterministic_algorithms(True):  # the other code is in the cache by now, and must not be taken
        gradients, code = embedding_gradients(8)
    assert code and "atomic_add" not in code
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_the_setting_is_found_as_it_was() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.are_deterministic_algorithms_enabled() is before
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_what_is_promised() -> None:
    def setting(value: Any) -> Train:
        return Train(steps=1, deterministic=value)

    assert is_deterministic(setting("auto"), CPU) and not is_deterministic(setting("auto"), GPU)
    assert is_deterministic(setting(True), GPU) and not is_deterministic(setting(False), CPU)
    assert "repeats bit for bit" in promise(True, CPU, 2, 1) and "1 rank of 2 threads" in promise(True, CPU, 2, 1)
    assert "not promised" in promise(False, CPU, 2, 1) and "has not measured" in promise(True, GPU, 2, 4)
