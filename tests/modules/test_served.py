"""Completions that a vLLM server draws are the policy's own, whatever becomes of the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from forks import ranks
from lsemrl import micro
from lsemrl.config_files import CONFIGS
from lsemrl.errors import UserError
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.served import served
from lsemrl.modules.server import ServerGone
from lsemrl.types import PromptBatch, Rollouts, Sequences
from modules.adapters.kinds import save_adapter
from short_runs import grpo, metrics, run, trained
from small_run import SMALL
from tiny import make_policy, save_tiny_model, stir
from vllm_server import VllmServer

SAMPLING = Sampling(engine="vllm", num_generations=3, temperature=0.7, top_p=1.0, max_new_tokens=6)


@pytest.fixture
def server(tiny_model: str) -> Iterator[VllmServer]:
    with VllmServer(tiny_model) as server:
        yield server


@pytest.fixture
def sampling(server: VllmServer) -> Sampling:
    return replace(SAMPLING, server=server.url)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def loads(server: VllmServer) -> list[str]:
    return [fields["lora_name"] for path, fields in server.asked if path == "/v1/load_lora_adapter"]


def same(one: Rollouts, other: Rollouts) -> bool:
    mine, theirs = one.sequences, other.sequences
    tensors = [name for name, value in vars(mine).items() if isinstance(value, Tensor)]
    return all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in tensors) and torch.equal(
        one.ended_N, other.ended_N
    )


def test_it_draws_what_the_policy_says(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(0, 1000, 5)])  # so that some end
    state = torch.get_rng_state()
    found = sample(policy, prompts, sampling, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    whole = found.sequences
    assert len(whole) == 9 and whole.prompt_of_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert 0 < int(found.ended_N.sum()) < 9
    with policy.inference():
        scored_NT, _ = policy.logprobs(whole, 0.7)
    torch.testing.assert_close(found.logprobs_NT, scored_NT, rtol=1e-4, atol=1e-4)
    assert found.completions[0].example is prompts.examples[0]
    assert found.slots == int(whole.completion_mask_NT.sum())
    assert len({completion.text for completion in found.completions}) > 3
    likeliest = replace(sampling, temperature=0.0)
    assert same(
        sample(policy, prompts, likeliest, seed=3), sample(policy, prompts, replace(likeliest, engine="loop"), 3)
    )


def test_whenever_it_draws_it_has_the_adapter_of_now(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    likeliest = replace(sampling, temperature=0.0)
    found = []
    for _ in range(3):
        found.append(sample(policy, prompts, likeliest, seed=3))
        assert same(found[-1], sample(policy, prompts, replace(likeliest, engine="loop"), seed=3))
        assert len(server.adapters) == 1
        stir(policy, scale=0.5)
    assert not same(found[0], found[1])
    names = loads(server)
    assert len({*names}) == 3 and [name.rpartition("-")[2] for name in names] == ["0", "1", "2"]
    kept = Path(next(fields["lora_path"] for path, fields in reversed(server.asked) if "lora_path" in fields))
    assert [path.name for path in kept.parent.iterdir()] == [names[-1]]


def test_all_that_a_model_could_set_otherwise_is_set(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    sample(policy, prompts, sampling, seed=3)
    asked = [fields for path, fields in server.asked if path == "/v1/completions"]
    assert len(asked) == 3
    lengths = sorted(len(fields["prompt"]) for fields in asked)
    assert lengths == sorted(prompts.prompt_mask_BP.sum(1).tolist())
    for fields in asked:
        neutral = {name: fields[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty", "min_tokens")}
        assert neutral == {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
        assert (fields["presence_penalty"], fields["frequency_penalty"], fields["temperature"]) == (0.0, 0.0, 0.7)
        assert fields["stop_token_ids"] == policy.eos_ids()


def test_equal_prompts_are_not_answered_alike(policy: Policy, prompts: PromptBatch, sampling: Sampling) -> None:
    """vLLM gives the completions of a prompt its seed and those that follow, which were its neighbour's too."""
    ids_P, mask_P = prompts.prompt_ids_BP[:1], prompts.prompt_mask_BP[:1]
    alike = replace(prompts, prompt_ids_BP=ids_P.repeat(3, 1), prompt_mask_BP=mask_P.repeat(3, 1))
    whole = sample(policy, alike, replace(sampling, temperature=4.0, max_new_tokens=2), seed=3).sequences
    rows = zip(whole.completion_ids_NT, whole.completion_mask_NT, strict=True)
    assert len({tuple(ids_T[mask_T].tolist()) for ids_T, mask_T in rows}) == 9


def test_an_end_that_is_the_last_token_allowed_is_an_end(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM before 0.11 or so looks at the length first."""
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(2000)])
    draw = server._draw
    monkeypatch.setattr(server, "_draw", lambda *asked: draw(*asked) | {"finish_reason": "length"})
    assert bool(sample(policy, prompts, replace(sampling, max_new_tokens=1), seed=3).ended_N.all())


def test_memory_is_asked_for_row_by_row(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, most = policy.logprobs, 1

    def logprobs(sequences: Sequences, *args: Any) -> Any:
        if len(sequences) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(sequences, *args)

    monkeypatch.setattr(policy, "logprobs", logprobs)
    sample(policy, prompts, sampling, seed=3)
    most = 0
    with pytest.raises(UserError, match=r"memory ran out \(CUDA out of memory\); lower limits\.max_prompt_tokens or"):
        sample(policy, prompts, sampling, seed=3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"train": "full"}, "which is handed adapters, and policy.train is full"),
        ({"lora": LoraSettings(rank=4, modules_to_save=["lm_head"])}, "adapters with modules_to_save as peft does"),
        ({"lora": LoraSettings(rank=4, trainable_token_indices=[3])}, "adapters with trainable_token_indices as peft"),
    ],
)
def test_what_it_would_read_otherwise_is_refused(
    settings: dict[str, Any], sentence: str, tiny_model: str, prompts: PromptBatch, sampling: Sampling
) -> None:
    with pytest.raises(UserError, match=sentence):
        sample(make_policy(tiny_model, **settings), prompts, sampling, seed=3)


def test_an_adapter_with_rows_of_its_own_is_refused(
    tiny_model: str, prompts: PromptBatch, sampling: Sampling, tmp_path: Path
) -> None:
    save_adapter(tiny_model, tmp_path, rows=2048)
    with pytest.raises(UserError, match=r"the rows of embeddings that policy\.adapter .* brought; set it to auto"):
        sample(make_policy(tiny_model, adapter=str(tmp_path)), prompts, sampling, seed=3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"top_p": 0.9}, "sampling.engine is vllm with top_p 0.9 and top_k 0"),
        ({"top_k": 5}, "sampling.engine is vllm with top_p 1.0 and top_k 5"),
        ({"server": "localhost:8000"}, "sampling.server is localhost:8000; it must be an address like http://"),
        ({"server": "http://me:key@host"}, "sampling.server is"),
        ({"server_timeout": 0.0}, "sampling.server_timeout is 0.0; it must be above 0"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(SAMPLING, **fields)


def choiceless(change: Any) -> Any:
    """An answer with its first choice changed."""
    choice = {"index": 0, "token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "stop"}
    choices = [choice | {"index": at} for at in range(3)]
    return 200, {"choices": change(choices)}


def said(**fields: Any) -> Any:
    """An answer with these fields in every choice."""
    return choiceless(lambda choices: [{**one, **fields} for one in choices])


@pytest.mark.parametrize(
    ("path", "said", "sentence"),
    [
        ("/version", (404, {"detail": "Not Found"}), r"refuses /version \(status 404: .*Not Found"),
        ("/version", (200, {}), "says it is vLLM ''; it must be 0.10.2 or later"),
        ("/version", (200, {"version": "0.9.1"}), "says it is vLLM '0.9.1'; it must be 0.10.2 or later"),
        ("/v1/load_lora_adapter", (404, "no"), "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ("/v1/completions", (400, {"error": "too long"}), r"refuses /v1/completions \(status 400: .*too long"),
        ("/v1/completions", choiceless(lambda c: c[:2]), "gave 2 completions of a prompt where 3 were asked for"),
        ("/v1/completions", said(token_ids=None), "without the token ids"),
        ("/v1/completions", said(logprobs=None), "without the token ids"),
        ("/v1/completions", choiceless(lambda c: [{"text": "a"}] * 3), "without the token ids"),
        ("/v1/completions", (200, {"choices": None}), "without the token ids"),
        ("/v1/completions", said(token_ids=[1, 2.5]), "without the token ids"),
        ("/v1/completions", said(token_ids=["1", "2"]), "without the token ids"),
        ("/v1/completions", said(logprobs={"token_logprobs": ["-1", "-1"]}), "without the token ids"),
        ("/v1/completions", said(token_ids=[1, -3]), r"gives the token -3, and policy\.model .* has 1,\d+; serve that"),
        ("/v1/completions", said(token_ids=[1, 2**70]), f"gives the token {2**70}, and .*; serve that model"),
        ("/v1/completions", (302, {"a": 1}), r"refuses /v1/completions \(status 302"),
        ("/version", (302, {"a": 1}), r"refuses /version \(status 302"),
        ("/v1/completions", choiceless(lambda c: c), "nats a token from those of policy.model"),
        ("/v1/completions", (404, {"error": "does not exist"}), "refuses /v1/completions"),
    ],
)
def test_what_is_no_answer_is_told(
    path: str, said: Any, sentence: str, policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    server.instead = lambda asked, fields: said if asked == path else None
    with pytest.raises(UserError, match=sentence):
        sample(policy, prompts, sampling, seed=3)


def test_a_server_of_another_model_is_refused(policy: Policy, prompts: PromptBatch, tmp_path: Path) -> None:
    with (
        VllmServer(str(save_tiny_model(tmp_path, seed=1))) as other,
        pytest.raises(UserError, match="serve that model, with --logprobs-mode processed_logprobs"),
    ):
        sample(policy, prompts, replace(SAMPLING, server=other.url), seed=3)


def test_a_server_that_leaves_the_adapter_out_is_refused_once_there_is_one(
    tiny_model: str, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    policy = Policy(PolicySettings(model=tiny_model, lora=LoraSettings(rank=4)))
    policy.load()
    sample(policy, prompts, sampling, seed=3)  # of which nobody can tell
    empty = server.adapters.copy().popitem()[1]
    stir(policy)
    draw = server._draw

    def without(fields: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        server.adapters[fields["model"]] = empty
        return draw(fields, generator)

    server._draw = without  # type: ignore[method-assign]
    with pytest.raises(UserError, match="nats a token from those of"):
        sample(policy, prompts, sampling, seed=3)


@pytest.mark.parametrize("server", ["http://[::1", "http://host:port"])
def test_what_is_no_address_is_told(server: str, policy: Policy, prompts: PromptBatch) -> None:
    with pytest.raises(UserError, match="which is no address"):
        sample(policy, prompts, replace(SAMPLING, server=server), seed=3)


def test_log_probs_that_know_no_temperature_are_refused(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    draw = server._draw

    def raw(fields: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        found = draw(fields, generator)
        return found | {"logprobs": {"token_logprobs": [0.5 * value for value in found["logprobs"]["token_logprobs"]]}}

    server._draw = raw  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"at temperature 0\.7; serve that model, with --logprobs-mode"):
        sample(policy, prompts, sampling, seed=3)


def test_a_server_that_was_started_again_is_handed_the_adapter_again(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    likeliest = replace(sampling, temperature=0.0)
    before = sample(policy, prompts, likeliest, seed=3)
    server.adapters.clear()  # between two rollouts: there is nothing to unload
    assert same(sample(policy, prompts, likeliest, seed=3), before)
    times = iter(range(2))

    def gone(path: str, fields: dict[str, Any]) -> Any:
        if path == "/v1/completions" and next(times, None) == 0:  # in the middle of one
            server.adapters.clear()
        return None

    server.instead = gone
    assert same(sample(policy, prompts, likeliest, seed=3), before)
    assert len({*loads(server)}) == len(loads(server)) == 4


def test_what_passes_is_asked_again(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([(500, "busy"), (503, "busy")])
    server.instead = lambda path, fields: next(times, None) if path == "/v1/completions" else None
    with caplog.at_level("WARNING", logger="lsemrl"):
        assert len(sample(policy, prompts, sampling, seed=3).completions) == 9
    assert caplog.text.count("does not answer (status 50") == 2


def test_an_adapter_whose_loading_was_not_heard_of_is_loaded(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    def lost(path: str, fields: dict[str, Any]) -> Any:
        if path == "/v1/load_lora_adapter" and len(loads(server)) == 1:
            server._say(path, fields)
            return 504, "upstream request timeout"
        return None

    server.instead = lost
    assert len(sample(policy, prompts, sampling, seed=3).completions) == 9
    assert len(loads(server)) == 2 and len({*loads(server)}) == 1


def test_a_server_that_hangs_is_waited_for_once(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    over = threading.Event()
    server.instead = lambda path, fields: over.wait() and (503, "") if path == "/v1/load_lora_adapter" else None
    with pytest.raises(ServerGone, match=r"within the 0\.2 seconds of sampling\.server_timeout; start it again"):
        sample(policy, prompts, replace(sampling, server_timeout=0.2), seed=3)
    over.set()


def test_a_slow_refusal_is_not_asked_for_as_often(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=iter(range(0, 1000, 25)).__next__, sleep=lambda seconds: None)
    monkeypatch.setattr("lsemrl.modules.server.time", clock)
    server.instead = lambda path, fields: (503, "busy") if path == "/v1/load_lora_adapter" else None
    with pytest.raises(ServerGone, match=r"does not answer .*busy"):
        sample(policy, prompts, sampling, seed=3)
    assert len(loads(server)) == 3


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [("graphs", "sampling.engine is graphs, but the device is cpu"), ("vllm", "sampling.server .* does not answer")],
)
def test_an_engine_that_is_not_there_is_told_before_weights_are_read(
    engine: Any, sentence: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = grpo(tiny_model)
    module.sampling = replace(module.sampling, engine=engine, top_p=1.0, server="http://127.0.0.1:9")
    monkeypatch.setattr(Policy, "load", lambda policy: pytest.fail("weights are read"))
    with pytest.raises(UserError, match=sentence):
        run(module, tmp_path)


def test_it_sleeps_but_for_rollouts(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, server: VllmServer
) -> None:
    awake = sample(policy, prompts, sampling, seed=3)
    policy.decoders.clear()
    server.sleeping = False
    server.asked.clear()
    sleepy = replace(sampling, server_sleeps=True)
    assert served(policy, sleepy).about.endswith(", which sleeps between rollouts")
    assert server.sleeping
    for _ in range(2):
        assert same(sample(policy, prompts, sleepy, seed=3), awake)
        assert server.sleeping
    server.sleeping = False  # as one that was started again
    assert same(sample(policy, prompts, sleepy, seed=3), awake)
    paths = [path for path, _ in server.asked]
    assert paths[:5] == ["/version", "/is_sleeping", "/sleep?level=1", "/wake_up", "/v1/load_lora_adapter"]
    assert paths[-2:] == ["/is_sleeping", "/sleep?level=1"]


def test_a_server_that_cannot_sleep_is_told(policy: Policy, sampling: Sampling) -> None:
    with pytest.raises(UserError, match=r"refuses /is_sleeping .*start it with --enable-sleep-mode"):
        served(policy, replace(sampling, server_sleeps=True))


def test_nobody_there(policy: Policy, prompts: PromptBatch, tiny_model: str) -> None:
    with VllmServer(tiny_model) as server:
        pass
    with pytest.raises(ServerGone, match=f"sampling.server {server.url} does not answer .*start it, and the same"):
        sample(policy, prompts, replace(SAMPLING, server=server.url), seed=3)


@pytest.mark.slow
def test_a_run_learns_by_it_as_by_the_loop(tiny_model: str, tmp_path: Path, server: VllmServer) -> None:
    module = grpo(tiny_model)
    module.sampling = replace(module.sampling, engine="vllm", top_p=1.0, server=server.url)
    module = run(module, tmp_path / "served", epochs=1)
    rows = [row for row in metrics(tmp_path / "served") if row["kl"]]
    assert len(loads(server)) == len(rows) == 4
    for row in rows:  # the layers see dropout in neither
        assert float(row["sampling/logp_difference/mean"]) < 1e-4 and float(row["sampling/capped"]) == 0
        assert float(row["sampling/effective_sample_size"]) > 0.999
    assert module.policy.decoders["vllm"].about == f"by vLLM 0.32.0+cpu at {server.url}"


@pytest.mark.slow
def test_a_server_that_dies_costs_no_step(tiny_model: str, tmp_path: Path) -> None:
    def one(url: str) -> Any:
        module = grpo(tiny_model)
        module.sampling = replace(module.sampling, engine="vllm", top_p=1.0, server=url)
        return module

    with VllmServer(tiny_model) as server:
        whole = trained(run(one(server.url), tmp_path / "whole", epochs=1))
    with VllmServer(tiny_model) as server:
        server.instead = lambda path, fields: (500, "gone") if len(loads(server)) > 2 else None
        with pytest.raises(ServerGone):
            run(one(server.url), tmp_path / "cut", epochs=1, every_n_steps=0)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step_2"]
    with VllmServer(tiny_model) as server:
        module = run(one(server.url), tmp_path / "cut", epochs=1)
    assert module.rollout_step == 4
    for name, value in trained(module).items():
        torch.testing.assert_close(value, whole[name])


@pytest.mark.slow  # 10 seconds each
@pytest.mark.parametrize("layout", ["ddp.yaml", "fsdp.yaml"])
def test_ranks_share_the_adapter_and_a_refusal(layout: str, tmp_path: Path) -> None:
    with VllmServer(str(micro.POLICY)) as server:
        words = ["fit", "--config", str(CONFIGS / "grpo.yaml"), "--config", str(CONFIGS / layout), *SMALL]
        words += [f"--trainer.default_root_dir={tmp_path}", "--checkpoints.monitor=null", "--trainer.max_steps=2"]
        words += ["--data.splits.cold_start_count=8", "--data.batch_size=2"]
        server.sleeping = False
        drawn = "num_generations: 2, max_new_tokens: 6, top_p: 1.0, server_sleeps: true"
        drawn += f", engine: vllm, server: '{server.url}'"
        words += [f"--model.sampling={{{drawn}}}"]
        for done in [process.end() for process in ranks(words)]:
            assert done.returncode == 0, done.stderr[-3000:]
        assert len(loads(server)) == 2 and len(server.adapters) == 1
        assert [path for path, _ in server.asked].count("/v1/completions") == 2 * 2 * 2  # steps, ranks, prompts
        assert [path for path, _ in server.asked].count("/wake_up") == 2 and server.sleeping
        server.asked.clear()

        def full(path: str, fields: dict[str, Any]) -> Any:
            asked = [path for path, _ in server.asked].count("/v1/completions")
            return (400, {"error": "too long"}) if path == "/v1/completions" and asked == 1 else None

        server.instead = full
        for done in [process.end() for process in ranks([*words, "--checkpoints.resume=never"])]:
            assert done.returncode == 2 and "refuses /v1/completions" in done.stderr, done.stderr[-3000:]
