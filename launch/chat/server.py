"""Serves a model: a page at `/`, an OpenAI-compatible API under `/v1`, and `/health`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from data_prep.chat.messages import Message, Prompt, Unusable
from data_prep.chat.shapes import to_unit
from launch.chat import answering
from launch.chat.answering import Answering, Shape
from launch.chat.batcher import Batcher, Deliver, Ticket
from launch.chat.protocol import ApiError, Asked, ChatRequest, CompletionRequest, parse
from launch.chat.served_model import Draws, ServedModel, TooLong
from launch.chat.web import guarded, page_response, read_body

_KNOWN = "/, /health, /v1/models, /v1/chat/completions, /v1/completions"
DEFAULT_COMPLETION_TOKENS = 16  # of completions, as in OpenAI's API


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        body: bytes of a request.
        tokens: longest answer, in tokens; None: what the context leaves.
        rows: answers decoded at a time; the largest `n`.
        waiting: requests that wait for rows.
    """

    body: int = 1 << 20
    tokens: int | None = None
    rows: int = 32
    waiting: int = 64


class Api:
    """The handlers. One `Batcher` decodes for all of them."""

    def __init__(self, served: ServedModel, batcher: Batcher, limits: Limits = Limits()) -> None:
        self.served, self.batcher, self.limits = served, batcher, limits

    # ------------------------------------------------------------------------------------------------ what one can ask
    async def page(self, _request: Request) -> Response:
        """The page, which may load and run nothing but itself."""
        return page_response(self._page)

    async def health(self, _request: Request) -> Response:
        """Tells that the server runs, and how busy it is."""
        active, waiting = self.batcher.load
        return JSONResponse({"status": "ok", "answers": active, "waiting": waiting})

    async def models(self, _request: Request) -> Response:
        """Lists the one model."""
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        """Describes the model."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model)

    async def chat(self, request: Request) -> Answering:
        """POST /v1/chat/completions."""
        asked = parse(ChatRequest, await read_body(request, self.limits.body))
        self._check(asked, 1)
        served = self.served
        if served.template is None:
            raise ApiError(
                400,
                f"{served.name} is a base model: it continues text, and was not taught to answer. Use /v1/completions, "
                "or serve a stage that was, as in RUN:sft.",
                code="not_a_chat_model",
            )
        reserve = min(asked.longest or served.answer_room, served.answer_room) if asked.truncation == "auto" else None
        # In a thread: a long conversation takes a second, and the answers to others go on meanwhile.
        ids, dropped = await asyncio.to_thread(served.chat_prompt, self._conversation(asked), reserve)
        begin = answering.start("chatcmpl", served.name, served.fingerprint)
        if asked.truncation == "auto":
            begin["dropped_messages"] = dropped
        shape = answering.chat_shape(begin, served.vocab, bool(asked.logprobs))
        return self._answering(
            asked, [ids], shape, asked.longest, (asked.top_logprobs or 0) if asked.logprobs else None
        )

    async def completions(self, request: Request) -> Answering:
        """POST /v1/completions."""
        asked = parse(CompletionRequest, await read_body(request, self.limits.body))
        self._check(asked, len(asked.prompt))
        prompts = await asyncio.to_thread(lambda: [self._prompt(prompt) for prompt in asked.prompt])
        begin = answering.start("cmpl", self.served.name, self.served.fingerprint)
        shape = answering.completion_shape(begin, self.served.vocab, asked.logprobs is not None)
        longest = asked.max_tokens or DEFAULT_COMPLETION_TOKENS
        return self._answering(asked, prompts, shape, longest, asked.logprobs)

    # ------------------------------------------------------------------------------------------------------------ parts
    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.served.name:
            raise ApiError(
                404,
                f"The model {name[:200]!r} does not exist. This server has {self.served.name!r}.",
                "model",
                "model_not_found",
            )

    def _check(self, asked: Asked, prompts: int) -> None:
        self._check_model(asked.model)
        if asked.choices * prompts > self.limits.rows:
            raise ApiError(
                400, f"This server gives at most {self.limits.rows} answers to a request (`n` times prompts).", "n"
            )

    def _conversation(self, asked: ChatRequest) -> tuple[Message, ...]:
        records = [message.record for message in asked.messages]
        if not self.served.tools and any(message.uses_tools for message in asked.messages):
            raise ApiError(
                400,
                "Invalid value for 'messages': this model has no tools, so it cannot read calls of them; leave out "
                "`tool_calls`, `parts` and messages of role tool.",
                "messages",
            )
        if records[-1]["role"] != "user":
            raise ApiError(400, "Invalid value for 'messages': the last message must be the user's.", "messages")
        try:
            unit = cast(Prompt, to_unit({"messages": records}, "openai", "prompt", self.served.system))
        except Unusable as error:
            said = {
                "roles_do_not_alternate": "after an optional system message, user and assistant must take turns",
                "empty_question": "a message of the user is empty",
                "empty_answer": "a message of the assistant is empty",
                "ends_without_answer": "the result of a tool must be followed by the rest of the answer",
            }.get(error.reason, str(error))
            raise ApiError(400, f"Invalid value for 'messages': {said}.", "messages") from error
        return unit.messages

    def _prompt(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.served.text_prompt(prompt)
        if not prompt or not all(0 <= index < self.served.vocab.size for index in prompt):
            raise ApiError(
                400, f"Invalid value for 'prompt': give token ids from 0 to {self.served.vocab.size - 1}.", "prompt"
            )
        return self.served.checked(list(prompt))

    def _answering(
        self, asked: Asked, prompts: Sequence[list[int]], shape: Shape, longest: int | None, top: int | None
    ) -> Answering:
        seed = asked.seed if asked.seed is not None else secrets.randbits(62)
        makes = [
            partial(self._ticket, asked, ids, self._length(len(ids), longest), (seed, number), top)
            for number, ids in enumerate(prompts)
        ]
        return Answering(
            self.batcher,
            makes,
            asked.choices,
            shape,
            sum(map(len, prompts)),
            bool(asked.stream),
            asked.includes_usage,
        )

    def _length(self, prompt: int, longest: int | None) -> int:
        room = self.served.context_length - prompt
        return min(room, longest or room, self.limits.tokens or room)

    def _ticket(
        self, asked: Asked, ids: list[int], length: int, keys: tuple[int, int], top: int | None, deliver: Deliver
    ) -> Ticket:
        chat = isinstance(asked, ChatRequest)
        draws = Draws(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=asked.top_p,
            max_new_tokens=length,
            seed=keys[0],
            slot=keys[1],
            top_log_probs=top,
        )
        texts = [
            self.served.answer_text(asked.stop or (), sample, () if chat else ids) for sample in range(asked.choices)
        ]
        return Ticket(self.served.request(ids, draws, asked.choices), texts, deliver)

    @property
    def _model(self) -> dict[str, Any]:
        served = self.served
        return {
            "id": served.name,
            "object": "model",
            "created": 0,
            "owned_by": "replica",
            "context_length": served.context_length,
            "answers": served.template is not None,
            "system": served.system,
            "tools": list(served.tools),
            "step": served.step,
            "fingerprint": served.fingerprint,
        }

    @cached_property
    def _page(self) -> str:
        return (files("launch.chat") / "page.html").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- application
def make_app(api: Api, hosts: Sequence[str] = (), key: str | None = None) -> Starlette:
    """Returns the ASGI application.

    Args:
        api: the handlers.
        hosts: names by which clients call the server, beside localhost and addresses.
        key: what clients have to send; None: nothing.
    """
    routes = [
        Route("/", api.page),
        Route("/health", api.health),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/chat/completions", _posted(api.chat), methods=["POST"]),
        Route("/v1/completions", _posted(api.completions), methods=["POST"]),
    ]
    return guarded(routes, _KNOWN, hosts, key, _explained, (TooLong,))


def _posted(handler: Callable[[Request], Awaitable[Answering]]) -> Callable[[Request], Awaitable[Any]]:
    """The handler as Starlette wants it: what it returns is called like a response."""
    return handler


def _explained(error: Exception) -> ApiError | None:
    return ApiError(400, str(error), "messages", "context_length_exceeded") if isinstance(error, TooLong) else None
