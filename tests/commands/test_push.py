"""`lsemrl export --push`, against a hub of our own that takes what huggingface_hub sends."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from forks import Fork, script
from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.local_paths import names_only
from tiny import save_tiny_model

ELSEWHERE = """
import sys
from huggingface_hub import constants
from lsemrl.cli.main import main

constants.ENDPOINT, constants.HF_HUB_OFFLINE = sys.argv[1], False  # read from the surroundings at the import
main(sys.argv[2:])
"""


class Hub(ThreadingHTTPServer):
    """Keeps what is pushed; refuses whoever is called nobody."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer secret":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.server.files.setdefault(name, {})
            self._answer(200, {"url": f"{self.server.url}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer(200, {"files": [{**file, "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self._answer(200, {"id": "x", "sha": "0", "siblings": []})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a step on the embedded policy."""
    root = tmp_path_factory.mktemp("runs")
    words = [
        "fit",
        "--config",
        str(CONFIGS / "sft.yaml"),
        f"--trainer.default_root_dir={root}",
        "--trainer.max_steps=1",
    ]
    words += ["--trainer.accelerator=cpu", "--trainer.callbacks=null", "--trainer.limit_val_batches=0"]
    main([*words, "--data.micro={train: 40, validation: 4, test: 4}", "--data.batch_size=2", "--data.splits.part=all"])
    return root / "version_0"


def surroundings(hub: Hub, token: str = "secret") -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


def export(run: Path, output: Path, hub: Hub, *words: str, token: str = "secret") -> subprocess.CompletedProcess[str]:
    words = ("export", str(run), "--output", str(output), *words)
    return Fork([ELSEWHERE, hub.url, *words], script, surroundings(hub, token)).end()


@pytest.mark.slow
def test_a_merged_model_is_pushed_whole(trained: Path, tmp_path: Path, hub: Hub) -> None:
    done = export(trained, tmp_path / "out", hub, "--merged", "--push", "me/model")
    assert done.returncode == 0, done.stderr
    assert f"pushed to me/model-merged: {hub.url}/me/model-merged/commit/1" in done.stdout
    (sent,) = hub.files.values()
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "merged").iterdir()}
    assert {name: body for name, body in sent.items() if name != ".gitattributes"} == written


def test_a_dry_run_sends_nothing(trained: Path, tmp_path: Path, hub: Hub) -> None:
    done = export(trained, tmp_path / "out", hub, "--merged", "--push", "me/model", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would push to me/model-merged: README.md, " in done.stdout
    assert not hub.files


@pytest.mark.parametrize(
    ("words", "token", "sentence"),
    [
        (("--push", "me/model"), "secret", "the adapter's base is 'micro', which is on no hub; push the merged model"),
        (("--merged", "--push", "me/model"), "wrong", "--push is 'me/model', which the hub did not take ("),
        (("--merged", "--push", "a b/c d"), "secret", "--push is 'a b/c d', which the hub did not take ("),
    ],
)
def test_what_cannot_be_pushed_is_told(
    words: tuple[str, ...], token: str, sentence: str, trained: Path, tmp_path: Path, hub: Hub
) -> None:
    done = export(trained, tmp_path / "out", hub, *words, token=token)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out").exists() == ("--merged" in words)  # what no hub would take is not written first


def test_what_would_be_pushed_names_files_and_does_not_say_where_they_lay(tmp_path: Path) -> None:
    home = tmp_path / "home of someone"
    base, rows = save_tiny_model(home / "models" / "tiny"), home / "data" / "rows.jsonl"
    rows.parent.mkdir()
    pairs = [{"zh": f"第{at}句", "bo": f"བོད{at}་ཡིག"} for at in range(60)]
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8")
    words = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]
    words += [
        f"--model.policy.model={base}",
        f"--data.source.path={rows}",
        f"--trainer.default_root_dir={home / 'runs'}",
    ]
    words += ["--data.batch_size=2", "--data.splits.part=all", "--trainer.limit_val_batches=0"]
    main(["fit", "--config", str(CONFIGS / "sft.yaml"), *words, "--model.metrics.names=[chrf]"])
    main(["export", str(home / "runs" / "version_0"), "--output", str(home / "out"), "--merged"])
    sent = {path.name: path.read_bytes() for path in (home / "out" / "merged").iterdir()}
    sent["adapter's card"] = (home / "out" / "adapter" / "README.md").read_bytes()
    assert not [name for name, body in sent.items() if b"home of someone" in body or str(tmp_path).encode() in body]
    card = sent["README.md"].decode()
    assert "on rows.jsonl (part all)" in card and "path: rows.jsonl" in card and "model: tiny" in card
    assert "base_model" not in card  # which would be one of the hub
    assert "The base is a folder of that name" in card
    path = home / "runs" / "version_0" / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["data"]["init_args"]["untranslated"] = {"path": str(home / "mono.txt")}
    server = {"engine": "vllm", "server": "http://10.3.7.21:8000", "top_p": 1.0}
    config["model"]["init_args"]["sampling"] = server
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    main(["export", str(home / "runs" / "version_0"), "--output", str(home / "again")])
    card = (home / "again" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "LoRA rank 32, on mono.txt (sentences without a translation), " in card
    assert "engine: vllm" in card and "10.3.7.21" not in card and "server" not in card


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/me/enc", "enc"),
        ("/data/me/enc/", "enc"),
        ("~/enc", "enc"),
        ("../me/enc.jsonl", "enc.jsonl"),
        ("C:\\Users\\me\\enc", "enc"),
        ("file:///data/me/rows.csv", "rows.csv"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("micro:train", "micro:train"),
        ("micro", "micro"),
        ("/data\nand more", "/data\nand more"),
    ],
)
def test_a_path_becomes_its_name_and_an_id_stays(path: str, name: str) -> None:
    settings = {"a": [{"b": path}], "template": "/no_think{source}"}
    assert names_only(settings) == {"a": [{"b": name}], "template": "/no_think{source}"}
