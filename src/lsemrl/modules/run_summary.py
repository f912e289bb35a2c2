"""What a run came to, in a few lines for whoever started it."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lsemrl.modules.alarm_log import read_alarms
from lsemrl.modules.best import read_best
from lsemrl.runs import ADAPTER, ALARMS, BEST, CONFIG, METRICS, SAMPLES

_SCORES = ("reward", "loss")


def run_summary(
    folder: Path, monitor: str | None, base: str, step_name: str, *, by_rows: bool = False, adapter_scale: float = 1.0
) -> Iterator[str]:
    """Where everything is, what the score was first, last and at its best, and what to do next.

    Args:
        folder: Of a run of `fit` that has ended.
        monitor: The validation metric that the best adapter is chosen by, if any.
        base: What was trained, as `PolicySettings` names it.
        step_name: What `PolicyModule` calls a step.
        by_rows: Whether it answers rows of several fields, and so no text that is typed.
        adapter_scale: How much was taken of the adapter that it began with.
    """
    rows, best = logged_rows(folder), read_best(folder / BEST)
    whole = (folder / ADAPTER / "config.json").is_file()  # which a model has, and no adapter
    trained, library = ("model", "transformers") if whole else ("adapter", "peft")
    made = [
        (ADAPTER, f"the {trained}, for plain {library} too"),
        (BEST, f"the {trained} that did best by {best.metric if best else 'a metric of validation'}"),
        (METRICS, "a row for every step that is logged"),
        (SAMPLES, "answers with the parts of their rewards"),
        (ALARMS, "what went wrong, with rows"),
    ]
    there = ", ".join(f"{name} ({what})" for name, what in made if (folder / name).exists())
    yield f"done: {folder} holds {there}"
    for name, ((first, began), *_, (last, ended)) in _scores(rows, monitor):
        yield f"{name}: {began:.4g} after {first} {step_name}s, {ended:.4g} after {last}"
    kept = ADAPTER
    if best and [best.step] != [step for step, _ in _logged(rows, best.metric)][-1:]:
        kept = BEST
        yield (
            f"best {best.metric}: {best.value:.4g} after {best.step} {step_name}s, which {BEST}/ holds; {ADAPTER}/ is "
            "of the last step"
        )
    for each in read_alarms(folder / ALARMS):
        yield f"alarm after {each.steps} rollout steps, {each.kind}: {each.sentence}"
    # As a run the last adapter is meant, and one of its folders by itself is that run with what lies there.
    places = folder / BEST if kept == BEST else folder, folder / kept
    run, left, base = map(shlex.quote, (*map(str, places), base))
    as_ = f"--policy.train full --policy.model {left} --base {base}" if whole else f"--policy.adapter {left}"
    answers = f"chat {run}"
    if by_rows:
        answers = predict_command(folder, folder / kept, whole=whole, scales=(adapter_scale, 1.0))
    yield f"next: lsemrl {answers}, or lsemrl measure with {as_}"


def predict_command(folder: Path, weights: Path, *, whole: bool, scales: tuple[float, float]) -> str:
    """What writes the answers of a run to rows of its task.

    Args:
        folder: The run's, with its configuration.
        weights: An adapter, or a model.
        whole: Whether they are a model.
        scales: How much that configuration takes of the adapter it names, and how much is to be taken of this one.
    """
    written, wanted = scales
    scale = "" if whole or written == wanted else f" --model.policy.adapter_scale {wanted:g}"
    config, weights_ = shlex.quote(str(folder / CONFIG)), shlex.quote(str(weights))
    return f"predict --config {config} --model.policy.{'model' if whole else 'adapter'} {weights_}{scale}"


def logged_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv as they are written; none where it has logged nothing."""
    path = folder / METRICS
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _logged(rows: Sequence[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    """After how many steps (the rows number them from 0), and what was logged of one name."""
    return [(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name)]


def _scores(rows: Sequence[Mapping[str, str]], monitor: str | None) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """By name, what was logged more than once."""
    for name in (*((monitor,) if monitor else ()), *_SCORES):
        known = _logged(rows, name)
        if len(known) > 1:
            yield name, known
            if name == "reward":
                return  # beside which the loss of GRPO says nothing
