"""Completions drawn by a vLLM server, which is handed the adapter anew for every rollout.

Token ids go there and come back, never text. Every adapter has a name of its own: vLLM keeps what it has read of a
prompt by the adapter's name, and one that is used again would be answered with keys and values of other weights. What
comes back is compared with what the policy itself scores, a few completions of every rollout: a new adapter is still
nothing, so that the first alone would not tell a server that leaves it out.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.distributed import get_rank, is_initialized

from lsemrl.errors import UserError
from lsemrl.files import replace_folder
from lsemrl.modules.policy import Policy
from lsemrl.modules.ranks import together
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.server import Refused, Server
from lsemrl.modules.sharding import whole_tensors
from lsemrl.modules.step_faults import within_memory
from lsemrl.types import PromptBatch, Sequences

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]
"""ids_NT, mask_NT, logprobs_NT and ended_N of completions."""
_FAR = 0.2
"""Mean nats a token between what a server and the policy say; rounding to half precision takes a quarter of it."""
_COMPARED = 8
"""Completions that are compared with what the policy scores."""


def served(policy: Policy, sampling: Sampling) -> Served:
    """The server of a policy, which is asked what it is the first time; its weights need not be there yet.

    Raises:
        UserError: No vLLM, one that is too old, or a policy whose adapter it would read otherwise.
    """
    _check_adapter(policy)
    if "vllm" not in policy.decoders:
        policy.decoders["vllm"] = Served(policy, sampling)
    found: Served = policy.decoders["vllm"]
    return found


class Served:
    """A server, and what it has of a policy.

    Attributes:
        about: What draws, for a person.
    """

    def __init__(self, policy: Policy, sampling: Sampling) -> None:
        """See `served`."""
        self._folder = Path(tempfile.mkdtemp(prefix="lsemrl-vllm-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._run, self._count = uuid.uuid4().hex[:8], 0
        self._loaded = ""
        self._first = not is_initialized() or get_rank() == 0
        self._server: Server

        def begin() -> None:
            self._server = Server(sampling)

        together(begin)
        self._by_first(self._server.sleep)  # before weights are read, which need its room
        self.about = f"by vLLM {self._server.version} at {self._server.url}"
        if sampling.server_sleeps:
            self.about += ", which sleeps between rollouts"

    def draw(self, policy: Policy, prompts: PromptBatch, sampling: Sampling, seed: int, ends: list[int]) -> Drawn:
        """G completions of each prompt, drawn under the policy's adapter as it is now; all ranks must ask together.

        Args:
            policy: Whose adapter is handed over.
            prompts: B prompts, padded on the left.
            sampling: How to draw.
            seed: One is made of it for each prompt; not every server takes it.
            ends: Token ids that end a completion.

        Raises:
            UserError: The server refuses, or draws from another model.
            ServerGone: It does not answer.
        """
        weights = whole_tensors(policy.trained())
        together(self._make_room)
        self._by_first(self._server.wake)
        found: list[dict[str, Any]] = []

        def complete(name: str, again: bool) -> bool:
            """Whether the server has forgotten the adapter, as one that was started again."""
            try:
                found[:] = self._complete(policy, name, prompts, sampling, seed, ends)
            except Refused as error:
                if error.code != 404 or again:
                    raise
                return True
            return False

        for again in (False, True):
            name = self._by_first(lambda: self._hand_over(policy, weights))
            if not any(together(partial(complete, name, again))):
                break
        self._by_first(self._server.sleep)
        drawn = _tensors(found, ends, prompts.prompt_ids_BP.device)
        together(lambda: self._prove(policy, prompts, drawn, sampling))
        return drawn

    def _make_room(self) -> None:
        if self._server.sleeps:
            torch.cuda.empty_cache()  # what this process keeps unused is no room for the server

    def _by_first(self, work: Callable[[], Any]) -> Any:
        """What the first rank makes of `work`, told to all of them."""
        return together(lambda: work() if self._first else None)[0]

    def _hand_over(self, policy: Policy, weights: dict[str, Tensor]) -> str:
        """Have the server read the adapter under a new name, and forget the last one."""
        name = f"lsemrl-{self._run}-{self._count}"
        replace_folder(self._folder / name, lambda part: policy.save_weights(part, weights))
        try:
            self._server.ask(
                "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(self._folder / name)}
            )
        except Refused as error:
            if "already been loaded" not in str(error):  # by us, the name being no other's: the answer was lost
                raise
        self._count += 1
        if self._loaded:
            try:
                self._server.ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._loaded})
            except Refused as error:
                if error.code != 404:  # it was started again
                    raise
            shutil.rmtree(self._folder / self._loaded, ignore_errors=True)
        self._loaded = name
        return name

    def _complete(
        self, policy: Policy, name: str, prompts: PromptBatch, sampling: Sampling, seed: int, ends: list[int]
    ) -> list[dict[str, Any]]:
        """The choices of all prompts, in order."""
        rows = zip(prompts.prompt_ids_BP, prompts.prompt_mask_BP, strict=True)
        asked = [
            {
                "model": name,
                "prompt": ids[mask].tolist(),
                "n": sampling.num_generations if sampling.temperature else 1,  # more are refused, all being the same
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                # All that a model's generation_config.json could set otherwise.
                **{"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
                **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0},
                "seed": (seed * 1_000_003 + at * sampling.num_generations) % 2**31,  # vLLM counts on for siblings
                "stop_token_ids": ends,
                "logprobs": 0,
                "return_token_ids": True,
                "skip_special_tokens": False,
            }
            for at, (ids, mask) in enumerate(rows)
        ]
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = [*pool.map(lambda body: self._server.ask("POST", "/v1/completions", body), asked)]
        return [choice for answer in answers for choice in self._choices(policy, answer, sampling)]

    def _choices(self, policy: Policy, answer: dict[str, Any], sampling: Sampling) -> list[dict[str, Any]]:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            pairs = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
            whole = all(0 < len(ids) == len(logprobs) <= sampling.max_new_tokens for ids, logprobs in pairs)
            whole &= all(type(token) is int for ids, _ in pairs for token in ids)
            whole &= all(type(value) in (float, int, NoneType) for _, logprobs in pairs for value in logprobs)
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(
                f"sampling.server {self._server.url} answers without the token ids and log-probs of what it drew; "
                "start it as docs/scale.md says"
            )
        rows = policy.model.get_input_embeddings().weight.shape[0]
        if unknown := [token for ids, _ in pairs for token in ids if not 0 <= token < rows]:
            raise UserError(
                f"sampling.server {self._server.url} gives the token {unknown[0]}, and policy.model "
                f"{policy.settings.model!r} has {rows:,}; serve that model"
            )
        choices *= 1 if sampling.temperature else sampling.num_generations
        if len(choices) != sampling.num_generations:
            raise UserError(
                f"sampling.server {self._server.url} gave {len(choices)} completions of a prompt where "
                f"{sampling.num_generations} were asked for; raise its --max-num-seqs"
            )
        return choices

    def _prove(self, policy: Policy, prompts: PromptBatch, drawn: Drawn, sampling: Sampling) -> None:
        """Refuse a server that draws from another model, or that reports other log-probs than those it drew by.

        Raises:
            UserError: It does.
        """
        if sampling.temperature == 0:
            return
        ids_NT, mask_NT, logprobs_NT, _ = (part[:_COMPARED] for part in drawn)
        whole = Sequences(
            prompt_ids_BP=prompts.prompt_ids_BP,
            prompt_mask_BP=prompts.prompt_mask_BP,
            prompt_of_N=torch.arange(len(ids_NT), device=ids_NT.device) // sampling.num_generations,
            completion_ids_NT=ids_NT,
            completion_mask_NT=mask_NT,
        )
        # One at a time: a single row is never more than a micro-batch.
        parts = [whole.select([[row]]) for row in range(len(whole))]

        def scored() -> Tensor:
            with policy.inference():
                pieces = [policy.logprobs(part, sampling.temperature)[0][0] for part in parts]
            return torch.cat(pieces)

        scored_M = within_memory(policy, scored, None, "limits.max_prompt_tokens or sampling.max_new_tokens")
        off = (scored_M - logprobs_NT[mask_NT]).abs().mean().item()
        if not off <= _FAR:
            raise UserError(
                f"sampling.server {self._server.url} gives log-probs that are {off:.2g} nats a token from those of "
                f"policy.model {policy.settings.model!r} at temperature {sampling.temperature:g}; serve that model, "
                "with --logprobs-mode processed_logprobs"
            )


def _tensors(choices: list[dict[str, Any]], ends: list[int], device: torch.device) -> Drawn:
    rows = [choice["token_ids"] for choice in choices]
    width = max(map(len, rows))

    def filled(rows: list[list[Any]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype, device=device)

    logprobs = [[float("nan") if x is None else x for x in choice["logprobs"]["token_logprobs"]] for choice in choices]
    return (
        filled(rows, torch.long),
        filled([[1] * len(row) for row in rows], torch.bool),
        filled(logprobs, torch.float32),
        # Not the reason that is given: a server may say "length" of an end that is the last token it may write.
        torch.tensor([bool(row) and row[-1] in ends for row in rows], device=device),
    )


def _check_adapter(policy: Policy) -> None:
    """Refuse what vLLM does not read, or reads as something else without a word.

    Raises:
        UserError: The first such thing.
    """
    if policy.settings.train != "lora":
        raise UserError("sampling.engine is vllm, which is handed adapters, and policy.train is full; set it to auto")
    if policy.resized:
        raise UserError(
            "sampling.engine is vllm, which is handed adapters without the rows of embeddings that policy.adapter "
            f"{policy.settings.adapter!r} brought; set it to auto, or name a resized model as policy.model"
        )
    config: Any = policy.adapter_config
    for field, plain in (
        ("use_dora", False),
        ("lora_bias", False),
        ("bias", "none"),
        ("modules_to_save", None),
        ("trainable_token_indices", None),
        ("rank_pattern", {}),
        ("alpha_pattern", {}),
        ("fan_in_fan_out", False),
    ):
        value = getattr(config, field)
        if value and value != plain:
            raise UserError(
                f"sampling.engine is vllm, which does not read adapters with {field} as peft does; set it to auto"
            )
