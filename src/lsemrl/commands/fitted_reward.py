"""An encoder adapted to pairs, its calibration, and tau by what a policy answers.

The encoder's own matters are in `rewards`, which knows no policy; what needs one is here.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer
from transformers.utils.logging import set_verbosity_error

from lsemrl import __version__, micro
from lsemrl.commands.named import adapter_in
from lsemrl.commands.tau_settings import TauSettings
from lsemrl.config_files import CONFIG_VERSION
from lsemrl.data.collate import encode
from lsemrl.data.limits import UNLIMITED
from lsemrl.data.prepared import prepare
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.translation import Pairs
from lsemrl.devices import computing_device
from lsemrl.files import replace_folder, told, write_text
from lsemrl.modules.legibility import Reading, check_examples, read_by_encoder
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import ADAPTER_CONFIG, PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.rewards import SemanticSimilarity
from lsemrl.rewards.calibration import Calibration, Tau, calibrate, is_above_chance, probe, quantile
from lsemrl.rewards.calibration_page import tau_line, write
from lsemrl.rewards.encoder import length_limit
from lsemrl.rewards.fit import different, load_encoder
from lsemrl.rewards.fit import train as train_encoder
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.rewards.semantic import says_something
from lsemrl.types import Completion, Example, UserError

_BATCH = 64
_OF_COSINES = ("against", "max_tokens", "dtype")
"""What decides a cosine of SemanticSimilarity, beside its encoder."""


def adapt(
    *,
    encoder: str,
    output: Path,
    train: EncoderTraining,
    held_out: int,
    tau: TauSettings,
    grpo: str | None,
    rewards: tuple[str, dict[str, Any]] | None,
    data: Pairs,
) -> None:
    """What `lsemrl fit-reward` does, once its settings are looked at.

    Args:
        encoder: As for `fit_reward`, and so what has the same name.
        output: A folder that can be written to.
        train: How to train.
        held_out: At least 2.
        tau: How to set the threshold; with its sampling.
        grpo: The configuration as it was named.
        rewards: The similarity part's name, and all rewards of `grpo`.
        data: The pairs.

    Raises:
        UserError: Nothing to train or measure on, or what cannot be read or written.
    """
    config = {"config_version": CONFIG_VERSION, "encoder": encoder, "output": str(output), "train": asdict(train)}
    config |= {"held_out": held_out, "tau": asdict(tau), "grpo": grpo, "data": asdict(data)}
    set_verbosity_error()
    pairs, unseen = _pairs(data)
    texts = probe(random.Random(train.seed).sample(unseen, min(held_out, len(unseen))))
    model = load_encoder(encoder, train)
    print(f"{len(pairs):,} pairs to train on, {len(texts.references):,} held out; {encoder} on {model.device}")
    for what, column in (("sources", texts.sources), ("references", texts.references)):
        _check_reading(read_by_encoder(f"encoder {encoder!r}", model, column, what))
    # Before the training, so that a policy that cannot be read costs no time.
    outputs = _outputs(data, tau, train) if tau.policy else []

    calibrations = {("before" if train.epochs else "as it is"): calibrate(model, texts)}
    seconds, history = 0.0, []
    if train.epochs:
        begun = time.monotonic()
        history = train_encoder(model, pairs, list(zip(texts.sources, texts.references, strict=True)), train)
        seconds = time.monotonic() - begun
        calibrations["after"] = calibrate(model, texts)
    place, unfinished = output / "encoder", output / "encoder.unfinished"
    replace_folder(unfinished, lambda part: model.save(str(part), create_model_card=False))

    chance = _chance(calibrations["after" if train.epochs else "as it is"], len(texts.references))
    part = rewards[1][rewards[0]] if rewards else {}
    threshold = _tau(str(unfinished), outputs, tau, train, part) if tau.policy and not chance else None
    start = f"Encoder {encoder}, its weights drawn anew" if train.fresh else f"Encoder {encoder}"
    trained = f"trained on {len(pairs):,} pairs for {train.epochs:g} epochs in {seconds:.0f} s"
    facts = {
        "summary": f"{start}, {trained if train.epochs else 'as it is'}, reads {length_limit(model) or 'all'} tokens.",
        "lsemrl": __version__,
        "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "torch")},
        "encoder": encoder,
        "train": asdict(train),
        "training_pairs": len(pairs),
        "seconds": round(seconds, 1),
        "history": history,
    }
    write(output, calibrations, texts, threshold, facts)
    if tau.policy and chance:
        raise UserError(
            f"no tau is derived, for the encoder tells a translation from any other sentence by chance ({chance}); the "
            f"report is in {str(output)!r}. Train longer or on more pairs (train, data), name another encoder, or set "
            "tau.policy to null"
        )
    write_text(output / "config.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    if rewards is not None:
        head = f"# The rewards of {grpo} with the encoder of `lsemrl fit-reward`: name it after that configuration.\n"
        changed = overlay(rewards, str(place), threshold.value if threshold else None)
        write_text(output / "reward.yaml", head + yaml.safe_dump(changed, allow_unicode=True, sort_keys=False))
    with told(place):
        unfinished.rename(place)
    _tell(output, grpo, rewards[0] if rewards else None, threshold)


def _chance(calibration: Calibration, pairs: int) -> str | None:
    """The AUC of matched over shuffled pairs, where it may be chance."""
    auc = calibration.figures["auc_shuffled"]
    return None if is_above_chance(auc, pairs, pairs) else f"AUC {auc:.3f} of {pairs:,} held-out pairs"


def _check_reading(reading: Reading | None) -> None:
    """Say what an encoder makes of texts.

    Raises:
        UserError: It loses most of them.
    """
    if reading is None:
        return
    if reading.refusal:
        raise UserError(reading.refusal)
    print(f"{reading.by}: {reading.figures}")
    if reading.warning:
        print(reading.warning)


def _pairs(data: Pairs) -> tuple[list[tuple[str, str]], list[Example]]:
    """The training pairs, one for every accepted translation and none twice, and the held-out rows.

    Raises:
        UserError: There is nothing to measure on.
    """
    # Rows and splits are those of the policy's runs; its prompt and its limits are no matter of the encoder's. Lengths
    # are counted on the way, and any tokenizer will do for that.
    plan = replace(data.plan(), limits=UNLIMITED, template=PromptTemplate(template="{source}", chat=False))
    prepared = prepare(plan, AutoTokenizer.from_pretrained(micro.POLICY))
    bad = sum(counts["bad_rows"] for counts in prepared.report.values())
    if bad:
        print(f"{bad:,} bad rows are left out and listed in {plan.source.skipped}")
    unseen = [*prepared.validation, *prepared.test]
    if not unseen:
        raise UserError(
            f"data.source {plan.source.path!r} leaves no held-out pairs to measure on; raise "
            "data.splits.validation_fraction, or name data.validation"
        )
    return different((row.source, text) for row in prepared.train for text in row.references), unseen


def _outputs(data: Pairs, tau: TauSettings, training: EncoderTraining) -> list[Completion]:
    """What the policy answers to rows of its cold start, drawn as RL would."""
    assert tau.policy is not None and tau.sampling is not None
    policy = _policy(tau.policy, tau.dtype)
    splits = data.plan().splits
    cold_start = replace(splits, part="cold_start" if splits.cold_start_count else "all")
    rows = prepare(replace(data.plan(), splits=cold_start), policy.tokenizer).train
    rows = random.Random(training.seed).sample(rows, min(tau.rows, len(rows)))
    for line in check_examples(policy, {"cold start": rows}, {}, tau.sampling.max_new_tokens):
        print(line)
    policy.load()
    device = computing_device(training.device)
    policy.to(device)
    completions: list[Completion] = []
    for at in range(0, len(rows), _BATCH):
        batch = encode(policy.tokenizer, rows[at : at + _BATCH]).to(device)
        completions += sample(policy, batch, tau.sampling, seed=training.seed + at).completions
    return completions


def _policy(name: str, dtype: Any) -> Policy:
    """The policy of an adapter, on the base model that it names, or a model as it is.

    Raises:
        UserError: It is neither.
    """
    folder = micro.COLD_START if name == micro.NAME else Path(name)
    try:
        if (folder / ADAPTER_CONFIG).is_file():
            found = adapter_in(folder, folder)
            asked: dict[str, Any] = {"dtype": dtype, **found.read_as}
            return Policy(PolicySettings(model=found.name, adapter=name, reference="none", **asked))
        return Policy(PolicySettings(model=name, train="full", reference="none", dtype=dtype))
    except UserError as error:
        raise UserError(f"tau.policy is {name!r}, which is neither an adapter nor a model: {error}") from error


def _tau(
    encoder: str, outputs: list[Completion], tau: TauSettings, training: EncoderTraining, part: dict[str, Any]
) -> Tau:
    """The threshold, by the cosines that `part`, the reward, takes itself."""
    assert tau.policy is not None
    spoken = [output for output in outputs if says_something(output.text)]
    as_there = {name: value for name, value in part.get("init_args", {}).items() if name in _OF_COSINES}
    reward = SemanticSimilarity(encoder=encoder, device=training.device, cache_dir="none", **as_there)
    cosines = reward.cosines(spoken).tolist()
    return Tau(
        value=quantile(cosines, tau.quantile),
        quantile=tau.quantile,
        policy=tau.policy,
        silent=len(outputs) - len(spoken),
        cosines=[round(cosine, 4) for cosine in cosines],
    )


def overlay(rewards: tuple[str, dict[str, Any]], encoder: str, threshold: float | None) -> dict[str, Any]:
    """The rewards of a GRPO configuration with another encoder, and another tau unless that is None."""
    name, parts = rewards[0], copy.deepcopy(rewards[1])
    settings = parts[name].setdefault("init_args", {})
    settings["encoder"] = encoder
    if threshold is not None:
        settings["threshold"] = threshold
    return {"model": {"init_args": {"rewards": parts}}}


def _tell(folder: Path, grpo: str | None, reward: str | None, tau: Tau | None) -> None:
    """Say how to go on."""
    if tau is not None:
        print(tau_line(tau))
    print(f"Report: {folder / 'calibration.md'}\nThe encoder for a GRPO run:")
    if reward is not None:
        print(f"  lsemrl fit --config {grpo} --config {folder / 'reward.yaml'}")
    part = f"--model.rewards.{reward or 'similarity'}.init_args"
    print(f"  or add: {part}.encoder {folder / 'encoder'}" + (f" {part}.threshold {tau.value:g}" if tau else ""))
