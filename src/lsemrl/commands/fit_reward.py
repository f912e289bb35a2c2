"""`lsemrl fit-reward`: a reward encoder for a language, its calibration, and tau where a GRPO run's files find it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsemrl import micro
from lsemrl.commands.quiet import loading, quiet
from lsemrl.commands.tau_settings import TauSettings
from lsemrl.commands.trained_rows import asked_otherwise, learned_pairs
from lsemrl.config_files import config_path
from lsemrl.data.translation import Pairs, TranslationData
from lsemrl.files import told, try_folder
from lsemrl.foreign import visible
from lsemrl.locks import held
from lsemrl.modules.sampling import Sampling
from lsemrl.reading import Unreadable, read_yaml, user_path
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.types import UserError


def fit_reward(
    *,
    encoder: str = micro.NAME,
    output: Path = Path("runs/reward"),
    train: EncoderTraining = EncoderTraining(),
    held_out: int = 1000,
    tau: TauSettings = TauSettings(),
    grpo: str | None = None,
    data: Pairs = Pairs(),
) -> None:
    """Adapt an encoder to parallel pairs, measure it before and after, and derive tau.

    Writes to `output`: calibration.json, .md and .png, config.yaml, where `grpo` is given reward.yaml, and, when all
    of these are there, encoder/ (a SentenceTransformer). Until then it is encoder.unfinished/, and the same command
    begins anew.

    Args:
        encoder: What to start from: a SentenceTransformer or a plain transformers encoder (XLM-R, CINO, LaBSE), as
            folder or hub id, or "micro" for the embedded one. A plain one gets mean pooling.
        output: Folder to write to; one that holds an encoder already is left alone.
        train: How to train.
        held_out: Validation and test pairs to measure on, at most.
        tau: How to set the threshold of the reward.
        grpo: The GRPO configuration that the encoder is for. Its rewards, with encoder and tau replaced, become the
            overlay reward.yaml, whole: of two configurations the later one replaces the dictionary of rewards. Outputs
            that tau comes from are drawn as its completions, but where `tau.sampling` says otherwise.
        data: The pairs.

    Raises:
        UserError: A setting that cannot be, nothing to train or measure on, or a folder that cannot be written or is
            another process's.
    """
    if held_out < 2:
        raise UserError(f"held_out is {held_out}; it must be 2 or more")
    rewards, drawn, rows = _of_run(grpo) if grpo else (None, Sampling(), None)
    tau = replace(tau, sampling=replace(tau.sampling or drawn, num_generations=1))
    data.plan().check_files()
    policy = user_path(tau.policy) if tau.policy else None
    asked = asked_otherwise(policy, data.plan(), TranslationData.__name__, "data")
    for line in (*learned_pairs(data, str(grpo), rows), *asked):
        print(visible(line), file=sys.stderr)
    with held(output, "output"):
        _check_folder(output)
        loading(encoder)
        from lsemrl.commands.fitted_reward import adapt  # transformers, for which words that cannot be do not wait

        quiet()
        adapt(
            encoder=encoder,
            output=output,
            train=train,
            held_out=held_out,
            tau=tau,
            grpo=grpo,
            rewards=rewards,
            data=data,
        )


_WRITTEN = {"calibration.json", "calibration.md", "calibration.png", "config.yaml", "reward.yaml", "encoder.unfinished"}
"""What a call that failed has left."""


def _check_folder(folder: Path) -> None:
    """Try the folder to write to.

    Raises:
        UserError: It cannot be written to, or holds an encoder, or something else.
    """
    if (folder / "encoder").exists():
        raise UserError(f"output is {str(folder)!r}, which holds an encoder already; name another folder, or delete it")
    with told(folder, "output"):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names <= _WRITTEN or ("config.yaml" in names and "calibration.json" not in names):
        raise UserError(f"output is {str(folder)!r}, which holds something else; name a new folder")
    try_folder(folder, "output")


def _of_run(grpo: str) -> tuple[tuple[str, dict[str, Any]], Sampling, Any]:
    """Of a GRPO configuration the similarity part's name and all rewards, how the run draws, and its data.

    Raises:
        UserError: It cannot be read, or not exactly one of its rewards is a SemanticSimilarity.
    """
    try:
        content = read_yaml(config_path(grpo))
        fields = content["model"]["init_args"]
        parts = fields["rewards"]
        names = [name for name, part in parts.items() if part["class_path"].endswith("SemanticSimilarity")]
    except Unreadable as reason:
        raise UserError(f"grpo is {grpo!r}, which cannot be read ({reason}); name a YAML file") from reason
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"grpo is {grpo!r}, which holds no rewards (model.init_args.rewards, each with a class_path); name the "
            "configuration of a GRPO run"
        ) from error
    if len(names) != 1:
        raise UserError(
            f"grpo is {grpo!r}, {len(names)} of whose rewards are SemanticSimilarity; leave grpo out, and set the "
            "encoder and threshold of the one you mean by hand"
        )
    try:
        drawn = Sampling(**{**(fields.get("sampling") or {}), "engine": "auto"})  # no server is asked for so few
    except TypeError as error:
        raise UserError(f"grpo is {grpo!r}, whose sampling cannot be read ({error}); correct its fields") from error
    return (names[0], parts), drawn, content.get("data")
