"""A chat-completions endpoint on this machine that behaves as badly as it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response, or the lack of one.

    Attributes:
        body: Sent as it stands.
        trickle: Send the body a byte at a time, and never the last.
        hang_up: Close the connection instead.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    trickle: bool = False
    hang_up: bool = False


def completion(text: str | None, finish_reason: str = "stop") -> Answer:
    """What a working endpoint says."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer(body=json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode())


def failure(status: int, message: str = "trouble", **headers: str) -> Answer:
    """What an endpoint says when it does not work; `Retry_After="2"` is a header."""
    body = json.dumps({"error": {"message": message}}).encode()
    return Answer(status=status, body=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


def candidates(prompt: str) -> tuple[str, str]:
    """The two texts in our own prompt, as they are shown."""
    first, second = (
        re.search(rf"<candidate_{letter}>\n(.*)\n</candidate_{letter}>", prompt, re.DOTALL)[1] for letter in "ab"
    )
    return first, second


def longer(prompt: str) -> Answer:
    """A judge that cares for nothing but length."""
    first, second = map(len, candidates(prompt))
    return completion(f"Verdict: {'A' if first > second else 'B' if first < second else 'tie'}")


class ChatServer:
    """Serves until closed, each request in a thread of its own.

    Attributes:
        behaviour: (number of the request from 0 on, its prompt) -> the answer.
        requests: Path, headers and JSON body of each request, in the order they came.
        most_at_once: Largest number of requests under way together.
        closing: Set when the server is being closed, for behaviours that wait.
    """

    def __init__(self, behaviour: Callable[[int, str], Answer]) -> None:
        self.behaviour = behaviour
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.most_at_once = self._at_once = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *args: Any) -> None:
                pass  # a client that hung up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append((handler.path, dict(handler.headers.items()), body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            answer = self.behaviour(number, body["messages"][0]["content"])
        finally:
            with self._lock:
                self._at_once -= 1
        if answer.hang_up:
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, text in answer.headers.items():
            handler.send_header(name, text)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if answer.trickle:
            for at in range(len(answer.body) - 1):
                handler.wfile.write(answer.body[at : at + 1])
                if self.closing.wait(0.02):
                    break
            self.closing.wait()
            handler.close_connection = True
            return
        handler.wfile.write(answer.body)
