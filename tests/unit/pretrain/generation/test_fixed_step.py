"""What a GPU needs of the decode step, as far as a CPU can tell: fixed shapes, one graph, one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from configs.schema.model import Model
from pretrain.generation.decode import Decoder, Step, compiled
from pretrain.generation.player import Player, Request
from pretrain.generation.sampling import GREEDY, Chooser, Sampling
from pretrain.model.transformer import Transformer

VOCAB, CONTEXT = 40, 24
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama", "num_kv_heads": 2, "qk_norm": True, "value_residual": True, "logit_softcap": 9.0},
}


def make(**settings: Any) -> Transformer:
    torch.manual_seed(3)
    shape: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": CONTEXT}
    return Transformer(Model(**{**shape, **settings, "init_std": 0.2}), VOCAB).eval()


def requests() -> list[Request]:
    """More than there are rows; some outgrow the context."""
    lengths = [(3, 9), (11, 20), (1, 30), (7, 2), (5, 5)]
    return [
        Request([(7 * place + start) % VOCAB for place in range(start)], new, Sampling(0.8, seed=start))
        for start, new in lengths
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_memory_never_change(kind: str) -> None:
    model, seen = make(**KINDS[kind]), set()

    def watched(step: Step) -> Step:
        def call(tokens: Tensor, lengths: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            logits = step(tokens, lengths, keys, values)
            shapes = tuple(tuple(x.shape) for x in (tokens, lengths, keys, values, logits))
            seen.add((shapes, keys.data_ptr(), values.data_ptr(), keys.is_contiguous()))
            return logits

        return call

    expected = [answer.ids for answer in Player(model).run(requests())]
    assert [answer.ids for answer in Player(model, 3, watched).run(requests())] == expected
    shapes, *_, contiguous = next(iter(seen))
    assert len(seen) == 1 and contiguous
    assert shapes[0] == (3,) and shapes[2][1] == 3 and shapes[2][3] == CONTEXT


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_one_graph_made_once(kind: str) -> None:
    """`fullgraph` refuses a break, such as one that reads a number of the device; the cache is written in place."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def wrap(step: Step) -> Step:
        made: Step = torch.compile(step, fullgraph=True, dynamic=False, backend=count)
        return made

    model = make(**KINDS[kind])
    expected = [answer.ids for answer in Player(model).run(requests())]
    assert [answer.ids for answer in Player(model, 3, wrap).run(requests())] == expected
    assert len(graphs) == 1


class _IndexByOperations(TorchFunctionMode):
    """Python's `x[…]` and `copy_` ask for the driver of x's device, which a build for CPUs lacks; these do not."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        if function not in (Tensor.__getitem__, Tensor.__setitem__):
            return function(*args, **(kwargs or {}))
        x, places = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        dim, tensors = 0, []
        for place in places:
            if isinstance(place, int):
                x = x.select(dim, place)
                continue
            if place is None:
                x = x.unsqueeze(dim)
            elif isinstance(place, slice):
                x = torch.ops.aten.slice(x, dim, place.start, place.stop)
            tensors.append(place if isinstance(place, Tensor) else None)
            dim += 1
        chosen = any(place is not None for place in tensors)
        if function is Tensor.__getitem__:
            return torch.ops.aten.index(x, tensors) if chosen else x
        if chosen:
            return torch.ops.aten.index_put_(x, tensors, args[2])
        return (torch.ops.aten.copy_ if isinstance(args[2], Tensor) else torch.ops.aten.fill_)(x, args[2])


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_step_is_on_one_device(kind: str) -> None:
    """With made-up tensors of a GPU: an operation that mixes devices raises."""
    config = Model(**{"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": CONTEXT, **KINDS[kind]})
    model = Transformer(config, VOCAB).eval()
    with FakeTensorMode(), torch.no_grad(), _IndexByOperations():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = nn.Parameter(torch.empty(tensor.shape, device="cuda"), requires_grad=False)
        decoder = Decoder(model)
        tokens = torch.zeros(3, dtype=torch.int64, device="cuda")
        shape = (config.num_layers, 3, config.kv_heads, CONTEXT, config.head_width)
        for column in (None, CONTEXT - 1):
            logits = decoder(tokens, tokens, *(torch.zeros(shape, device="cuda") for _ in range(2)), column)
            assert (tuple(logits.shape), logits.device.type) == ((3, VOCAB), "cuda")
        samplings = [GREEDY, Sampling(0.7, top_k=3, vocab_size=33), Sampling(top_p=0.5)]
        for chosen in (samplings, samplings[:1] * 3, samplings[1:2] * 3):
            uniforms = torch.zeros(3, dtype=torch.float64, device="cuda")
            assert Chooser(chosen, VOCAB, torch.device("cuda"))(logits, uniforms).device.type == "cuda"


def test_bf16_autocast_is_as_the_forward_pass_under_it() -> None:
    """The norms' own operations are for fp32; what a player was made under does not matter."""
    model = make(**KINDS["llama"])
    before = Player(model)
    with torch.autocast("cpu", torch.bfloat16):
        for player in (before, Player(model)):
            for request, answer in zip(requests()[:2], player.run(requests()[:2]), strict=True):
                text = [*request.prompt, *answer.ids][:CONTEXT]
                new = len(text) - len(request.prompt)
                with torch.no_grad():
                    table = (model(torch.tensor([text[:-1]]))[0].float() / 0.8).log_softmax(dim=-1)
                right = [float(table[place - 1, text[place]]) for place in range(len(request.prompt), len(text))]
                gap = [abs(a - b) for a, b in zip(answer.log_probs[:new], right, strict=True)]
                assert sum(gap) / len(gap) < 0.02 and max(gap) > 0


def test_fixed_shapes_need_a_number_of_rows() -> None:
    with pytest.raises(ValueError, match="needs max_rows"):
        Player(make(), wrap=compiled)
