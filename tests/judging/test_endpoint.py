"""What an endpoint sends is bounded and never obeyed, and its key does not travel in the clear without a word."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from chat_server import Answer, ChatServer, completion, failure
from lsemrl.errors import UserError
from lsemrl.judging.client import Conversation, ReplyCache, converse
from lsemrl.judging.endpoint import Endpoint, Line

KEY = "sk-test-0123456789-secret"


def ask(answer: Answer, cache: Path, **settings: Any) -> Conversation:
    """What comes of one prompt, beside another that is answered well."""
    fine = completion("fine")
    with ChatServer(lambda number, prompt: answer if prompt == "p" else fine) as server:
        to = Endpoint(**{"base_url": server.base_url, "model": "m", "backoff": 0.001, "attempts": 2} | settings)
        return converse(["p", "q"], to, ReplyCache(cache), accepts=lambda text: True, tries=1)[0]


def packed(answer: Answer, body: bytes, encoding: str) -> Answer:
    return Answer(status=answer.status, body=body, headers={"Content-Encoding": encoding})


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_packed_a_thousandfold_is_not_unpacked(status: int, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**26), 1)
    tracemalloc.start()
    try:
        heard = ask(Answer(status=status, body=bomb, headers={"Content-Encoding": "gzip"}), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert heard.replies == () and ("more than 4 MB" in heard.problem or "answers 400" in heard.problem)


def test_an_answer_of_more_than_4_mb_is_not_read_on(tmp_path: Path) -> None:
    assert "answers with more than 4 MB" in ask(Answer(body=b"x" * (2**22 + 1)), tmp_path / "a").problem
    long = "x" * (2**22 - 1000)
    assert ask(completion(long), tmp_path / "b").replies[0].text == long


def test_an_endless_answer_ends(tmp_path: Path) -> None:
    class Endless(bytes):
        """Says that it is as long as a disk."""

        def __len__(self) -> int:
            return 10**12

    assert "answers with more than 4 MB" in ask(Answer(body=Endless(2**23)), tmp_path).problem


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_an_answer_in_a_common_encoding_is_read(encoding: str, pack: Any, tmp_path: Path) -> None:
    answer = completion("རྟ")
    assert ask(packed(answer, pack(answer.body), encoding), tmp_path).replies[0].text == "རྟ"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip", "\x1b[2J"])
def test_an_answer_in_an_encoding_that_was_not_asked_for_is_told(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"answers (in the encoding|with bytes that are no gzip).*asked 2 times"
    ) as told:
        ask(packed(Answer(), b"\x28\xb5\x2f\xfd", encoding), tmp_path)
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize("charset", ["klingon", "rot13", "zlib", "utf-16", "idna", "\x1b[2J"])
def test_an_error_in_an_odd_charset_is_told(charset: str, tmp_path: Path) -> None:
    odd = Answer(status=400, body=b"\xff\xfe no", headers={"Content-Type": f"text/html; charset={charset}"})
    assert ask(odd, tmp_path).problem.endswith("answers 400 (\ufffd\ufffd no)")


def test_bytes_that_are_not_utf_8_are_replaced_in_a_reply(tmp_path: Path) -> None:
    answer = completion("fine")
    assert ask(Answer(body=answer.body.replace(b"fine", b"f\xffne")), tmp_path).replies[0].text == "f\ufffdne"


def test_what_a_terminal_would_obey_is_in_no_message(tmp_path: Path) -> None:
    problem = ask(failure(400, "\x1b]0;t\x07 \u202e\r\nfoot"), tmp_path).problem
    assert problem.endswith(r"answers 400 (\x1b]0;t\x07 \u202e foot)")
    with pytest.raises(UserError) as told:
        ask(Answer(status=302, headers={"Location": "/\x9b2J"}), tmp_path)
    assert told.value.args[0].isprintable()


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://judge.example/v1", True),
        ("http://10.0.0.1:8000/v1", True),
        ("http://localhost.example/v1", True),
        ("http://127.0.0.1.example/v1", True),
        ("https://judge.example/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://LOCALHOST/v1", False),
        ("http://127.8.0.1/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_a_key_over_plain_http_to_another_machine_is_told(
    url: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("", KEY):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            line = Line(Endpoint(base_url=url, model="m"))
        asyncio.run(line.close())
        assert [record.levelname for record in caplog.records] == ["WARNING"] * (warned and bool(key))
        assert KEY not in caplog.text and ("plain http" in caplog.text) == (warned and bool(key))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_url": "http://host/v1\r\nX-Injected: 1"}, "endpoint.base_url is"),
        ({"base_url": "http://ho st/v1"}, "endpoint.base_url is"),
        ({"base_url": "http://host:99999/v1"}, "endpoint.base_url is"),
        ({"base_url": "http://host:many/v1"}, "endpoint.base_url is"),
        ({"base_url": "http://\u2603/v1"}, "endpoint.base_url is"),
        ({"extra": {"seed": float("nan")}}, "endpoint.extra holds what JSON has no way to write"),
        ({"extra": {"since": object()}}, "endpoint.extra holds what JSON has no way to write"),
    ],
)
def test_settings_that_no_request_can_carry(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Endpoint(**{"base_url": "http://localhost/v1", "model": "m"} | settings)


def test_a_name_of_a_model_stays_in_the_body(tmp_path: Path) -> None:
    name = "m\r\nX-Injected: 1\x1b"
    with ChatServer(lambda number, prompt: completion("fine")) as server:
        converse(["p"], Endpoint(base_url=server.base_url, model=name), ReplyCache(tmp_path), accepts=bool, tries=1)
    ((_, headers, body),) = server.requests
    assert body["model"] == name and "X-Injected" not in headers
    assert json.dumps(body)
