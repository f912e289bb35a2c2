"""A server that speaks as `vllm serve --enable-lora` does, over a model of plain transformers and peft."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

Said = tuple[int, dict[str, Any] | str]
"""Status and body: fields, or a line of text as vLLM answers where adapters come and go."""


class VllmServer:
    """Serves until closed, one request at a time.

    Attributes:
        asked: Path and fields of each request, in the order they came.
        adapters: Those that are loaded, by name.
        instead: From path and fields to what is said in place of an answer; None leaves it to the server.
        version: What it says it is.
        sleeping: Whether it sleeps; None where it was not started so that it can.
    """

    def __init__(self, model: str, port: int = 0) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.adapters: dict[str, Any] = {}
        self.instead: Callable[[str, dict[str, Any]], Said | None] = lambda path, fields: None
        self.version = "0.32.0+cpu"
        self.sleeping: bool | None = None
        # Not where it is asked for: two threads that read models at a time leave transformers' patches in place.
        self._base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, {})

            def do_POST(self) -> None:
                outer._answer(self, json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"))

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self) -> VllmServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, fields: dict[str, Any]) -> None:
        with self._lock:
            self.asked.append((handler.path, fields))
            status, said = self.instead(handler.path, fields) or self._say(handler.path, fields)
        body = (said if isinstance(said, str) else json.dumps(said)).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _say(self, path: str, fields: dict[str, Any]) -> Said:
        match path:
            case "/version":
                return 200, {"version": self.version}
            case "/is_sleeping" if self.sleeping is not None:
                return 200, {"is_sleeping": self.sleeping}
            case "/sleep?level=1" if self.sleeping is False:
                self.sleeping = True
                return 200, {"status": "sleeping", "level": 1}
            case "/wake_up" if self.sleeping is not None:
                self.sleeping = False
                return 200, {"status": "awake", "tags": None}
            case _ if self.sleeping:
                return 500, {"error": {"message": "the engine sleeps"}}
            case "/v1/load_lora_adapter":
                name, folder = fields["lora_name"], Path(fields["lora_path"])
                if name in self.adapters:
                    return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
                with torch.random.fork_rng(devices=[]):  # it is in the process of whoever asks
                    self.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self._base), folder).eval()
                return 200, f"Success: LoRA adapter '{name}' added successfully."
            case "/v1/unload_lora_adapter":
                if self.adapters.pop(fields["lora_name"], None) is None:
                    return 404, {"error": {"message": "The lora adapter cannot be found."}}
                return 200, "Success: LoRA adapter removed successfully."
            case "/v1/completions":
                if fields["model"] not in self.adapters:
                    return 404, {"error": {"message": f"The model `{fields['model']}` does not exist."}}
                if fields["n"] > 1 and not fields["temperature"]:
                    return 400, {"error": {"message": f"n must be 1 when using greedy sampling, got {fields['n']}."}}
                choices = [
                    self._draw(fields, torch.Generator().manual_seed(fields["seed"] + at)) | {"index": at}
                    for at in range(fields["n"])
                ]
                return 200, {"choices": choices[::-1]}  # in no order that is promised
        return 404, {"detail": "Not Found"}

    @torch.no_grad()
    def _draw(self, fields: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        model, ids, logprobs = self.adapters[fields["model"]], [*fields["prompt"]], []
        for _ in range(fields["max_tokens"]):
            logits_V: Tensor = model(torch.tensor([ids])).logits[0, -1]
            logprobs_V = (logits_V / (fields["temperature"] or 1.0)).log_softmax(-1)
            drawn = logprobs_V.argmax() if not fields["temperature"] else torch.multinomial(
                logprobs_V.exp(), 1, generator=generator
            )  # fmt: skip
            ids.append(int(drawn))
            logprobs.append(float(logprobs_V[ids[-1]]))
            if ids[-1] in fields["stop_token_ids"]:
                break
        return {
            "token_ids": ids[len(fields["prompt"]) :],
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "stop" if ids[-1] in fields["stop_token_ids"] else "length",
        }
