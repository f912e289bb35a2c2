"""Texts answered by what was taken up: many in batches, or one as its tokens come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lsemrl import __version__
from lsemrl.commands.trained import Trained
from lsemrl.data import thoughts
from lsemrl.data.collate import encode
from lsemrl.data.task import Plan
from lsemrl.data.tokens import prompt_ids
from lsemrl.devices import computing_device
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.policy import Policy
from lsemrl.modules.run_summary import predict_command
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Engine, Sampling
from lsemrl.modules.spans import fitting
from lsemrl.rewards.guards import guarded
from lsemrl.types import Completion, Example, UserError


def answer(
    run: Trained, policy: Policy, texts: Iterable[str], sampling: Sampling, *, seed: int = 1, batch_size: int = 64
) -> Iterator[tuple[str, str]]:
    """Answer texts as the run was asked: the output to each and its `fault`, in order, a batch at a time.

    Nothing is answered with nothing.

    Args:
        run: See `trained.take_up`.
        policy: The run's, as `load` reads it.
        texts: Each the input of one row of the run's task.
        sampling: See `one_each`.
        seed: Of the drawing; the same texts in the same batches give the same outputs.
        batch_size: Texts answered at once.

    Raises:
        UserError: A prompt is longer than the model has positions for, or is to show other rows.
    """
    for batch in _batches(texts, batch_size):
        asked = [text for text in batch if text.strip()]
        said = iter(say(policy, run.data.plan, asked, sampling, seed) if asked else [])
        seed += 1
        for text in batch:
            one = next(said) if text.strip() else None
            yield (one.text, fault(one, sampling)) if one else ("", "")


def fault(said: Completion, sampling: Sampling) -> str:
    """What an answer is that is not whole, and what to do about it; "" of one that is."""
    if not said.ended:
        return f"cut at {sampling.max_new_tokens:,} tokens; raise --max-new-tokens"
    return "" if said.text.strip() else "empty: nothing was said, or only a thought"


def what_answers(run: Trained, policy: Policy, sampling: Sampling) -> dict[str, Any]:
    """Whatever decides an answer but the text: weights, adapter, wording, where a text ends, how it is drawn.

    Raises:
        UserError: The adapter cannot be read.
    """
    adapter = run.policy.adapter
    return {
        "lsemrl": __version__,
        "policy": repr(run.policy.without_weights()),
        "fingerprint": policy.fingerprint,
        "chat_template": policy.tokenizer.chat_template,
        "ends": policy.eos_ids(),
        "adapter": adapter_fingerprint(Path(adapter)) if adapter and Path(adapter).is_dir() else adapter,
        "adapter_scale": run.policy.adapter_scale,
        "template": repr(run.data.plan.resolved_template()),
        "sampling": repr(sampling),
    }


def check_one_input(run: Trained) -> None:
    """Refuse a task of which a text is not the whole input.

    Raises:
        UserError: Its rows have several.
    """
    task, policy = run.data.plan.task, run.policy
    if len(task.inputs) > 1:
        written = run.config["model"]["init_args"]["policy"].get("adapter_scale", 1.0)
        whole = policy.adapter is None
        weights, scales = Path(policy.adapter or policy.model), (written, policy.adapter_scale)
        raise UserError(
            f"RUN was trained on {task.name}, whose rows have {' and '.join(task.inputs)}, and a text is one input; "
            f"answer rows by lsemrl {predict_command(run.folder, weights, whole=whole, scales=scales)}"
        )


def check_texts(run: Trained, policy: Policy, texts: Sequence[str]) -> None:
    """Refuse texts before weights are read, rather than in the middle of the answers.

    Raises:
        UserError: See `say`; the line of the longest is named.
    """
    rows = [row for row, text in enumerate(texts) if text.strip()]
    asked = [texts[row] for row in rows]
    lengths = [len(ids) for ids in prompt_ids(policy.tokenizer, _prompts(policy, run.data.plan, asked))]
    if lengths:
        longest = max(lengths)
        row = rows[lengths.index(longest)]
        _check_length(policy, f"prompt of line {row + 1:,}, {texts[row].strip()[:30]!r},", longest, run.sampling)


def one_each(sampling: Sampling, *, greedy: bool, num_beams: int = 1, guarded: bool = False) -> Sampling:
    """One answer for each text, drawn as the run drew, or of the likeliest tokens, or the likeliest that beams find.

    Where it is to be `guarded`, all that beams find are given, of which `say` takes one.
    """
    # Too few answers to pay for compiling, or to ask a server; and whoever has the run may have no CUDA.
    engine: Engine = "loop" if sampling.engine == "loop" else "auto"
    answers = num_beams if guarded else 1
    undrawn: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0} if greedy else {}
    return dataclasses.replace(sampling, **undrawn, num_generations=answers, num_beams=num_beams, engine=engine)


def load(policy: Policy) -> Policy:
    """`policy` with its weights, where it computes fastest."""
    policy.load()
    return policy.to(computing_device())


def say(
    policy: Policy,
    plan: Plan,
    texts: Sequence[str],
    sampling: Sampling,
    seed: int,
    told: Callable[[str], None] | None = None,
) -> list[Completion]:
    """Answer texts in one batch.

    Args:
        policy: Loaded; as it computes now, base or trained.
        plan: How they are worded.
        texts: None of them blank.
        sampling: See `one_each`.
        seed: Of the drawing.
        told: Called with the answer to the only text after each of its tokens; what it raises ends the answer.

    Raises:
        UserError: A prompt is longer than the model has positions for, or is to show other rows.
    """
    prompts = _prompts(policy, plan, texts)
    examples = [
        Example(id=str(row), prompt=prompt, source=text.strip(), references=("",), pair=plan.task.pairs)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    encoded = encode(policy.tokenizer, examples)
    lengths = encoded.prompt_mask_BP.sum(dim=1)
    longest = int(lengths.argmax())
    _check_length(policy, f"prompt of {examples[longest].source[:30]!r}", int(lengths[longest]), sampling)
    ids, ends = list[int](), policy.eos_ids()

    def listen(token_N: Tensor) -> None:
        ids.extend(token for token in token_N.tolist() if token not in ends)
        if told:
            told(thoughts.answers(policy.tokenizer, [ids], prompts)[0])

    device = next(policy.parameters()).device
    parts = min(sampling.num_beams, len(examples))
    rollouts = sample(policy, encoded.to(device), sampling, seed, parts, told=listen if told else None)
    said, group = rollouts.completions, sampling.num_generations
    return guarded([said[at : at + group] for at in range(0, len(said), group)])


def _prompts(policy: Policy, plan: Plan, texts: Sequence[str]) -> list[str]:
    """Texts as the policy is shown them; stripped, as rows are read for training."""
    template = plan.resolved_template()
    if template.shots:
        raise UserError(
            f"data.template.shots is {template.shots}, but there are no rows here to show before a text; use lsemrl "
            "measure or lsemrl predict"
        )
    fields = ("source", plan.task.inputs[0])
    return [template.render(policy.tokenizer, dict.fromkeys(fields, text.strip())) for text in texts]


def _check_length(policy: Policy, what: str, prompt: int, sampling: Sampling) -> None:
    tokens = {f"{what} with {sampling.max_new_tokens:,} new tokens": prompt + sampling.max_new_tokens}
    fitting(policy.settings.model, policy.config, tokens, "shorten the text")


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts in lists of `size`; the last is shorter, also where a text cannot be read and those before it can."""
    batch: list[str] = []
    try:
        for text in texts:
            batch.append(text)
            if len(batch) == size:
                yield batch
                batch = []
    except UserError:
        yield batch
        raise
    yield batch
