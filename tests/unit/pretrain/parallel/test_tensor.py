"""Pieces of divided matrices: where they lie in the whole, and what files of them give back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema.model import Model
from pretrain.checkpoint.fragment_files import FragmentReader, HostCopy, write_pieces
from pretrain.model.transformer import Transformer
from pretrain.parallel.fragments import (
    BufferRange,
    Fragment,
    Shard,
    full_shape,
    in_whole,
    remember_shapes,
    split_between_ranks,
)
from pretrain.parallel.ranks import Ranks
from pretrain.parallel.tensor import mark_shards

MODEL = Model(num_layers=1, hidden_size=24, num_heads=6, num_kv_heads=3, context_length=8, bias=True)
PARTS = 3


def pieces_of(name: str, flat: torch.Tensor, shard: Shard, cuts: list[int]) -> list[Fragment]:
    """A shard that ZeRO has cut at these numbers, as fragments of the whole."""
    found = []
    for first, last in zip([0, *cuts], [*cuts, len(flat)], strict=True):
        for place in in_whole(BufferRange(name, first, flat, first, last - first), shard):
            values = flat.narrow(0, place.start, place.numel)
            several = place.rows > 1
            values = values.view(place.rows, -1) if several else values
            stride = place.stride if several else 1
            found.append(Fragment(name, place.offset, values, {"m": values + 1}, torch.zeros(()), stride))
    return found


@pytest.mark.parametrize("cuts", [[], [1], [7, 9, 50], [3, 4, 24, 25, 71]])
def test_files_of_shards_hold_each_number_once(tmp_path: Path, cuts: list[int]) -> None:
    whole = {name: torch.randn(p.shape) for name, p in Transformer(MODEL, 16).named_parameters()}
    divided = set()
    for part in range(PARTS):
        model = Transformer(MODEL, 16)
        mark_shards(model, part, PARTS)
        fragments = []
        for name, parameter in model.named_parameters():
            shard: Shard | None = getattr(parameter, "shard", None)
            if shard is None:
                continue
            divided.add(name)
            flat = shard.of(whole[name])
            assert flat.numel() * PARTS == whole[name].numel()
            pieces = pieces_of(name, flat, shard, [cut for cut in cuts if cut < len(flat)])
            for piece in pieces:
                assert torch.equal(piece.of(whole[name].flatten()[piece.offset :]), piece.weight)
            fragments += [half for rank in range(2) for half in split_between_ranks(pieces, rank, 2)]
        write_pieces(HostCopy().take(fragments), tmp_path, Ranks(part, PARTS, 0, 1))
    layers = ("attention.qkv.weight", "attention.qkv.bias", "attention.out.weight", "mlp.up.weight", "mlp.up.bias")
    assert divided == {f"blocks.0.{name}" for name in (*layers, "mlp.down.weight")}
    weights, moments = FragmentReader(tmp_path, "weights"), FragmentReader(tmp_path, "optimizer")
    for name in divided:
        assert torch.equal(weights.whole(name, list(whole[name].shape)), whole[name])
        assert torch.equal(moments.part(f"m/{name}", 3, 20), whole[name].flatten()[3:23] + 1)


def test_the_whole_shape_is_known_when_only_a_piece_is_left() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 6))
    assert full_shape(parameter) == (4, 6)
    remember_shapes([parameter])
    parameter.data = torch.zeros(0)  # as ZeRO-3 leaves it between uses
    remember_shapes([parameter])
    assert full_shape(parameter) == (4, 6)
