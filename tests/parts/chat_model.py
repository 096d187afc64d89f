"""A tiny model to talk to, a player that says what a test wants, and a live server, made up in a moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from configs.schema.data import Data
from configs.schema.data import Tokenizer as Settings
from configs.schema.model import Model
from configs.schema.recipe import Recipe, save
from configs.schema.sources import Source
from configs.schema.train import Train
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from launch.chat.batcher import Batcher
from launch.chat.serve import listening, make_server, url
from launch.chat.served_model import ServedModel
from launch.chat.server import Api, Limits, make_app
from pretrain.model.transformer import Transformer
from pretrain.parallel.ranks import Ranks

CONTEXT = 128


@cache
def chat_vocab() -> Vocab:
    """A byte is a token; the chat tokens stand before."""
    return train_vocab(Settings(kind="byte", special_tokens="chat"), [])


def tiny_settings() -> Model:
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}
    return Model(family="llama", **sizes, context_length=CONTEXT, init_std=0.3)


@cache
def tiny_model() -> Transformer:
    """Random weights that speak bytes, and end an answer now and then."""
    torch.manual_seed(3)
    settings = tiny_settings()
    return Transformer(settings, settings.padded_vocab(chat_vocab().size)).eval()


def tiny_served(base: bool = False, **changes: Any) -> ServedModel:
    vocab = chat_vocab()
    template = None if base else ChatTemplate(vocab)
    fields: dict[str, Any] = {"name": "tiny.sft", "fingerprint": "0f" * 32, "step": 7}
    return ServedModel(
        vocab=vocab, template=template, model=tiny_model(), **(fields | {"context_length": CONTEXT} | changes)
    )


def write_tiny_run(
    directory: Path,
    objective: dict[str, Any] | None,
    chat: dict[str, Any] | None = None,
    model: Transformer | None = None,
) -> Path:
    """A run directory with one checkpoint of the tiny model, or of another one, as of a stage with this objective."""
    from pretrain.checkpoint.saver import Snapshot, commit_checkpoint  # with DeepSpeed, which takes seconds

    model = model or tiny_model()
    tokenizer = directory / "data" / "tokenizer"
    chat_vocab().save(tokenizer)
    recipe = Recipe.model_validate(
        {
            "name": "tiny.sft" if objective else "tiny",
            "out": str(directory),
            "data": Data(
                sources=[Source(name="none", path="/nowhere", shape="pairs" if objective else "text")],
                tokenizer=Settings(kind="byte", special_tokens="chat"),
            ),
            "model": model.config,
            "train": {**Train(steps=1).model_dump(), "objective": objective},
            "chat": chat or {},
        }
    )
    origin = DataManifest(
        directory=directory / "data", fingerprint="data", tokenizer=tokenizer,
        tokenizer_fingerprint=chat_vocab().fingerprint, vocab_size=chat_vocab().size, eod_id=chat_vocab().eod_id,
        train=[], validation=[], funnel=[],
    )  # fmt: skip
    alone = Ranks(rank=0, count=1, local_rank=0, local_count=1)
    commit_checkpoint(Snapshot.of_model(model), recipe, origin, alone, lambda value: [value])
    save(recipe, directory)
    return directory


class ScriptedPlayer:
    """Says given texts, byte by byte, and then ends the answer; may wait before each step."""

    def __init__(self, say: Callable[[str], str], before_step: Callable[[], None] = lambda: None) -> None:
        """`say`: the answer to the text of a whole prompt."""
        self._say, self._before = say, before_step
        self.rows: dict[int, list[int]] = {}
        self.prompts: list[list[int]] = []
        self._left: dict[int, int] = {}
        self._next = 0

    def add(self, request: Any) -> list[int]:
        self.prompts.append(list(request.prompt))
        numbers = []
        for _ in range(request.samples):
            said = self._say(chat_vocab().decode(request.prompt))
            self.rows[self._next] = [*chat_vocab().encode(said), ChatTemplate(chat_vocab()).end]
            self._left[self._next] = request.max_new_tokens
            numbers.append(self._next)
            self._next += 1
        return numbers

    def step(self) -> list[Any]:
        self._before()
        events = []
        for row, ids in list(self.rows.items()):
            token = ids.pop(0)
            self._left[row] -= 1
            finished = "stop" if not ids else "length" if not self._left[row] else None
            if finished:
                del self.rows[row]
            events.append(SimpleNamespace(row=row, token=token, finished=finished, raw_log_prob=-1.0, top=()))
        return events

    def cancel(self, row: int) -> None:
        self.rows.pop(row, None)


@contextmanager
def live(
    served: ServedModel,
    limits: Limits | None = None,
    key: str | None = None,
    player: Any = None,
    hosts: Sequence[str] = (),
) -> Iterator[tuple[str, Batcher]]:
    """A server on a free port, in a thread; gives its address and what decodes for it."""
    limits = limits or Limits()
    batcher = Batcher(player or served.player(), limits.rows, limits.waiting)
    with listening("127.0.0.1", 0) as bound:
        server = make_server(make_app(Api(served, batcher, limits), hosts, key), batcher.close)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="server")
        thread.start()
        try:
            yield url(*bound.getsockname()[:2]), batcher
        finally:
            server.should_exit = True
            thread.join()
            batcher.close()
