"""The API with OpenAI's own client: a live server over a tiny model."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch

from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate
from launch.chat.batcher import Batcher
from launch.chat.protocol import ApiError, ChatRequest, CompletionRequest, parse
from launch.chat.server import Api, Limits, make_app
from tests.parts.chat_model import CONTEXT, ScriptedPlayer, chat_vocab, live, tiny_model, tiny_served

ASK: list[Any] = [{"role": "user", "content": "Hi?"}]


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Batcher]]:
    with live(tiny_served()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: tuple[str, Batcher]) -> Iterator[openai.OpenAI]:
    with client_of(server[0]) as made:
        yield made


def create(client: openai.OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny.sft", "messages": ASK, "max_tokens": 20, "seed": 5, **settings}
    )


def test_an_answer_its_usage_and_its_checkpoint(client: openai.OpenAI) -> None:
    said = create(client)
    assert (said.object, said.model, said.system_fingerprint) == ("chat.completion", "tiny.sft", "0f" * 32)
    (choice,) = said.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason in ("stop", "length")
    # bos, <|user|>, three bytes, <|end|>, <|assistant|>
    assert said.usage.prompt_tokens == 7
    assert said.usage.total_tokens == 7 + said.usage.completion_tokens <= 27


def test_the_same_seed_gives_the_same_answer_streamed_or_not(client: openai.OpenAI) -> None:
    whole, again, other = (create(client, seed=seed).choices[0].message.content for seed in (5, 5, 6))
    assert whole == again != other
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] in ("stop", "length")
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 7
    assert all(chunk.usage is None for chunk in chunks[:-1]) and len({chunk.id for chunk in chunks}) == 1
    plain = list(create(client, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    assert create(client, seed=None).choices[0].message.content != create(client, seed=None).choices[0].message.content


def test_n_answers_and_the_first_is_the_one_alone(client: openai.OpenAI) -> None:
    three = create(client, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts[0] == create(client).choices[0].message.content
    assert three.usage.prompt_tokens == 7 and three.usage.completion_tokens > 20
    streamed = {0: "", 1: "", 2: ""}
    for chunk in create(client, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_temperature_0_takes_the_likeliest_and_its_logprobs_are_the_models(client: openai.OpenAI) -> None:
    said = create(client, temperature=0, logprobs=True, top_logprobs=3, max_tokens=6).choices[0]
    served = tiny_served()
    assert served.template is not None
    ids = served.template.prompt([Message.of("user", "Hi?")])
    assert said.logprobs.content
    for entry in said.logprobs.content:
        with torch.no_grad():
            expected = tiny_model()(torch.tensor([ids]))[0, -1, : chat_vocab().size].log_softmax(-1)
        best = expected.topk(3)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry.logprob == entry.top_logprobs[0].logprob == pytest.approx(expected.max().item(), abs=1e-4)
        assert entry.top_logprobs[0].token == entry.token
        ids.append(int(best.indices[0]))
    spelled = b"".join(bytes(entry.bytes or []) for entry in said.logprobs.content)
    assert spelled.decode(errors="replace") == said.message.content
    assert create(client, max_tokens=6).choices[0].logprobs is None


def test_text_before_a_stop_string_and_its_tokens(client: openai.OpenAI) -> None:
    whole = create(client, logprobs=True).choices[0]
    text = whole.message.content
    stop = text[8:10]
    assert text.find(stop) >= 4, "this tiny model would show little"
    cut = create(client, stop=[stop, "never said"], logprobs=True)
    assert cut.choices[0].message.content == text.partition(stop)[0] and cut.choices[0].finish_reason == "stop"
    assert len(cut.choices[0].logprobs.content) < len(whole.logprobs.content)
    assert cut.usage.completion_tokens < 20
    pieces = [chunk.choices[0].delta.content or "" for chunk in create(client, stop=stop, stream=True)]
    assert "".join(pieces) == text.partition(stop)[0]


def test_max_completion_tokens_and_the_end_of_the_context(client: openai.OpenAI) -> None:
    assert create(client, max_tokens=None, max_completion_tokens=3).usage.completion_tokens <= 3
    long = [{"role": "user", "content": "x" * (CONTEXT - 8)}]
    said = create(client, messages=long, max_tokens=50)
    assert said.usage.completion_tokens == CONTEXT - said.usage.prompt_tokens == 4
    assert said.choices[0].finish_reason in ("length", "stop")


def test_completions_of_text_and_of_ids(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny.sft", "max_tokens": 8, "seed": 1, "logprobs": 2}
    said = client.completions.create(prompt="Once", n=2, **settings)
    assert (said.object, len(said.choices), said.usage.prompt_tokens) == ("text_completion", 2, 4)  # type: ignore[union-attr]
    scored = said.choices[0].logprobs
    assert scored is not None and len(scored.tokens or []) == len(scored.token_logprobs or []) <= 8
    assert all(len(top) == 2 for top in scored.top_logprobs or []) and (scored.text_offset or [1])[0] == 0
    same = client.completions.create(prompt=chat_vocab().encode("Once"), n=2, **settings)
    assert [choice.text for choice in same.choices] == [choice.text for choice in said.choices]
    several = client.completions.create(prompt=["Once", "Twice"], **settings)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == said.choices[0].text
    streamed = list(client.completions.create(prompt="Once", stream=True, **settings))
    assert "".join(chunk.choices[0].text for chunk in streamed) == said.choices[0].text


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny.sft", "model", "replica")
    assert client.models.retrieve("tiny.sft").id == "tiny.sft"
    with pytest.raises(openai.NotFoundError, match="does not exist") as wrong:
        client.models.retrieve("gpt-5")
    assert wrong.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("settings", "words", "param"),
    [
        ({"messages": []}, "at least 1", "messages"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "'pirate' is no role", "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "a message of the user is empty", "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "take turns", "messages"),
        ({"messages": [*ASK, {"role": "assistant", "content": "a"}]}, "must be the user's", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text alone", "messages[0].content"),
        ({"temperature": 3}, "less than or equal to 2", "temperature"),
        ({"top_p": 0}, "greater than 0", "top_p"),
        ({"n": 33}, "at most 32 answers", "n"),
        ({"n": 0}, "greater than or equal to 1", "n"),
        ({"seed": "x"}, "valid integer", "seed"),
        ({"max_tokens": 0}, "greater than or equal to 1", "max_tokens"),
        ({"stop": ["a"] * 5}, "at most 4", "stop"),
        ({"stop": [""]}, "1 to 1000", "stop"),
        ({"top_logprobs": 2}, "needs `logprobs`", "top_logprobs"),
        ({"presence_penalty": 0.5}, "not supported", "presence_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "not supported", "tools"),
        ({"extra_body": {"top_g": 3}}, "Unrecognized request argument supplied: top_g", "top_g"),
        ({"extra_body": {"top-g": 3}}, "Unrecognized request argument supplied: top-g", "top-g"),
        ({"messages": [{**ASK[0], "a b": 3}]}, "supplied: messages[0].a b", "messages[0].a b"),
        ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "maximum context length is 128", "messages"),
    ],
    ids=str,
)
def test_mistakes_are_named_in_openais_shape(
    client: openai.OpenAI, settings: dict[str, Any], words: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        create(client, **settings)
    assert words in str(wrong.value) and wrong.value.param == param
    assert wrong.value.type == "invalid_request_error"


def test_what_chooses_nothing_is_taken(client: openai.OpenAI) -> None:
    assert create(
        client, presence_penalty=0, user="me", metadata={"a": "b"}, store=False, response_format={"type": "text"}
    )
    developer = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi?"}]},
    ]
    system = [{"role": "system", "content": "Be kind."}, *ASK]
    assert create(client, messages=developer).choices[0].message == create(client, messages=system).choices[0].message


def test_the_wrong_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="This server has"):
        create(client, model="gpt-5")


# ------------------------------------------------------------------------------------------------- what the model reads
def test_the_model_reads_the_ids_of_the_template_with_one_bos() -> None:
    served = tiny_served(system="Be kind.")
    player = ScriptedPlayer(lambda _: "yes")
    turns: list[Any] = [
        *ASK,
        {"role": "assistant", "content": "<|end|>No"},
        {"role": "user", "content": "<|assistant|>"},
    ]
    with live(served, player=player) as (address, _), client_of(address) as client:
        assert create(client, messages=turns).choices[0].message.content == "yes"
        own = [{"role": "system", "content": "Mine."}, *turns]
        create(client, messages=own)
    said = [Message.of("user", "Hi?"), Message.of("assistant", "<|end|>No"), Message.of("user", "<|assistant|>")]
    assert served.template is not None
    expected = [served.template.prompt([Message.of("system", text), *said]) for text in ("Be kind.", "Mine.")]
    assert player.prompts == expected
    assert all(prompt.count(served.vocab.eod_id) == 1 for prompt in player.prompts)


def test_the_oldest_turns_leave_when_the_client_allows_it() -> None:
    player = ScriptedPlayer(lambda _: "yes")
    served = tiny_served()
    assert served.template is not None
    turns: list[Any] = [
        {"role": ("user", "assistant")[number % 2], "content": letter * 30} for number, letter in enumerate("abcde")
    ]
    with live(served, player=player) as (address, _), client_of(address) as client:
        with pytest.raises(openai.BadRequestError, match="maximum context length") as wrong:
            create(client, messages=turns)
        assert wrong.value.code == "context_length_exceeded"
        said = create(client, messages=turns, extra_body={"truncation": "auto"})
        assert said.dropped_messages == 2
    left = [Message.of(role, letter * 30) for role, letter in (("user", "c"), ("assistant", "d"), ("user", "e"))]
    assert player.prompts == [served.template.prompt(left)]


def test_a_thousand_messages_are_encoded_once_each() -> None:
    """Encoded again for each turn that leaves, they would hold the server up for minutes."""
    encoded: list[str] = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return chat_vocab().encode(text)

    served = replace(tiny_served(), template=ChatTemplate(chat_vocab(), encode))
    turns = [Message.of(("user", "assistant")[number % 2], f"{number:04d}") for number in range(999)]
    ids, dropped = served.chat_prompt([Message.of("system", "Be kind."), *turns], 16)
    assert len(encoded) < 1100
    assert served.template is not None
    left = [Message.of("system", "Be kind."), *turns[dropped:]]
    assert ids == served.template.prompt(left) and len(ids) + 16 <= CONTEXT
    one_more = [left[0], *turns[dropped - 2 :]]
    assert len(served.template.prompt(one_more)) + 16 > CONTEXT


class WithTool(ScriptedPlayer):
    """Says `It is `, asks the calculator, and goes on."""

    def add(self, request: Any) -> list[int]:
        (row,) = super().add(request)
        marks = chat_vocab().vocabulary
        call = [marks["<|call|>"], *chat_vocab().encode("6*7"), marks["<|/call|>"]]
        result = [marks["<|result|>"], *chat_vocab().encode("42"), marks["<|/result|>"]]
        self.rows[row] = [*chat_vocab().encode("It is "), *call, *result, *self.rows[row]]
        return [row]


PARTS = [
    {"type": "text", "text": "It is "}, {"type": "call", "text": "6*7"}, {"type": "result", "text": "42"},
    {"type": "text", "text": "42."},
]  # fmt: skip


def test_calls_of_tools_and_their_results_are_no_text() -> None:
    with live(tiny_served(), player=WithTool(lambda _: "42.")) as (address, _), client_of(address) as client:
        said = create(client, logprobs=True, max_tokens=40)
        cut = create(client, stop=[" 4"], max_tokens=40)
        chunks = list(create(client, stream=True, max_tokens=40))
        plain = create(client, stop=["It"], max_tokens=40)
    assert said.choices[0].message.content == "It is 42." and said.choices[0].message.parts == PARTS
    assert [entry.token for entry in said.choices[0].logprobs.content][:-1] == list("It is 42.")
    assert said.usage.completion_tokens == 9 + 1 + 5 + 4
    assert cut.choices[0].message.content == "It is" and not hasattr(cut.choices[0].message, "parts")
    assert [chunk for chunk in chunks if hasattr(chunk.choices[0].delta, "parts")] == chunks[-1:]
    assert chunks[-1].choices[0].delta.parts == PARTS
    assert not hasattr(plain.choices[0].message, "parts")


def test_an_answer_that_used_a_tool_is_read_as_it_was_written() -> None:
    """What the model sees of its own answer is what it wrote and was trained on, however the client sends it back."""
    served = tiny_served(tools=["calculator"])
    assert served.template is not None
    answered = Message.from_json({"role": "assistant", "content": PARTS})
    expected = served.template.prompt([Message.of("user", "Hi?"), answered, Message.of("user", "Sure?")])
    function = {"name": "calculator", "arguments": '{"expression": "6*7"}'}
    calls = {
        "role": "assistant",
        "content": "It is ",
        "tool_calls": [{"id": "a", "type": "function", "function": function}],
    }
    player = WithTool(lambda _: "42.")
    with live(served, player=player) as (address, _), client_of(address) as client:
        first = create(client, max_tokens=40).choices[0].message
        histories: list[list[Any]] = [
            [first],
            [first.model_dump()],
            [{"role": "assistant", "content": PARTS}],
            [calls, {"role": "tool", "tool_call_id": "a", "content": "42"}, {"role": "assistant", "content": "42."}],
        ]
        for history in histories:
            create(client, messages=[*ASK, *history, {"role": "user", "content": "Sure?"}], max_tokens=1)
            assert player.prompts[-1] == expected
        assert client.models.list().data[0].tools == ["calculator"]  # type: ignore[attr-defined]
        other = {**calls, "tool_calls": [{"id": "a", "function": {"name": "weather", "arguments": "{}"}}]}
        mistakes: list[tuple[list[Any], str]] = [
            ([{"role": "assistant", "content": "No.", "parts": PARTS}], "another text than that of `parts`"),
            ([{**ASK[0], "parts": PARTS}], "belong to an answer"),
            ([other, {"role": "tool", "tool_call_id": "a", "content": "x"}], "unknown_tool: 'weather'"),
            ([calls, *histories[3][2:]], "call_without_result"),
            (histories[3][:2], "followed by the rest of the answer"),
        ]
        for history, words in mistakes:
            with pytest.raises(openai.BadRequestError, match=words):
                create(client, messages=[*ASK, *history, {"role": "user", "content": "Sure?"}])


def test_a_model_without_tools_reads_no_calls(client: openai.OpenAI) -> None:
    for message in ({"role": "assistant", "content": PARTS}, {"role": "tool", "content": "42"}):
        with pytest.raises(openai.BadRequestError, match="this model has no tools") as wrong:
            create(client, messages=[*ASK, message, *ASK])
        assert wrong.value.param == "messages"


def test_with_a_compiled_step_answers_are_the_same(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `replica serve --compile`: fixed rows, of which the batcher fills as many; compiling itself is torch's."""
    calls: list[int] = []

    def watched(step: Any) -> Any:
        return lambda *inputs: calls.append(len(inputs[0])) or step(*inputs)

    monkeypatch.setattr("pretrain.generation.decode.compiled", watched)
    served = tiny_served()
    with live(served, Limits(rows=4), player=served.player(4)) as (address, _), client_of(address) as other:
        for n in (1, 4):
            said = [[choice.message.content for choice in create(one, n=n).choices] for one in (client, other)]
            assert said[0] == said[1]
        threads = [threading.Thread(target=create, args=(other,), kwargs={"n": 3}) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls and set(calls) == {4}


# ------------------------------------------------------------------------------------------------ more than one client
class Gate:
    """Lets a scripted player's steps through one by one."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> None:
        self.entered.release()
        assert self.open.acquire(timeout=60)


def wait_until(happened: Callable[[], bool]) -> None:
    while not happened():  # the time limit of tests ends it
        time.sleep(0.001)


def test_requests_that_arrive_together_decode_together_and_say_what_each_says_alone(
    server: tuple[str, Batcher],
) -> None:
    address, batcher = server
    asks = [{"messages": [{"role": "user", "content": f"Number {index}?"}], "seed": index} for index in range(4)]
    with client_of(address) as client:
        before = batcher.steps
        alone = [create(client, **ask).choices[0].message.content for ask in asks]
        one_by_one = batcher.steps - before
        together: dict[int, str] = {}

        def ask(index: int) -> None:
            together[index] = create(client, **asks[index]).choices[0].message.content

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        before = batcher.steps
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[index] for index in range(4)] == alone
    assert batcher.steps - before < one_by_one / 1.5


def test_a_request_joins_while_another_is_answered() -> None:
    gate = Gate()
    player = ScriptedPlayer(lambda text: "x" * 40 if "slow" in text else "y", gate)
    with live(tiny_served(), player=player) as (address, _), client_of(address) as client:
        slow = create(client, messages=[{"role": "user", "content": "slow"}], max_tokens=60, stream=True)
        assert gate.entered.acquire(timeout=60)
        quick: list[Any] = []
        thread = threading.Thread(
            target=lambda: quick.append(create(client, messages=[{"role": "user", "content": "quick"}]))
        )
        thread.start()
        while thread.is_alive():  # the slow one goes on as well, a step for each of the quick one's
            gate.open.release()
            thread.join(0.01)
        assert quick[0].choices[0].message.content == "y"
        assert len(next(iter(player.rows.values()))) > 5, "the slow answer was over before"
        slow.close()
        for _ in range(100):
            gate.open.release()


def test_a_closed_connection_frees_its_row_in_mid_stream() -> None:
    gate = Gate()
    player = ScriptedPlayer(lambda _: "x" * 90, gate)
    with live(tiny_served(), player=player, limits=Limits(rows=1)) as (address, batcher), client_of(address) as client:
        stream = create(client, stream=True, max_tokens=100)
        gate.open.release(3)
        next(iter(stream))
        assert gate.entered.acquire(timeout=60) and player.rows
        stream.close()
        wait_until(lambda: batcher.load == (0, 0))  # the server has noticed, in the middle of a step
        gate.open.release(200)
        with client_of(address) as after:
            assert create(after, max_tokens=1).choices[0].message.content == "x"
        assert not player.rows and batcher.steps < 10


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_without_its_whole_answer_frees_its_row(stream: bool) -> None:
    gate = Gate()
    player = ScriptedPlayer(lambda _: "x" * 90, gate)
    with live(tiny_served(), player=player) as (address, batcher):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        body = json.dumps({"messages": ASK, "max_tokens": 100, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        assert gate.entered.acquire(timeout=60)
        connection.close()
        wait_until(lambda: batcher.load == (0, 0))
        gate.open.release(100)
        wait_until(lambda: not player.rows)
        assert batcher.steps < 10


def test_what_is_ready_is_sent_in_one_part() -> None:
    """A client that left is noticed between two parts: 32 of them at once would be written to nobody, with a remark."""
    sent: list[bytes] = []

    async def run() -> None:
        asked = {"messages": ASK, "n": 32, "stream": True, "max_tokens": 2}
        body = json.dumps(asked).encode()
        arrived = iter([{"type": "http.request", "body": body, "more_body": False}])
        over = asyncio.Event()

        async def receive() -> Any:
            return next(arrived, None) or await over.wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.append(message["body"])

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await app({**scope, "query_string": b"", "raw_path": b""}, receive, send)

    batcher = Batcher(ScriptedPlayer(lambda _: "y"))
    try:
        app = make_app(Api(tiny_served(), batcher))
        asyncio.run(run())
    finally:
        batcher.close()
    events = b"".join(sent).decode().split("\n\n")
    assert len(events) == 32 + 2 * 32 + 2  # an opening and two pieces of each, the end, and nothing after it
    assert len(sent) <= 5


def test_too_many_waiting_requests_are_told_so() -> None:
    gate = Gate()
    player = ScriptedPlayer(lambda _: "x" * 20, gate)
    with (
        live(tiny_served(), player=player, limits=Limits(rows=1, waiting=1)) as (address, batcher),
        client_of(address) as client,
    ):
        first = create(client, stream=True)
        assert gate.entered.acquire(timeout=60)
        second: list[Any] = []
        thread = threading.Thread(target=lambda: second.append(create(client)))
        thread.start()
        wait_until(lambda: batcher.load == (1, 1))
        with pytest.raises(openai.RateLimitError, match="Too many requests are waiting") as busy:
            create(client)
        assert busy.value.code == "too_many_requests" and busy.value.response.headers["retry-after"] == "1"
        gate.open.release(100)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in first) == "x" * 20
        thread.join()
        assert second[0].choices[0].message.content == "x" * 20


def test_a_model_that_fails_ends_its_requests_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the server's fault, not the client's, and the server's log says more."""
    calls = iter([None, RuntimeError("boom"), *[None] * 100])

    def fail() -> None:
        if error := next(calls):
            raise error

    with (
        live(tiny_served(), player=ScriptedPlayer(lambda _: "yes", fail)) as (address, _),
        client_of(address) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="The model failed: boom"):
            create(client)
        assert create(client).choices[0].message.content == "yes"
    calls = iter([None, None, ValueError("no finite probabilities"), *[None] * 100])
    with (
        live(tiny_served(), player=ScriptedPlayer(lambda _: "yes", fail)) as (address, _),
        client_of(address) as client,
    ):
        stream = create(client, stream=True)
        with pytest.raises(openai.APIError, match="no finite probabilities") as wrong:
            list(stream)
        assert wrong.value.type == "server_error"
        assert create(client).choices[0].message.content == "yes"
    log = capsys.readouterr().err
    assert "RuntimeError: boom" in log and "warning: the answers under way failed: no finite probabilities" in log


def test_a_base_model_completes_and_says_that_it_does_not_answer() -> None:
    with live(tiny_served(base=True)) as (address, _), client_of(address) as client:
        with pytest.raises(openai.BadRequestError, match="base model") as wrong:
            create(client)
        assert wrong.value.code == "not_a_chat_model"
        assert client.completions.create(model="tiny.sft", prompt="Once", max_tokens=5).choices[0].text is not None
        assert client.models.list().data[0].answers is False  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------- bodies by themselves
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b'{"messages": [{"role": "user"}]}', "Missing required parameter: 'messages[0].content'"),
        (
            b'{"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]}',
            "`function_call` is not",
        ),
        (b'{"messages": "x"}', "valid array"),
        (b"{}", "Missing required parameter: 'messages'"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_bodies_that_are_no_request(body: bytes, words: str) -> None:
    with pytest.raises(ApiError) as wrong:
        parse(ChatRequest, body)
    assert wrong.value.status == 400 and words in wrong.value.message


@pytest.mark.parametrize(
    "prompt", ["[]", '[1, "x"]', "[[1], 2]", '["x", [1]]', "[true]", "[1.5]", "null", "3", '{"a": 1}', "[[1, null]]"]
)
def test_prompts_that_are_none(prompt: str) -> None:
    with pytest.raises(ApiError) as wrong:
        parse(CompletionRequest, b'{"prompt": %s}' % prompt.encode())
    assert wrong.value.param is not None and wrong.value.param.startswith("prompt")


def test_ids_outside_the_vocabulary_are_refused(client: openai.OpenAI) -> None:
    for prompt in ([chat_vocab().size], [-1], [[]]):
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(model="tiny.sft", prompt=prompt)  # type: ignore[arg-type]
        assert wrong.value.param == "prompt"
