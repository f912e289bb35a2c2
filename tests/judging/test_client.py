"""The client: what passes is tried again, what does not is told, nothing is asked twice, and the key stays hidden."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from chat_server import Answer, ChatServer, completion, failure
from lsemrl.errors import UserError
from lsemrl.judging.client import ChatClient, Conversation, Endpoint, Reply, ReplyCache, converse, retry_after

KEY = "sk-test-0123456789-secret"
OK = completion("fine")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The waits that were asked for, none of which is waited."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float, result: Any = None) -> Any:
        asked.append(seconds)
        return await sleep(0, result)

    monkeypatch.setattr(asyncio, "sleep", record)
    yield asked


def endpoint(server: ChatServer, **settings: Any) -> Endpoint:
    return Endpoint(**{"base_url": server.base_url, "model": "m", "backoff": 0.001, "timeout": 30.0} | settings)


def in_turn(*answers: Answer, then: Answer = OK) -> Callable[[int, str], Answer]:
    """The answers one after the other, and `then` for good."""
    return lambda number, prompt: answers[number] if number < len(answers) else then


def ask(to: Endpoint, prompts: list[str], cache: Path, tries: int = 1) -> list[Conversation]:
    return converse(prompts, to, ReplyCache(cache), accepts=lambda reply: reply.text == "fine", tries=tries)


def texts(conversations: list[Conversation]) -> list[tuple[str, ...]]:
    return [tuple(reply.text for reply in conversation.replies) for conversation in conversations]


def test_a_request_holds_what_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with ChatServer(in_turn()) as server:
        settings = {"key_variable": "MY_KEY", "temperature": 0.5, "extra": {"max_tokens": None, "seed": 3}}
        assert texts(ask(endpoint(server, **settings), ["རྟ 甲"], tmp_path)) == [("fine",)]
        ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "རྟ 甲"}],
        "temperature": 0.5,
        "seed": 3,
    }


def test_without_a_key_none_is_sent(tmp_path: Path) -> None:
    with ChatServer(in_turn()) as server:
        ask(endpoint(server), ["p"], tmp_path)
    assert "Authorization" not in server.requests[0][1]


@pytest.mark.parametrize(
    "trouble",
    [
        failure(500),
        failure(503),
        failure(529),
        failure(429),
        failure(408),
        Answer(hang_up=True),
        Answer(body=b"<html>gateway</html>"),
        Answer(body=b"\xff\xfe\x00garbage"),
        Answer(body=b"[" * 100_000),
        Answer(body=b""),
        Answer(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
        Answer(body=b"[]"),
        Answer(body=b"null"),
        Answer(body=b"{}"),
        Answer(body=b'{"choices": []}'),
        Answer(body=b'{"choices": [{"text": "fine"}]}'),
        Answer(body=b'{"choices": [{"message": "fine"}]}'),
        Answer(body=b'{"choices": [{"message": {"content": 7}}]}'),
        Answer(body=b'{"error": {"message": "overloaded"}}'),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:30]!r}",
)
def test_trouble_that_passes(trouble: Answer, tmp_path: Path, waits: list[float]) -> None:
    with ChatServer(in_turn(trouble, trouble)) as server:
        assert texts(ask(endpoint(server, backoff=1.0), ["p"], tmp_path)) == [("fine",)]
    assert len(server.requests) == 3
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


@pytest.mark.parametrize("trickle", [False, True])
def test_a_request_has_so_much_time_and_no_more(trickle: bool, tmp_path: Path) -> None:
    def behaviour(number: int, prompt: str) -> Answer:
        if number == 0 and trickle:  # each byte in time, the whole never
            return Answer(body=OK.body, trickle=True)
        if number == 0:
            server.closing.wait()
        return OK

    with ChatServer(behaviour) as server:
        assert texts(ask(endpoint(server, timeout=0.5, attempts=40), ["p"], tmp_path)) == [("fine",)]
        assert len(server.requests) >= 2


def test_waits_double_up_to_the_longest(tmp_path: Path, waits: list[float]) -> None:
    with ChatServer(in_turn(then=failure(500))) as server, pytest.raises(UserError, match="asked 8 times"):
        ask(endpoint(server, attempts=8, backoff=1.0, max_wait=10.0), ["p"], tmp_path)
    assert len(server.requests) == 8
    for wait, longest in zip(waits, (1, 2, 4, 8, 10, 10, 10), strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(waits[-3:])) == 3  # drawn, so that clients do not come back all at once


def test_retry_after_is_honoured(tmp_path: Path, waits: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    troubles = (failure(429, Retry_After="7"), failure(503, Retry_After=later), failure(429, Retry_After="soon"))
    with ChatServer(in_turn(*troubles)) as server:
        ask(endpoint(server), ["p"], tmp_path)
    assert waits[0] == 7
    assert 30 < waits[1] <= 60
    assert waits[2] < 1


def test_a_wait_beyond_the_longest_is_not_waited(tmp_path: Path, waits: list[float]) -> None:
    with (
        ChatServer(in_turn(failure(429, "daily limit", Retry_After="3600"))) as server,
        pytest.raises(UserError, match=r"answers 429 \(daily limit\) and asks to wait 3600 s"),
    ):
        ask(endpoint(server), ["p"], tmp_path)
    assert waits == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("5", 5),
        (" 2.5 ", 2.5),
        ("-3", 0),
        ("nan", 0),
        ("²", 0),
        ("tomorrow", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
        ("9" * 400, float("inf")),
    ],
)
def test_what_retry_after_says(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (failure(401), "no API key was sent: put one in the environment variable OPENAI_API_KEY"),
        (failure(403), "no API key was sent"),
        (failure(404, "no model m"), r"404 \(no model m\): endpoint.base_url must be what comes before"),
        (failure(405, "not here"), r"answers 405 \(not here\)"),
        (Answer(status=302, headers={"Location": "/v1/elsewhere"}), "redirects to /v1/elsewhere; set endpoint.base"),
        (Answer(status=304), "redirects to nowhere"),
        (failure(400, "unknown parameter"), r"answers 400 \(unknown parameter\)"),
    ],
)
def test_trouble_that_does_not_pass_is_told_at_once(answer: Answer, said: str, tmp_path: Path) -> None:
    with ChatServer(in_turn(then=answer)) as server, pytest.raises(UserError, match=said):
        ask(endpoint(server), ["p"], tmp_path)
    assert len(server.requests) == 1  # in particular, nothing followed the redirect with the key


def test_a_host_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"names the host 'nowhere\.invalid', which nobody knows"):
        ask(Endpoint(base_url="http://nowhere.invalid/v1", model="m"), ["p"], tmp_path)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"cannot be reached .*asked 2 times; see that it is up"):
            ask(Endpoint(base_url=url, model="m", attempts=2, backoff=0.001), ["p"], tmp_path)


def test_a_prompt_that_is_refused_stands_alone(tmp_path: Path) -> None:
    with ChatServer(lambda number, prompt: failure(400, "filtered") if prompt == "bad" else OK) as server:
        conversations = ask(endpoint(server), ["good", "bad", "fair"], tmp_path)
    assert texts(conversations) == [("fine",), (), ("fine",)]
    assert "answers 400 (filtered)" in conversations[1].problem


def test_when_everything_is_refused_not_everything_is_asked(tmp_path: Path) -> None:
    with ChatServer(in_turn(then=failure(400, "unknown parameter"))) as server, pytest.raises(UserError, match="unkn"):
        ask(endpoint(server, concurrency=1), [str(number) for number in range(100)], tmp_path)
    assert len(server.requests) == 10


def test_an_endless_garbler_is_told(tmp_path: Path) -> None:
    with (
        ChatServer(in_turn(then=Answer(body=b"<html>welcome</html>"))) as server,
        pytest.raises(UserError, match=r"no JSON \(<html>welcome</html>\), asked 2 times; endpoint.base_url may be"),
    ):
        ask(endpoint(server, attempts=2), ["p"], tmp_path)
    assert len(server.requests) == 2


def test_unacceptable_replies_are_asked_again_so_often_and_no_more(tmp_path: Path) -> None:
    with ChatServer(in_turn(completion("hm"), completion(None, "length"))) as server:
        (conversation,) = ask(endpoint(server), ["p"], tmp_path / "a", tries=3)
        assert conversation.replies == (Reply(text="hm"), Reply(text="", cut=True), Reply(text="fine"))
    with ChatServer(lambda number, prompt: completion("hm") if prompt == "p" else OK) as server:
        for tries, asked in ((3, 4), (3, 4), (4, 5)):  # they are remembered too; a higher limit asks for the difference
            assert texts(ask(endpoint(server), ["p", "q"], tmp_path / "b", tries=tries)) == [("hm",) * tries, ("fine",)]
            assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (
            completion("So\nI cannot say."),
            r"without a verdict \(one ends with 'So I cannot say.'\); name another model",
        ),
        (completion("Let me see", "length"), "cut at endpoint.max_tokens, 2048; raise it"),
    ],
)
def test_an_endpoint_that_gives_no_acceptable_reply_is_given_up(reply: Answer, told: str, tmp_path: Path) -> None:
    with ChatServer(in_turn(then=reply)) as server:
        for asked in (20, 22):  # the same command looks whether it is better now
            with pytest.raises(UserError, match=told):
                ask(endpoint(server, concurrency=1), [str(number) for number in range(30)], tmp_path, tries=2)
            assert len(server.requests) == asked
        with pytest.raises(UserError, match=told):
            ask(endpoint(server), ["a"], tmp_path)


def test_never_more_at_once_than_allowed_and_never_fewer(tmp_path: Path) -> None:
    arrived = threading.Barrier(3)  # every third request lets two others go: with fewer at once none would

    def behaviour(number: int, prompt: str) -> Answer:
        arrived.wait(timeout=60)
        return OK

    with ChatServer(behaviour) as server:
        prompts = [str(number) for number in range(12)]
        assert texts(ask(endpoint(server, concurrency=3), prompts, tmp_path)) == [("fine",)] * 12
    assert server.most_at_once == 3


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with ChatServer(in_turn()) as server:
        to = endpoint(server)
        first = ask(to, ["p", "q", "p"], tmp_path)
        assert len(server.requests) == 2
        assert ask(to, ["q", "p", "p"], tmp_path) == first
        assert ask(endpoint(server, concurrency=1, attempts=1), ["p", "q", "p"], tmp_path) == first  # same question
        assert len(server.requests) == 2
        for other in ({"model": "n"}, {"temperature": 0.1}, {"max_tokens": 5}, {"extra": {"seed": 1}}):
            ask(endpoint(server, **other), ["p"], tmp_path)
        assert len(server.requests) == 6
        for path in tmp_path.iterdir():
            path.write_bytes(b"\xff damaged")
        assert ask(to, ["p"], tmp_path)[0] == first[0]
        assert len(server.requests) == 7


def test_a_failure_halfway_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [str(number) for number in range(8)]
    with ChatServer(in_turn(*[OK] * 5, then=failure(500))) as server:
        to = endpoint(server, concurrency=1, attempts=2)
        with pytest.raises(UserError, match="replies so far are kept"):
            ask(to, prompts, tmp_path)
        server.behaviour, server.requests = in_turn(), []
        assert texts(ask(to, prompts, tmp_path)) == [("fine",)] * 8
        assert len(server.requests) == 3


def test_ctrl_c_halfway_keeps_what_there_is(tmp_path: Path) -> None:
    def behaviour(number: int, prompt: str) -> Answer:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
            server.closing.wait()
        return OK

    prompts = [str(number) for number in range(8)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ChatServer(behaviour) as server:
            to = endpoint(server, concurrency=1)
            with pytest.raises(KeyboardInterrupt):
                ask(to, prompts, tmp_path)
            server.behaviour, server.requests = in_turn(), []
            assert texts(ask(to, prompts, tmp_path)) == [("fine",)] * 8
            assert len(server.requests) == 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_replies_that_cannot_be_kept_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache.* cannot be written to"):
        ReplyCache(tmp_path / "file" / "cache")
    with ChatServer(in_turn()) as server:
        cache = ReplyCache(tmp_path / "cache")
        (tmp_path / "cache").rmdir()
        with pytest.raises(UserError, match=r"cache.* cannot be written to"):
            converse(["p"], endpoint(server), cache, accepts=lambda text: True, tries=1)


def test_halves_of_characters_spoil_nothing(tmp_path: Path) -> None:
    with ChatServer(in_turn(OK, Answer(body=b'{"choices": [{"message": {"content": "\\ud83d"}}]}'))) as server:
        for _ in range(2):
            assert texts(ask(endpoint(server, concurrency=1), ["p", "half \udc80"], tmp_path)) == [("fine",), ("?",)]


ECHOES = {
    "server error": failure(500, f"your key {KEY} is slow"),
    "server error as text": Answer(status=502, body=f"Authorization: Bearer {KEY}".encode()),
    "refused key": failure(401, f"Incorrect API key provided: {KEY}"),
    "refused prompt": failure(400, f"{KEY} may not"),
    "unknown path": failure(404, f"{'x' * 190} {KEY}"),  # the sentence is cut in the middle of the key
    "redirect": Answer(status=307, headers={"Location": f"http://127.0.0.1:9/?key={KEY}"}),
    "garbage": Answer(body=f"{KEY} garbage".encode()),
    "no completion": Answer(body=f'{{"{KEY}": 1}}'.encode()),
    "header": failure(500, X_Key=f"Bearer {KEY}"),
    "hang up": Answer(hang_up=True),
    "reply": completion(f"Your key is {KEY}."),
}


@pytest.mark.parametrize("echo", ECHOES)
def test_the_key_is_nowhere(
    echo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    with ChatServer(in_turn(then=ECHOES[echo])) as server:
        to = endpoint(server, attempts=2)
        try:
            seen.append(repr(ask(to, ["p"], tmp_path)))
        except UserError as error:
            link: BaseException | None = error
            while link is not None:
                seen += [str(link), repr(link), *traceback.format_exception(link)]
                link = link.__cause__ or link.__context__
        client = ChatClient(to)
        seen += [repr(to), repr(client), str(client)]
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"  # it was sent
    seen += [caplog.text, *capfd.readouterr()]
    seen += [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert len(seen) > 5
    for length in range(len("sk-test-0"), len(KEY) + 1):  # nor its beginning
        assert not [text for text in seen if KEY[:length] in text]


@pytest.mark.parametrize("key", [f"{KEY}\nX-Injected: 1", f"{KEY}é", f"{KEY} {KEY}", f"{KEY}\x7f"])
def test_a_key_that_no_header_can_carry_is_not_quoted(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds spaces or letters") as told:
        ask(Endpoint(base_url="http://127.0.0.1:9/v1", model="m"), ["p"], tmp_path)
    assert KEY not in "".join(traceback.format_exception(told.value))


def test_a_line_end_after_the_key_is_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with ChatServer(in_turn()) as server:
        ask(endpoint(server), ["p"], tmp_path)
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_url": "localhost:8000/v1"}, "endpoint.base_url is 'localhost:8000/v1'"),
        ({"base_url": "http:///v1"}, "endpoint.base_url is 'http:///v1'"),
        ({"base_url": "http://[::1/v1"}, "endpoint.base_url is"),
        ({"base_url": "ftp://host/v1"}, "endpoint.base_url is 'ftp://host/v1'"),
        ({"base_url": f"http://user:{KEY}@host/v1"}, "holds a user name or a query"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "holds a user name or a query"),
        ({"model": ""}, "endpoint.model is empty"),
        ({"key_variable": KEY}, "endpoint.key_variable is no name of an environment variable"),
        ({"max_tokens": 0}, "endpoint.max_tokens is 0"),
        ({"concurrency": 0}, "endpoint.concurrency is 0"),
        ({"attempts": 0}, "endpoint.attempts is 0"),
        ({"temperature": float("nan")}, "endpoint.temperature is nan"),
        ({"backoff": -1.0}, r"endpoint.backoff is -1\.0"),
        ({"max_wait": float("inf")}, "endpoint.max_wait is inf"),
        ({"timeout": 0.0}, r"endpoint.timeout is 0\.0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        Endpoint(**{"base_url": "http://localhost/v1", "model": "m"} | settings)
    assert KEY not in str(told.value)
