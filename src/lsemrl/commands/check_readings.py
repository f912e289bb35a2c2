"""What models make of the rows that `lsemrl check` looks at; weights of the policy are not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, product
from typing import TYPE_CHECKING

from lsemrl.commands.check_cost import Step
from lsemrl.commands.quiet import quiet
from lsemrl.commands.readers import encoder_by_name
from lsemrl.data.findings import Finding
from lsemrl.data.inspection import inspect_special
from lsemrl.data.prepared import prepare
from lsemrl.data.records import Record
from lsemrl.data.task import HELD_OUT, Plan
from lsemrl.modules.policy_settings import PolicySettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lsemrl.modules.cost import Cost
    from lsemrl.modules.legibility import Reading
    from lsemrl.rewards.encoder import EncoderUse


@dataclass(frozen=True, kw_only=True)
class Read:
    """What models make of the texts.

    Attributes:
        readings: Of their tokenizers, but for the wording of prompts.
        findings: What they cannot do, or do in part.
        lengths: Of each training row in tokens of the policy: its prompt, its answer.
        cost: Of a step of the policy.
    """

    readings: Sequence[Reading] = ()
    findings: Sequence[Finding] = ()
    lengths: Sequence[tuple[int, int]] = ()
    cost: Cost | None = None


def read_by(
    policy: PolicySettings | None,
    encoder: str | None,
    plan: Plan,
    read: tuple[dict[str, list[Record]], dict[str, int]],
    sentences: Sequence[Record],
    step: Step,
) -> Read:
    """What a policy and an encoder make of rows, as far as they are named.

    Args:
        policy: What would be trained.
        encoder: What would reward.
        plan: Of the rows.
        read: See `task.read_splits`.
        sentences: Those that have no translation.
        step: What a step of RL is taken to be.

    Raises:
        UserError: One of them is not there, or cannot be read.
    """
    if policy is None and encoder is None:
        return Read()
    quiet()
    encoders = encoder_by_name(encoder, of_sources=plan.untranslated is not None) if encoder is not None else {}
    if policy is None:
        return _read_by_encoder(encoders, plan, read[0], sentences)
    from lsemrl.modules.cost import step_cost
    from lsemrl.modules.legibility import look
    from lsemrl.modules.pretrained import read_config_and_tokenizer

    config, tokenizer = read_config_and_tokenizer(policy.path, trust=policy.trust_remote_code)
    prepared = pairs = prepare(replace(plan, untranslated=None), tokenizer, read=read)
    if plan.untranslated:  # what is held out is prepared already
        unheld = {name: [] if name in HELD_OUT else own for name, own in read[0].items()}
        prepared = prepare(plan, tokenizer, pairs.held_out, read=(unheld, read[1]))
    every = [*prepared.train, *([] if pairs is prepared else pairs.train), *pairs.validation, *pairs.test]
    seen = look(policy.model, tokenizer, every, encoders, learned=True)
    findings = [Finding(level="refused", says=sentence) for sentence in seen.refusals]
    findings += [Finding(level="warning", says=sentence) for sentence in seen.warnings]
    if seen.spelled:
        findings.append(Finding(level="note", says=seen.spelled))
    prompts = [prompt for prompt, _ in prepared.lengths["train"]]
    # Answers to sentences without a translation are as long as those of the pairs.
    known = [answer for _, answer in pairs.lengths["train"]]
    lengths = list(zip(prompts, cycle(known), strict=False))
    findings += inspect_special([*chain(*read[0].values()), *sentences], plan.task, tokenizer, prepared.shown)
    findings += _fits(policy.model, config, [prompt + answer for prompt, answer in lengths])
    size, generations = step.batch_size, step.num_generations
    cost = step_cost(policy, config, prompts, known, batch_size=size, generations=generations)
    readings = [reading for reading in seen.readings if reading.what != "wording"]
    return Read(readings=readings, findings=findings, lengths=lengths, cost=cost)


def _read_by_encoder(
    encoders: Mapping[str, EncoderUse],
    plan: Plan,
    records: Mapping[str, Sequence[Record]],
    sentences: Sequence[Record],
) -> Read:
    """What the tokenizer of an encoder makes of the texts, where no policy is named."""
    from lsemrl.data.carried import spaced
    from lsemrl.modules.legibility import SOME, read_by_encoder

    texts = {"references": [record.targets[0] for own in records.values() for record in own]}
    if sentences:
        texts["sources"] = [record.inputs[plan.task.inputs[0]] for record in sentences]
    readings, findings = [], []
    for (name, use), (what, own) in product(encoders.items(), texts.items()):
        if reading := read_by_encoder(name, use.encoder, spaced(list(dict.fromkeys(own))), what):
            readings.append(reading)
            if says := reading.refusal:
                findings.append(Finding(level="refused", says=says))
            elif says := reading.lost(SOME):
                findings.append(Finding(level="warning", says=says))
    return Read(readings=readings, findings=findings)


def _fits(model: str, config: PretrainedConfig, lengths: Sequence[int]) -> list[Finding]:
    from lsemrl.modules.families import reach

    bound = reach(config)
    over = sum(bound is not None and length > bound.sure for length in lengths)
    if not over:
        of = bound or "positions without end"
        return [Finding(level="note", says=f"the longest row comes to {max(lengths):,} tokens of {of}")]
    refused = sum(bound is not None and length > bound.most for length in lengths) > len(lengths) / 2
    says = (
        f"{over:,} of {len(lengths):,} training rows are longer than the {bound} of policy.model {model!r} "
        f"(the longest {max(lengths):,} tokens); lower limits.max_prompt_tokens, so that they are left out or cut"
    )
    return [Finding(level="refused" if refused else "warning", says=says)]
