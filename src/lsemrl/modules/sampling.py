"""How completions are drawn: settings, which are read before what draws is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from lsemrl.errors import UserError
from lsemrl.finite import check_finite

_ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
Engine = Literal["auto", "loop", "graphs", "compiled", "vllm"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn (the paper: group 8, temperature 0.8, top-p 0.9)."""

    num_generations: int = 8
    """Completions per prompt, the group size G. Of what beams find the likeliest, at most one for each beam."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 0.9
    """Keep the likeliest tokens whose probabilities reach this sum, in (0, 1]."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    num_beams: int = 1
    """Of answers that are not drawn (temperature 0), so never in GRPO: beams of a beam search, which follows as many
    beginnings and takes the likeliest answer by the mean of its tokens; 1 takes the likeliest token."""
    max_new_tokens: int = 64
    """Length limit of a completion; one that reaches it without an EOS is marked as truncated."""
    engine: Engine = "auto"
    """How a token is decoded. loop: as transformers does it. graphs: what a step launches is recorded and replayed
    (CUDA). compiled: by a compiled step, which costs about a minute at the start. vllm: by a vLLM server, in GRPO's
    rollouts (docs/scale.md). auto: graphs where model and device allow, else the loop."""
    server: str = "http://localhost:8000"
    """Of engine vllm: where `vllm serve` listens, on a machine that sees this one's temporary folder."""
    server_timeout: float = 600.0
    """Of engine vllm: seconds for the completions of a prompt."""
    server_sleeps: bool = False
    """Of engine vllm: whether the server gives its memory back between rollouts, as one that was started with
    --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 can: for one on the GPU that trains."""

    def __post_init__(self) -> None:
        check_finite(self, "sampling")
        for name, ok, rule in (
            ("engine", self.engine in get_args(Engine), f"one of {', '.join(get_args(Engine))}"),
            ("num_generations", self.num_generations >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("server", _ADDRESS.fullmatch(self.server), "an address like http://localhost:8000"),
            ("server_timeout", self.server_timeout > 0, "above 0"),
        ):
            if not ok:
                raise UserError(f"sampling.{name} is {getattr(self, name)}; it must be {rule}")
        if self.num_beams > 1 and (self.temperature > 0 or self.engine == "vllm"):
            raise UserError(f"sampling.num_beams is {self.num_beams}, which search and draw nothing; set it to 1")
        if 1 < self.num_beams < self.num_generations:
            raise UserError(
                f"sampling.num_generations is {self.num_generations}, but sampling.num_beams is {self.num_beams}, and "
                "so many find no more answers; lower it, or raise sampling.num_beams"
            )
        if self.engine == "vllm" and (self.top_p < 1 or self.top_k):
            raise UserError(
                f"sampling.engine is vllm with top_p {self.top_p} and top_k {self.top_k}, whose log-probs are of the "
                "tokens that are left and correct nothing; set top_p to 1 and top_k to 0"
            )


def greedy(max_new_tokens: int) -> Sampling:
    """How the one answer is given of which every token is the likeliest.

    Raises:
        UserError: As of `Sampling`.
    """
    return Sampling(num_generations=1, temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)


def check_tokens(max_new_tokens: int | None, micro_batch_tokens: int) -> None:
    """Refuse lengths in which nothing could be written, or read at once; None is one that is not set here.

    Raises:
        UserError: The first that is below 1.
    """
    for name, tokens in (("max_new_tokens", max_new_tokens), ("micro_batch_tokens", micro_batch_tokens)):
        if tokens is not None and tokens < 1:
            raise UserError(f"model.{name} is {tokens}; it must be at least 1")
