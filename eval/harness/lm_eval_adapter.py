"""Adapts our model to lm-eval. Scores equal those of lm-eval's `hf` model on the exported checkpoint."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from configs.common.progress import ProgressBar, progress_bar
from configs.schema.chat import END
from data_prep.tokens.chat_template import JINJA, TEMPLATE_TOKENS, ChatTemplate
from data_prep.tokens.encode import agrees, fast_encoder
from data_prep.tokens.vocab import Vocab
from eval.generation.completions import Stops, complete
from eval.items.item import shared_seconds
from eval.reading.reader import Reader
from eval.reading.windows import sliding_windows
from pretrain.generation.sampling import Sampling

_KNOWN = {"until", "do_sample", "max_gen_toks", "temperature", "top_k", "top_p"}
# Defaults of transformers' `generate` (GenerationConfig), where neither the task nor the model's directory sets a
# value.
_USUAL = {"temperature": 0.0, "top_k": 50, "top_p": 1.0}
# Values of other settings that have no effect.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "typical_p": 1.0, "use_cache": True}


class ReplicaLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """Implements the three methods of lm-eval's model interface.

    lm-eval's `TemplateLM` tokenizes contexts and continuations.
    """

    def __init__(self, reader: Reader, vocab: Vocab, progress: bool = True, chat: bool = False) -> None:
        """`chat`: requests are rendered by the chat template, so markers in their text are tokens, as `hf` reads them.

        Raises:
            ValueError: with `chat`, when the vocabulary has no chat tokens.
        """
        super().__init__()
        self._reader, self._vocab, self._progress = reader, vocab, progress
        self._template = ChatTemplate(vocab) if chat else None
        # (task, doc_id) -> seconds that the requests of an item took.
        self.seconds: dict[tuple[str, int], float] = {}
        # (task, doc_id) of the items that lost the beginning of a prompt, because they are longer than the context.
        self.cut: set[tuple[str, int]] = set()
        self._asked: list[Any] = []
        # stderr is redirected to silence lm-eval's progress bars, so keep the real one for ours.
        self._stderr = sys.stderr

    @property
    def chat(self) -> bool:
        """Tells whether requests are rendered by the chat template."""
        return self._template is not None

    @property
    def eot_token_id(self) -> int:
        return self._vocab.eod_id if self._template is None else self._template.end

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer; lm-eval keeps rendered requests under it."""
        return self._vocab.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the chat template as Jinja, which lm-eval records with its results."""
        return JINJA if self._template is not None else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders messages as the exported template does; without a generation prompt, the last one stays open."""
        rendered = "".join(f"<|{item['role']}|>{item['content']}{END}" for item in chat_history)
        text = f"{self._vocab.end_of_document}{rendered}"
        return f"{text}<|assistant|>" if add_generation_prompt else text.removesuffix(END)

    @property
    def prefix_token_id(self) -> int:
        """Token that a text without context is conditioned on; many imported models end texts with another token."""
        return self._vocab.begin_id

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in a forward pass."""
        return self._reader.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if self._template is not None:
            begun = add_special_tokens is False or string.startswith(self._vocab.end_of_document)
            return [*([] if begun else [self._vocab.begin_id]), *self._encode_rendered(string)]
        if add_special_tokens is False:
            return self._encode(string)
        before, after = self._vocab.template
        return [*before, *self._encode(string), *after]

    @cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        """Encodes text as `Vocab.encode`. Five-shot prompts take longer to encode than a small model to read."""
        vocab, dtype = self._vocab, np.dtype("<u4")
        fast = fast_encoder(vocab, dtype)
        if fast is None or not agrees(fast, vocab, dtype, ()):
            return vocab.encode
        return lambda text: np.frombuffer(fast(text), dtype).tolist()

    def _encode_rendered(self, string: str) -> list[int]:
        """Encodes text with markers, which become their tokens."""
        ids: list[int] = []
        for piece in self._markers.split(string):
            marker = self._vocab.vocabulary.get(piece) if self._markers.fullmatch(piece) else None
            ids += self._encode(piece) if marker is None else [marker]
        return ids

    @cached_property
    def _markers(self) -> re.Pattern[str]:
        tokens = (self._vocab.end_of_document, *TEMPLATE_TOKENS)
        return re.compile(f"({'|'.join(map(re.escape, tokens))})")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        began = time.perf_counter()
        self._asked = requests  # in the order in which `TemplateLM` passes on their tokens
        scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self._took(requests, began, [sum(map(len, request.args)) for request in requests])
        return scored

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        sizes = [len(context) + len(continuation) - 1 for context, continuation in pairs]
        self._note_cut(self._asked, sizes, self.max_length)
        return self._score(pairs)

    def _note_cut(self, requests: list[Any], sizes: list[int], room: int) -> None:
        """Remembers the items of which a request has more tokens than there is room for."""
        for request, size in zip(requests, sizes, strict=True):
            if size > room:
                self.cut.add((request.task_name, request.doc_id))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        # As `hf`: if the tokenizer adds a begin token, that token is scored too, after another begin token.
        began = time.perf_counter()
        pairs = [([self.prefix_token_id], self.tok_encode(request.args[0])) for request in requests]
        scored = self._score(pairs)
        self._took(requests, began, [len(tokens) for _, tokens in pairs])
        return [nats for nats, _ in scored]

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Returns each continuation's log-likelihood after its context, and True if greedy decoding produces it."""
        windows, owners = [], []
        for index, (context, continuation) in enumerate(pairs):
            tokens = np.array(context + continuation, dtype=np.int64)
            for window in sliding_windows(tokens, len(context), self.max_length, self.max_length):
                windows.append(window)
                owners.append(index)
        with self._bar("benchmarks: windows", len(windows)) as bar:
            scores = self._reader.score(windows, bar.update)
        totals, greedy = np.zeros(len(pairs)), np.ones(len(pairs), dtype=bool)
        for owner, score in zip(owners, scores, strict=True):
            totals[owner] -= score.nats
            greedy[owner] &= score.greedy
        return [(float(total), bool(match)) for total, match in zip(totals, greedy, strict=True)]

    def _took(self, requests: list[Any], began: float, sizes: list[int]) -> None:
        """Divides the time since `began` over the items that were asked for, by the sizes of their requests."""
        for request, seconds in zip(requests, shared_seconds(time.perf_counter() - began, sizes), strict=True):
            key = (request.task_name, request.doc_id)
            self.seconds[key] = self.seconds.get(key, 0.0) + seconds

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        began = time.perf_counter()
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        texts = [""] * len(requests)
        for indices in groups.values():
            for index, text in zip(indices, self._generate([requests[index] for index in indices]), strict=True):
                texts[index] = text
        self._took(requests, began, [len(text) + 1 for text in texts])
        return texts

    def _generate(self, requests: list[Any]) -> list[str]:
        """Answers requests that all have the same settings."""
        wanted = _generation_settings(requests[0].args[1])
        new = wanted["max_gen_toks"]
        # As `hf`: a text that spells the end-of-text token in ordinary tokens ends there too.
        ends = frozenset[int]() if self._template is None else self._template.end_ids
        stops = Stops(self._vocab, [*filter(None, wanted["until"]), self._vocab.end_of_document], ends)
        room = self.max_length - new
        if room < 1:
            raise ValueError(
                f"a benchmark task generates up to {new} tokens, which leaves no room for its prompt in "
                f"model.context_length {self.max_length}; leave the task out or set max_gen_toks in its YAML"
            )
        encode = self._vocab.prompt if self._template is None else self.tok_encode
        whole = [encode(request.args[0]) for request in requests]
        self._note_cut(requests, [len(prompt) for prompt in whole], room)
        ids = [prompt[-room:] for prompt in whole]
        with self._bar("benchmarks: answers", len(ids)) as bar:
            samplings = None
            if wanted["do_sample"]:
                temperature, top_k, top_p = wanted["temperature"], wanted["top_k"], wanted["top_p"]
                samplings = [Sampling(temperature, top_k, top_p, seed=number + 1) for number in range(len(ids))]
            return complete(self._reader, stops, ids, new, bar.update, samplings)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[ProgressBar]:
        with redirect_stderr(self._stderr), progress_bar(description, total, self._progress) as bar:
            yield bar


def _generation_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Normalises a task's `generation_kwargs` by lm-eval's rules, with the defaults of transformers' `generate`.

    Raises:
        ValueError: for an unsupported setting that would change the text, or sampling without a temperature.
    """
    wanted: dict[str, Any] = {**_USUAL, **normalize_gen_kwargs(settings)}
    for name, value in wanted.items():
        if name not in _KNOWN and value != _NEUTRAL.get(name):
            raise ValueError(
                f"a benchmark task generates with `{name}: {value}`, which is not supported; leave the task out, or "
                f"take it out of the task's generation_kwargs (supported: {', '.join(sorted(_KNOWN))})"
            )
    if wanted["do_sample"] and not wanted["temperature"]:
        raise ValueError(
            "a benchmark task has `do_sample: true` in its generation_kwargs without a temperature above 0; set one, "
            "or `do_sample: false`"
        )
    if wanted["top_k"] == 0:
        wanted["top_k"] = None
    return wanted
