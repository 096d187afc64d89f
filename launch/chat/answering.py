"""Writes the answers to one request, streamed or whole, while watching whether the client is still there."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from data_prep.tokens.vocab import Vocab, byte_alphabet
from launch.chat.answers import Piece, ScoredToken, joined
from launch.chat.batcher import Batcher, Busy, Closed, ModelFailed, Ticket
from launch.chat.guard import refusal
from launch.chat.protocol import ApiError, event, usage

_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
Make = Callable[[Callable[[Sequence[Piece] | Exception], None]], Ticket]


@dataclass
class Shape:
    """How a kind of answer is written down.

    Attributes:
        start: the fields that all objects of an answer have.
        chunk: object name of a streamed piece; `whole`: of a finished answer.
        opening: the first delta of each choice; None: there is none.
        piece: the fields of a choice for a streamed piece; `choice`: of a finished answer.
    """

    start: dict[str, Any]
    chunk: str
    whole: str
    opening: Callable[[int], dict[str, Any]] | None
    piece: Callable[[int, Piece], dict[str, Any]]
    choice: Callable[[int, Piece], dict[str, Any]]


@dataclass
class Answering:
    """An ASGI application that answers one request, and frees its rows when it ends, whatever ends it."""

    batcher: Batcher
    makes: Sequence[Make]  # one for each prompt
    samples: int
    shape: Shape
    prompt_tokens: int
    stream: bool
    includes_usage: bool = False
    _generated: int = field(default=0, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: asyncio.Queue[tuple[int, Sequence[Piece] | Exception]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(number: int, content: Sequence[Piece] | Exception) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, (number, content))

        tickets = [make(partial(deliver, number)) for number, make in enumerate(self.makes)]
        try:
            self.batcher.submit(*tickets)
        except (Busy, Closed) as error:
            await refusal(_told(error))(scope, receive, send)
            return
        write = self._stream if self.stream else self._whole
        writing = asyncio.ensure_future(write(self._read(pieces), scope, receive, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for ticket in tickets:
                self.batcher.cancel(ticket)
            for task in (writing, gone):
                task.cancel()
            results = await asyncio.gather(writing, gone, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _read(
        self, pieces: asyncio.Queue[tuple[int, Sequence[Piece] | Exception]]
    ) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Yields (choice, piece) until all choices are over, all that is there at once; raises the error of one."""
        left = len(self.makes) * self.samples
        while left:
            found: list[tuple[int, Piece]] = []
            waiting = [await pieces.get()]
            while not pieces.empty():
                waiting.append(pieces.get_nowait())
            for number, content in waiting:
                if isinstance(content, Exception):
                    if found:  # what came before it is told first
                        yield found
                    raise content
                for piece in content:
                    self._generated += piece.generated
                    left -= piece.finish is not None
                    found.append((number * self.samples + piece.sample, piece))
            yield found

    async def _whole(
        self, pieces: AsyncIterator[list[tuple[int, Piece]]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        made: dict[int, list[Piece]] = {}
        try:
            async for found in pieces:
                for index, piece in found:
                    made.setdefault(index, []).append(piece)
        except Exception as error:
            await refusal(_told(error))(scope, receive, send)
            return
        choices = [self.shape.choice(index, joined(made[index])) for index in sorted(made)]
        body = {**self.shape.start, "object": self.shape.whole, "choices": choices, "usage": self._usage()}
        await JSONResponse(body)(scope, receive, send)

    async def _stream(
        self, pieces: AsyncIterator[list[tuple[int, Piece]]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = {**self.shape.start, "object": self.shape.chunk}
        more = {"usage": None} if self.includes_usage else {}

        async def tell(*contents: Mapping[str, Any] | str) -> None:
            """Sends events in one part: a client that left is noticed between two parts, and not within one."""
            if contents:
                await send({"type": "http.response.body", "body": b"".join(map(event, contents)), "more_body": True})

        def chunk(choice: dict[str, Any]) -> dict[str, Any]:
            return {**started, "choices": [choice], **more}

        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        if self.shape.opening is not None:
            await tell(*(chunk(self.shape.opening(index)) for index in range(len(self.makes) * self.samples)))
        try:
            async for found in pieces:
                said = [(index, piece) for index, piece in found if piece.text or piece.tokens or piece.finish]
                await tell(*(chunk(self.shape.piece(index, piece)) for index, piece in said))
            if self.includes_usage:
                await tell({**started, "choices": [], "usage": self._usage()})
            await tell("[DONE]")
        except Exception as error:
            await tell(_told(error).body())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _usage(self) -> dict[str, int]:
        return usage(self.prompt_tokens, self._generated)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(error: Exception) -> ApiError:
    """The error that a client is told: what it can change, or that the server failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, "Too many requests are waiting. Try again in a moment.", code="too_many_requests")
    if isinstance(error, Closed):
        return ApiError(503, "The server is shutting down.")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return ApiError(500, f"The model failed: {error}." if isinstance(error, ModelFailed) else "The server failed.")


# ------------------------------------------------------------------------------------------------------------- shapes
def start(prefix: str, model: str, fingerprint: str) -> dict[str, Any]:
    """Returns what all objects of an answer begin with. `system_fingerprint` names the checkpoint."""
    identity = f"{prefix}-{uuid.uuid4().hex}"
    return {"id": identity, "created": int(time.time()), "model": model, "system_fingerprint": fingerprint}


def chat_shape(begin: dict[str, Any], vocab: Vocab, log_probs: bool) -> Shape:
    """Chat completions."""

    def scored(piece: Piece) -> dict[str, Any] | None:
        return {"content": [_entry(vocab, token) for token in piece.tokens], "refusal": None} if log_probs else None

    def with_parts(piece: Piece, message: dict[str, Any]) -> dict[str, Any]:
        # Not OpenAI's `tool_calls`: those ask the client to run the tool, and here it has been run.
        parts = [{"type": part.kind, "text": part.text} for part in piece.parts]
        return {**message, "parts": parts} if parts else message

    def part(index: int, delta: dict[str, Any], piece: Piece | None = None) -> dict[str, Any]:
        finish = piece.finish if piece else None
        return {"index": index, "delta": delta, "logprobs": scored(piece) if piece else None, "finish_reason": finish}

    def choice(index: int, piece: Piece) -> dict[str, Any]:
        message = with_parts(piece, {"role": "assistant", "content": piece.text, "refusal": None})
        return {"index": index, "message": message, "logprobs": scored(piece), "finish_reason": piece.finish}

    return Shape(
        begin,
        "chat.completion.chunk",
        "chat.completion",
        lambda index: part(index, {"role": "assistant", "content": ""}),
        lambda index, piece: part(index, with_parts(piece, {"content": piece.text} if piece.text else {}), piece),
        choice,
    )


def completion_shape(begin: dict[str, Any], vocab: Vocab, log_probs: bool) -> Shape:
    """Completions of text."""
    written: dict[int, int] = {}  # characters of each choice so far

    def choice(index: int, piece: Piece) -> dict[str, Any]:
        offset = written.get(index, 0)
        written[index] = offset + len(piece.text)
        scored = _legacy(vocab, piece.tokens, offset) if log_probs else None
        return {"index": index, "text": piece.text, "logprobs": scored, "finish_reason": piece.finish}

    return Shape(begin, "text_completion", "text_completion", None, choice, choice)


def _entry(vocab: Vocab, token: ScoredToken) -> dict[str, Any]:
    def one(index: int, log_prob: float | None) -> dict[str, Any]:
        content = token_bytes(vocab, index)
        return {"token": _name(vocab, index), "logprob": log_prob, "bytes": None if content is None else list(content)}

    return {**one(token.id, token.log_prob), "top_logprobs": [one(*other) for other in token.top]}


def _legacy(vocab: Vocab, tokens: Sequence[ScoredToken], offset: int) -> dict[str, Any]:
    offsets, names = [], [_name(vocab, token.id) for token in tokens]
    for token in tokens:
        offsets.append(offset)
        offset += len(vocab.decode([token.id]))
    return {
        "tokens": names,
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [{_name(vocab, index): value for index, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _name(vocab: Vocab, index: int) -> str:
    r"""The text of a token; its bytes as `\xe4` where they are a part of a character; its name if it has no text."""
    content = token_bytes(vocab, index)
    if content is None:
        return str(vocab.tokenizer.id_to_token(index))
    return content.decode("utf-8", "backslashreplace")


def token_bytes(vocab: Vocab, index: int) -> bytes | None:
    """The bytes of UTF-8 that a token stands for, which may be a part of a character; None: a token without text."""
    if not vocab.token_bytes[index]:
        return None
    token = str(vocab.tokenizer.id_to_token(index))
    if vocab.byte_level and set(token) <= _BYTES.keys():
        return bytes(_BYTES[letter] for letter in token)
    return vocab.decode([index]).encode()


_BYTES = {letter: byte for byte, letter in enumerate(byte_alphabet())}
