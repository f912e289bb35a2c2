"""A finished run as folders that need no lsemrl, with a card that says what is in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lsemrl import __version__, micro
from lsemrl.commands.named import READ_AS
from lsemrl.commands.trained import Trained
from lsemrl.data.prompts import PLACEHOLDERS
from lsemrl.data.tokens import prompt_ids
from lsemrl.errors import reason_of
from lsemrl.files import fill_folder, write_text
from lsemrl.foreign import fenced, markdown
from lsemrl.json_records import write_json
from lsemrl.local_paths import name_only, names_only
from lsemrl.modules.adapters.files import PASSPORT, adapter_fingerprint
from lsemrl.modules.adapters.merging import merge_for_good
from lsemrl.modules.base_model import read_model
from lsemrl.modules.best import read_best
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import ADAPTER_CONFIG
from lsemrl.modules.run_summary import logged_rows
from lsemrl.modules.whole_models import write_model
from lsemrl.places import without_places
from lsemrl.reading import read_json
from lsemrl.report.columns import LEARNED, LOSSES, MOVED, grid
from lsemrl.report.records import Report
from lsemrl.runs import BEST, CHECKPOINTS, checkpoints, step_of, steps_taken
from lsemrl.types import UserError

_PROBE = "翻译成藏文：你好。བཀྲ་ཤིས་བདེ་ལེགས། Hello, world."
_USE = """As with any adapter of peft, or model of transformers. This is the whole of its prompts, with `...` for what
is asked; tokenize it without adding special tokens:
"""
_WHERE = """
adapter_config.json says where the base lay, as base_model_name_or_path; elsewhere, write there where you have it.
"""
_TOLERANCE = 1e-4
"""Nats by which log-probs of a merged model in float32 may differ from those of the adapter."""
_ROUNDED_OFF = 0.5
"""Share of what an adapter does to log-probs by which those of a merged model in bfloat16 may differ from its own.

Of the first strengths of a cold start of SmolLM2-135M .27 are off at .01 and .15 at .03 (.20 and .11 along MAFAND). Of
a line by itself, which is not asked as in training, an adapter changes a third of that, and rounding as much.
"""


def write_folders(run: Trained, output: Path, *, merged: bool, figures: tuple[Report, str] | None) -> list[Path]:
    """Write adapter/ and, if asked, merged/, each with a README.md that is its model card.

    base/ goes along where only lsemrl knows the base: the embedded model, or one in 4 bits.

    The adapter is a plain peft folder. The merged model is the sum of base and adapter in float32, stored in the dtype
    of the run's policy, read back, and compared with the adapter on the base as the run read it.

    Args:
        run: With LoRA; a fully fine-tuned run is a plain model already.
        output: Is not there yet, or is empty.
        merged: Whether to write merged/ too.
        figures: A report of `lsemrl tax`, and the arm in it that this run is, which it has.

    Returns:
        The folders.

    Raises:
        UserError: The run has no adapter, `output` cannot be written, or the report measured another adapter.
    """
    if run.policy.train == "full":
        raise UserError(
            f"RUN is {str(run.folder)!r}, which was fully fine-tuned: {run.policy.model} is a plain model already"
        )
    policy = Policy(run.policy)
    card = _card(run, policy.tokenizer, figures)
    policy.load(plain=True)
    policy.float()

    def fill(part: Path) -> None:
        _write_adapter(run, policy, part, output.resolve() / "base", card)
        if merged:
            _write_merged(run, policy, part / "merged", card)

    fill_folder(output, fill, "--output")
    return [folder for name in ("adapter", "base", "merged") if (folder := output / name).is_dir()]


def note_of_base(run: Trained, output: Path) -> str | None:
    """What to know before giving away what `write_folders` wrote; None where a hub has the base that it names."""
    if not _on_no_hub(run):
        return None
    where = read_json(output / "adapter" / ADAPTER_CONFIG)["base_model_name_or_path"]
    return (
        f"note: adapter/{ADAPTER_CONFIG} says where the base lies on this machine, {where}, as "
        "base_model_name_or_path; before you give it away, write there what others have, or give what --merged writes"
    )


def check_push(run: Trained, name: str, *, merged: bool) -> None:
    """Refuse to upload an adapter that nobody could use.

    Raises:
        UserError: No hub has its base.
    """
    base = f"{run.policy.model!r}{' in 4 bits' if run.policy.quantization else ''}"
    if _on_no_hub(run) and not merged:
        raise UserError(
            f"--push is {name!r}, but the adapter's base is {base}, which is on no hub; push the merged "
            "model, with --merged"
        )


def _on_no_hub(run: Trained) -> bool:
    return run.policy.model == micro.NAME or bool(run.policy.quantization) or _is_folder(run)


def _is_folder(run: Trained) -> bool:
    """Whether the base is a folder; one that is there is read before a hub is asked, whatever its name."""
    return run.policy.model != micro.NAME and Path(run.policy.model).exists()


def upload(run: Trained, folders: Sequence[Path], name: str, *, private: bool, dry_run: bool) -> list[str]:
    """Upload what `write_folders` wrote: adapter/ as `name`, merged/ as `name`-merged.

    Args:
        run: The run.
        folders: The folders.
        name: OWNER/NAME on the hub that huggingface_hub is set to (HF_ENDPOINT), logged in or with HF_TOKEN.
        private: Whether new repositories are private.
        dry_run: Only say what would be sent.

    Returns:
        A line for each repository.

    Raises:
        UserError: The hub refuses.
    """
    pushed = ("merged",) if _on_no_hub(run) else ("adapter", "merged")
    folders = [folder for folder in folders if folder.name in pushed]
    api, lines = HfApi(), []
    for folder in folders:
        repository = f"{name}-merged" if folder.name == "merged" else name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) / 1e6
        if dry_run:
            lines.append(f"would push to {repository}: {', '.join(path.name for path in files)} ({size:,.1f} MB)")
            continue
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            sent = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"lsemrl {__version__}")
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError, ValueError) as error:
            reason = reason_of(error)
            raise UserError(
                f"--push is {name!r}, which the hub did not take ({reason}); give OWNER/NAME, and log in with "
                "`hf auth login`"
            ) from error
        lines.append(f"pushed to {repository}: {sent.commit_url}")
    return lines


def _write_adapter(run: Trained, policy: Policy, output: Path, base_path: Path, card: str) -> None:
    """Write adapter/, and base/ if only lsemrl knows it, to `output`; `base_path` is where the latter will be."""
    folder, where, note = output / "adapter", None, ""
    policy.save(folder)
    if run.policy.model == micro.NAME or run.policy.quantization:  # a model that only lsemrl knows goes along
        where = base_path
        base = read_model(run.policy.path, run.policy, plain=True)
        write_model(base.to(getattr(torch, run.policy.dtype)), policy.base_tokenizer, output / "base")
        policy.base_tokenizer.save_pretrained(output / "base")
        passport = read_json(folder / PASSPORT)
        write_json(folder / PASSPORT, {name: passport[name] for name in passport if name not in READ_AS})
    elif _is_folder(run):  # for which peft, from another working directory, would ask a hub
        where, note = Path(run.policy.model).resolve(), _WHERE
    if where:
        path = folder / ADAPTER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**config, "base_model_name_or_path": str(where)})
    write_text(folder / "README.md", _front(run, "peft") + card + note)


def _write_merged(run: Trained, policy: Policy, folder: Path, card: str) -> None:
    dtype, ids = run.policy.dtype, torch.tensor(prompt_ids(policy.tokenizer, [_asked(run, policy.tokenizer, _PROBE)]))

    def logprobs(model: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids).logits
        return logits.log_softmax(dim=-1)

    with policy.inference():
        adapted = logprobs(policy.model)
    with policy.base():
        moved = float((adapted - logprobs(policy.model)).abs().mean())
    model = merge_for_good(policy.model, getattr(torch, dtype))  # of the copy that was read here
    write_model(model, policy.tokenizer, folder)
    policy.tokenizer.save_pretrained(folder)
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    off = float((adapted - logprobs(stored.eval())).abs().mean())
    if not off <= (_TOLERANCE if dtype == "float32" else _ROUNDED_OFF * moved):  # nor where it is no number
        raise UserError(
            f"--merged: log-probs of the merged model are off by {off:.2g} nats, where the adapter moves them by "
            f"{moved:.2g}; use the adapter instead"
        )
    note = (
        f"\nBase and adapter, added in float32 and stored in {dtype}. On a prompt of its run the adapter moves "
        f"log-probs by {moved:.2g} nats on average; those of this model differ from the adapter's by {off:.2g}.\n"
    )
    write_text(folder / "README.md", _front(run, "transformers") + card + note)


def _front(run: Trained, library: str) -> str:
    """What a hub reads of a card, which would take the name of a folder for a model of its own."""
    base = {} if _is_folder(run) else {"base_model": run.policy.model}
    fields = {**base, "library_name": library, "pipeline_tag": "text-generation"}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _rows(run: Trained) -> str:
    """What it was trained on; in a mixture, with what is beside the main rows."""
    plan = run.data.plan
    rows = f"{markdown(name_only(plan.source.path))} (part {plan.splits.part})"
    if plan.untranslated:
        rows = f"{markdown(name_only(plan.untranslated.path))} (sentences without a translation)"
    return rows + "".join(f", {share:.0%} of the rows from {markdown(name_only(name))}" for name, share in run.beside)


def _card(run: Trained, tokenizer: PreTrainedTokenizerBase, figures: tuple[Report, str] | None) -> str:
    """What was trained, on what, how, and what came of it."""
    module = run.config["model"]["class_path"].rpartition(".")[2]
    plan, loading = run.data.plan, run.data.loading
    weights = Path(str(run.policy.adapter))
    steps = _steps(run.folder, weights)
    rank = json.loads((weights / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
    lines = [
        f"# {markdown(f'{name_only(run.policy.model)}, {plan.task.name}, by {module}')}",
        "",
        f"Trained with lsemrl {__version__}, LoRA rank {markdown(str(rank))}, on {_rows(run)}, "
        f"{steps} batches of {loading.batch_size} rows for each process.",
        "",
    ]
    if run.policy.adapter_scale != 1:
        lines += [f"What it changed was taken at {run.policy.adapter_scale} of its strength afterwards.", ""]
    if run.policy.model == micro.NAME:
        lines += [
            "The base is the embedded model of lsemrl: it knows a small made-up world, and is for trials only.",
            "",
        ]
    elif _is_folder(run):
        lines += ["The base is a folder of that name on the machine that trained this; no hub is named for it.", ""]
    if figures:
        lines += [*_figures(*figures, adapter_fingerprint(weights, run.policy.adapter_scale)), ""]
    # Where this machine kept its runs, and whom it asked, is nobody's business.
    settings = {key: run.config[key] for key in ("seed_everything", "model", "data") if key in run.config}
    settings = names_only(without_places(settings))
    template = plan.resolved_template()
    lines += ["## Use", "", _USE, fenced(_asked(run, tokenizer, "...")), ""]
    if template.shots:
        lines += [f"It followed {template.shots} of the training rows, asked in the same way, with their answers.", ""]
    lines += ["## Configuration", "", fenced(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), "yaml"), ""]
    return "\n".join(lines)


def _asked(run: Trained, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A prompt of the run with `text` for what is asked; no rows before it, which need not be here."""
    template = dataclasses.replace(run.data.plan.resolved_template(), shots=0)
    return template.render(tokenizer, dict.fromkeys(PLACEHOLDERS, text))


def _steps(folder: Path, weights: Path) -> int:
    """Training batches behind weights of a run, as far as its record, its log and its checkpoints tell."""
    if weights.name == BEST and (best := read_best(weights)):
        return best.step
    if weights.parent.parent.name == CHECKPOINTS:
        return step_of(weights.parent)
    logged = [int(float(row["rollout_step"])) + 1 for row in logged_rows(folder) if row.get("rollout_step")]
    return max([steps_taken(folder), *logged, *map(step_of, checkpoints(folder))])


def _figures(report: Report, name: str, adapter: str) -> list[str]:
    """The target and tax figures of an arm, beside the base's; `adapter` is the fingerprint of RUN's."""
    measured = {arm.name: arm.adapters for arm in report.trained}
    if adapter not in measured[name]:
        own = next((arm for arm, adapters in measured.items() if adapter in adapters), None)
        remedy = f"it has that as {own!r}" if own else "measure RUN's adapter and report again, or leave --report out"
        raise UserError(f"--arm is {name!r}, which the report did not measure on the adapter of RUN; {remedy}")
    asked = f" General ability: {report.general_name}." if report.kept else ""
    trained = next(each for each in report.trained if each.name == name)
    seeds = dataclasses.replace(report, arms=(report.base, trained)).seeds
    means = " Figures are means over these; this adapter is of one of them." if len(trained.seeds) > 1 else ""
    title = "What it gained, what it lost" if report.kept else "What it gained"
    lines = [f"## {title}", "", markdown(f"{report.task}, {seeds}.{means}{asked}"), ""]
    lines += [
        "Scores are in points of 100 but for cosines, COMET and MetricX; NLL and KL in nats per token, lengths in "
        "characters. ± is the standard deviation over seeds; with a sign, the difference from the base and its 95% "
        "interval.",
        "",
    ]
    lines += ["| | base | this arm |", "| --- | ---: | ---: |"]
    for columns in (LEARNED, LOSSES, MOVED):
        shown, rows = grid(report, columns)
        base, arm = (dict(zip(shown, cells, strict=True)) for each, cells in rows if each.name in ("base", name))
        lines += [  # by the heading above, too: both tasks have an exact match
            f"| {markdown(f'{column.group}, {column.head}')} | {base[column].text} | {arm[column].line} |"
            for column in shown
        ]
    return lines
