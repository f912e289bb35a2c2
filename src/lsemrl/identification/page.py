"""What an identifier is worth, to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsemrl.foreign import markdown
from lsemrl.identification.ngrams import NgramIdentifier

_COLUMNS = {
    "accuracy": "right",
    "decided": "can be told",
    "accuracy_decided": "right of these",
    "refused": "of the language: refused",
    "undecided": "cannot be told",
    "passed": "of another: passed, at most",
}


def page(identifier: NgramIdentifier) -> str:
    """Markdown: what was learned, accuracy by length, confusions, the threshold and why."""
    about = identifier.about
    figures, target = about.figures, markdown(about.language)
    learned, held_out = figures["learned"], figures["held_out"]
    counted = ", ".join(f"{learned[name]:,} and {held_out[name]:,} of {markdown(name)}" for name in learned)
    error = figures["calibration_error"]
    wanted = about.settings["false_alarm"]
    lines = [
        f"# An identifier of {target}",
        "",
        f"Texts learned from and held out: {counted}. Everything below is of those held out.",
        "",
        f"A text passes where at least {about.threshold:.2f} of what can be told of it is {target}: half, or less "
        f"where that would refuse more than {wanted:.1%} of its own texts, as long as no more of any other pass. Its "
        f"own texts are refused in at most {figures['false_alarm_at_most']:.1%}, with a certainty of 95%.",
        "",
        f"| text | texts | {' | '.join(_COLUMNS.values())} |",
        f"|---|---:|{'---:|' * len(_COLUMNS)}",
        *(
            f"| {row['length']} | {row['texts']:,} | {' | '.join(_share(row[name]) for name in _COLUMNS)} |"
            for row in figures["rows"]
        ),
        "",
        "What cannot be told, such as names or a few words that are of either language, counts for neither: it is "
        "worth half, and opens no gate.",
        "",
        "## Taken for which",
        "",
        *_confusions(figures["confusions"]),
        "",
        "Whole texts, each taken for what is likeliest; noise is letters out of order.",
        "",
        f"Calibration: for pieces of about 25 letters the probability is off by {error['before']:.3f} on average, "
        f"and by {error['after']:.3f} with a temperature of {about.temperature:.2f} (expected calibration error, ten "
        "bins).",
        "",
    ]
    return "\n".join(lines)


def _confusions(confusions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    labels = list(next(iter(confusions.values())))
    return [
        f"| texts of | {' | '.join(map(markdown, labels))} |",
        f"|---|{'---:|' * len(labels)}",
        *(
            f"| {markdown(name)} | {' | '.join(f'{counts[label]:,}' for label in labels)} |"
            for name, counts in confusions.items()
        ),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
