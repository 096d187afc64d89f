"""Defines requests, answers and errors of the OpenAI-compatible API, free of torch and of the server.

Follows the reference of chat completions and completions at platform.openai.com. What would change an answer and is not
supported is refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 1000
MAX_MESSAGES = 1000
MAX_CHOICES = 128


class ApiError(Exception):
    """An error that the client is told of, in OpenAI's shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Returns the JSON object of the error."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


# Fields that choose nothing about the text of an answer.
_WITHOUT_EFFECT = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
)  # fmt: skip
# Fields that are not supported, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,), "best_of": (None, 1), "echo": (None, False), "frequency_penalty": (None, 0),
    "function_call": (None, "none"), "functions": (None, []), "logit_bias": (None, {}), "modalities": (None, ["text"]),
    "prediction": (None,), "presence_penalty": (None, 0), "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}), "suffix": (None,), "tool_choice": (None, "none", "auto"),
    "tools": (None, []), "verbosity": (None,), "web_search_options": (None,),
}  # fmt: skip


_TOOL = ("call", "result")


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Body):
    """What a stream carries beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(_Body):
    """What chat completions and completions have in common."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("the body must be a JSON object")
        for name, neutral in _NEUTRAL.items():
            if name in value and not any(_same(value[name], item) for item in neutral):
                raise ValueError(f"`{name}` is not supported by this server; leave it out")
        return {name: item for name, item in value.items() if name not in _NEUTRAL and name not in _WITHOUT_EFFECT}

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if stops is None:
            return None
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise ValueError("give a string or a list of strings")
        if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise ValueError(f"give at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters")
        return stops

    @property
    def choices(self) -> int:
        """Number of answers to one prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Tells whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class Part(_Body):
    """A stretch of an answer that used a tool."""

    type: Literal["text", "call", "result"]
    text: str


class ChatMessage(_Body):
    """One message of a conversation.

    An answer may say what it did with a tool: by `parts`, as this server gives them, or by OpenAI's `tool_calls` and
    messages of role `tool`.
    """

    role: str
    content: str
    name: str | None = None
    refusal: None = None
    parts: list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("function_call"):
            raise ValueError("`function_call` is not supported by this server; use `tool_calls`")
        known = {key: item for key, item in value.items() if key not in ("function_call", "annotations", "audio")}
        content = known.get("content")
        if isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in _TOOL for part in content):
            known["parts"], known["content"] = content, None  # as `/save` of `replica chat` writes it
        if known.get("content") is None and (known.get("parts") or known.get("tool_calls")):
            known["content"] = ""
        return known

    @model_validator(mode="after")
    def _agree(self) -> ChatMessage:
        if self.parts:
            if self.role != "assistant" or self.tool_calls:
                raise ValueError("`parts` belong to an answer, and say all of it: without `tool_calls`")
            if self.content not in ("", "".join(part.text for part in self.parts if part.type == "text")):
                raise ValueError("`content` is another text than that of `parts`; give one of them")
        return self

    @property
    def record(self) -> dict[str, Any]:
        """The message as data preparation reads it."""
        content = [part.model_dump() for part in self.parts] if self.parts else self.content
        more = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        return {"role": self.role, "content": content, **{name: given for name, given in more.items() if given}}

    @property
    def uses_tools(self) -> bool:
        """Tells whether it has a call of a tool, or the result of one."""
        return bool(self.role == "tool" or self.tool_calls or any(part.type != "text" for part in self.parts or ()))

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for part in value:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"this model reads text alone, not {kind!r}")
        return "".join(part["text"] for part in value)

    @field_validator("role")
    @classmethod
    def _role(cls, value: str) -> str:
        if value == "developer":  # what newer clients call it
            return "system"
        if value not in ("system", "user", "assistant", "tool"):
            raise ValueError(f"{value!r} is no role; use system, user or assistant, or tool for the result of a call")
        return value


class ChatRequest(Asked):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # As in OpenAI's Responses API: `auto` drops the oldest turns of a conversation that is too long.
    truncation: Literal["auto", "disabled"] | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs`: true")
        return self

    @property
    def longest(self) -> int | None:
        """Largest number of tokens of an answer, if the client limits it."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Asked):
    """The body of POST /v1/completions. `prompt` is one prompt or several, as text or as token ids."""

    prompt: Annotated[list[str] | list[list[int]], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        prompts = [value] if isinstance(value, str) else value
        if not isinstance(prompts, list):
            raise ValueError("give a text, token ids, or a list of these")
        if prompts and all(type(item) is int for item in prompts):
            prompts = [prompts]
        kinds = {type(prompt) for prompt in prompts}
        if len(kinds) > 1 or not kinds <= {str, list}:
            raise ValueError("give a text, token ids, or a list of these")
        if any(type(item) is not int for prompt in prompts if isinstance(prompt, list) for item in prompt):
            raise ValueError("token ids are whole numbers")
        return prompts


def _same(left: Any, right: Any) -> bool:
    return type(left) is not bool and left == right if type(right) is int else left == right


Request = TypeVar("Request", ChatRequest, CompletionRequest)


def parse(kind: type[Request], body: bytes) -> Request:
    """Reads the body of a request.

    Raises:
        ApiError: 400 that names the field and says what it may be.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _explained(first["type"], first["loc"], first["msg"], error.error_count()) from None


def _explained(kind: str, place: Sequence[int | str], message: str, problems: int) -> ApiError:
    if kind == "json_invalid":
        return ApiError(400, f"The body is not valid JSON in UTF-8: {message.removeprefix('Invalid JSON: ')}.")
    # A union names the type that it tried after the field.
    names = [part for part in place if isinstance(part, int) or part.isidentifier()]
    if kind == "extra_forbidden" and place[-1] not in names[-1:]:  # the client's own name, which may be anything
        names.append(str(place[-1])[:100])
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).lstrip(".") or None
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}.", param)
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    text = message.removeprefix("Value error, ")
    if param is None and text.startswith("`"):
        param = text.split("`")[1]
        return ApiError(400, f"{text}.", param, "unsupported_parameter" if "supported" in text else None)
    where = f"Invalid value for '{param}': " if param else ""
    more = f" ({problems - 1} more problems)" if problems > 1 and not param else ""
    return ApiError(400, f"{where}{text}.{more}", param, "invalid_value" if param else None)


# ------------------------------------------------------------------------------------------------------------- answers
def usage(prompt: int, completion: int) -> dict[str, int]:
    """Returns the `usage` object: tokens read, each prompt once, and tokens generated in all choices."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(content: Mapping[str, Any] | str) -> bytes:
    """Returns one server-sent event with a JSON object, or with a word such as `[DONE]`."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
