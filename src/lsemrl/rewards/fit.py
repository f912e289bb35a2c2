"""Adapts a sentence encoder to a language on parallel pairs, with sentence-transformers' own trainer.

As in the paper (arXiv 2605.14366): MultipleNegativesRankingLoss, in which the other rows of a batch are what a pair is
told apart from. It is taken in both directions here, and no batch holds a text twice, whose twin would be pushed away.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, PreTrainedModel, PrinterCallback, TrainerCallback

from lsemrl import micro
from lsemrl.canonical import canonical
from lsemrl.devices import computing_device
from lsemrl.errors import reason_of
from lsemrl.rewards.encoder import check_weights, computing_dtype, length_limit, reads, set_length_limit
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.types import UserError

_REPORTS = 0.1
"""Share of the steps after which the held-out pairs are looked at."""


def load_encoder(name: str, training: EncoderTraining) -> SentenceTransformer:
    """The encoder to start from, in float32; a plain transformers encoder gets mean pooling.

    Args:
        name: A SentenceTransformer or a plain encoder, as folder or hub id; "micro" for the embedded one.
        training: Its limit and device, and whether its weights are kept.

    Raises:
        UserError: It is neither, cannot be read, or has fewer positions than it says.
    """
    path = micro.ENCODER if name == micro.NAME else Path(name)
    if path.exists() and not any((path / file).is_file() for file in ("modules.json", "config.json")):
        raise UserError(
            f"encoder is {name!r}, which is neither a SentenceTransformer folder (it has no modules.json) nor a "
            "transformers encoder (it has no config.json); name one of these, or a hub id"
        )
    torch.manual_seed(training.seed)
    try:
        encoder = SentenceTransformer(
            str(path) if path.exists() else name,
            device=str(computing_device(training.device)),
            local_files_only=path.exists(),
            model_kwargs={"dtype": torch.float32},
        )
    except Exception as error:
        reason = reason_of(error)
        raise UserError(
            f"encoder {name!r} could not be loaded ({type(error).__name__}: {reason}); name a SentenceTransformer "
            "or a transformers encoder, as a folder or a hub id"
        ) from error
    encoder.float()
    own = length_limit(encoder)
    set_length_limit(encoder, training.max_tokens if own is None else min(own, training.max_tokens))
    if training.fresh:
        _forget(encoder)
    else:
        check_weights(name, encoder)
    if not reads(encoder):
        raise UserError(
            f"train.max_tokens is {training.max_tokens}, and encoder {name!r} has no positions for so many; lower it"
        )
    return encoder.eval()


def _forget(encoder: SentenceTransformer) -> None:
    """Draw every weight anew, as its own library draws it."""
    for module in encoder:
        model = getattr(module, "auto_model", None)
        if isinstance(model, PreTrainedModel):
            fresh = AutoModel.from_config(model.config).to(encoder.device)
            model.load_state_dict(fresh.state_dict(), strict=False)  # heads that AutoModel adds are not used
        else:
            for part in module.modules():
                if callable(draw := getattr(part, "reset_parameters", None)):
                    draw()


def different(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs in canonical form, equal ones once."""
    return list(dict.fromkeys((canonical(one), canonical(other)) for one, other in pairs))


def train(
    encoder: SentenceTransformer,
    pairs: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]],
    training: EncoderTraining,
    tell: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Train `encoder` in place on pairs of a text and its translation; it is left in eval mode.

    Args:
        encoder: From `load_encoder`.
        pairs: What to learn from, as `different` gives them.
        held_out: Pairs the run is watched by.
        training: Everything else.
        tell: Gets a line after every tenth of the run.

    Returns:
        A row for every line: epoch, step, seconds, loss, and found, the share of held-out texts whose nearest one in
        the other language is their translation, over both directions.

    Raises:
        UserError: Fewer than two pairs.
    """
    if len(pairs) < 2:
        raise UserError(f"there are {len(pairs)} different pairs to train on; give two or more")
    anchors, positives = map(list, zip(*pairs, strict=True))
    watch = _Watch(training, tell)
    with tempfile.TemporaryDirectory() as folder:  # asked for, but nothing is written to it
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch_size,
            learning_rate=training.lr,
            warmup_steps=training.warmup_ratio,
            weight_decay=training.weight_decay,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            bf16=computing_dtype(training.dtype, encoder.device) == torch.bfloat16,
            use_cpu=encoder.device.type == "cpu",
            seed=training.seed,
            eval_strategy="steps",
            eval_steps=_REPORTS,
            logging_steps=_REPORTS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # or every GPU in sight would be used, by DataParallel
        trainer = _Trainer(
            model=encoder,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
            loss=MultipleNegativesRankingLoss(
                encoder,
                scale=training.scale,
                directions=("query_to_doc", "doc_to_query"),
                partition_mode="per_direction",
            ),
            evaluator=evaluator(held_out),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    encoder.eval()
    return watch.rows


def evaluator(pairs: Sequence[tuple[str, str]]) -> TranslationEvaluator:
    """How often the nearest text of the other language is the translation, in either direction."""
    sources, targets = (list(map(canonical, texts)) for texts in zip(*pairs, strict=True))
    return TranslationEvaluator(sources, targets, batch_size=64, write_csv=False)


class _Trainer(SentenceTransformerTrainer):
    """Without the preparations for a model card, which ask the hub about the encoder; no card is written."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass


class _Watch(TrainerCallback):
    """Keeps the loss and the evaluator's verdict, and tells them."""

    def __init__(self, training: EncoderTraining, tell: Callable[[str], None]) -> None:
        self.training, self.tell = training, tell
        self.rows: list[dict[str, float]] = []
        self.begun = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = {
            "epoch": round(state.epoch, 3),
            "step": state.global_step,
            "seconds": round(time.monotonic() - self.begun, 1),
            "loss": next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), math.nan),
            "found": kwargs["metrics"]["eval_mean_accuracy"],
        }
        self.rows.append(row)
        self.tell(
            f"epoch {row['epoch']:.2f} of {self.training.epochs:g}, {row['seconds']:.0f} s: loss {row['loss']:.4f}, "
            f"{row['found']:.1%} of held-out translations found"
        )
