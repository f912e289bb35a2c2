"""Telling Nigerian Pidgin from English on MAFAND's sentences: fitted on its training rows, measured on its test rows.

python benchmarks/identification.py [FOLDER]

FOLDER holds train.jsonl and test.jsonl as MAFAND publishes them ({"translation": {"en", "pcm"}}); by default it is
../shared/data/mafand_pcm beside the checkout. Writes results/identification.csv, and identification_mixed.csv: what
passes of sentences whose beginning or end is in Pidgin and the rest the English source. Of the texts only counts are
kept.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lsemrl.identification.fit import IdentifierFit, Text, fit, measure
from lsemrl.identification.windows import words_of

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "mafand_pcm"
RESULTS = HERE / "results"
SEEDS = (0, 1, 2)
SHARES = (0.2, 1 / 3, 0.5, 2 / 3, 0.8)
"""Of the words of a mixed sentence that are in Pidgin."""
LEAST = 50
"""Characters of a sentence that is worth mixing."""


def read(path: Path) -> list[dict[str, str]]:
    """Both sides of every row."""
    return [json.loads(line)["translation"] for line in path.read_text(encoding="utf-8").splitlines()]


def kinds(rows: list[dict[str, str]], seed: int) -> dict[str, dict[str, list[str]]]:
    """The test texts as they are asked about; a row whose sides are alike has no right answer, and is left out."""
    rng = random.Random(seed)
    words = {
        name: [words_of(row[name]) for row in rows if words_of(row["en"]) != words_of(row["pcm"])] for name in rows[0]
    }

    def chosen(least: int, cut: str = "") -> dict[str, list[str]]:
        found = {}
        for name, texts in words.items():
            found[name] = []
            for text in texts:
                if len(text) >= least:
                    first = rng.randrange(len(text) - 4) if cut == "any" else 0
                    found[name].append(" ".join(text[first : first + 5] if cut else text))
        return found

    return {
        "all sentences": chosen(1),
        "20 words and more": chosen(20),
        "the first 5 words": chosen(5, "first"),
        "5 words out of any": chosen(5, "any"),
    }


def mixed(rows: list[dict[str, str]], share: float, *, begins: bool) -> list[str]:
    """Sentences of which so large a part, the beginning or the end, is in Pidgin, and the rest is the source."""
    found = []
    for row in rows:
        pcm, en = row["pcm"].split(), row["en"].split()
        own, other = round(share * len(pcm)), round(share * len(en))
        words = pcm[:own] + en[other:] if begins else en[: len(en) - other] + pcm[len(pcm) - own :]
        found.append(" ".join(words))
    return found


def write(name: str, rows: list[dict[str, object]]) -> None:
    """A CSV file of results."""
    with (RESULTS / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Fit and measure, a row for each seed and kind of text."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    if not (folder / "train.jsonl").is_file():
        print(f"skipped: {folder} has no train.jsonl; name the folder of MAFAND's en-pcm rows")
        return
    train, test = read(folder / "train.jsonl"), read(folder / "test.jsonl")
    machine = {
        "command": "python benchmarks/identification.py",
        "versions": " ".join(f"{name}-{version(name)}" for name in ("scikit-learn", "numpy", "scipy")),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    differing = [row for row in test if len(row["en"]) > LEAST and words_of(row["en"]) != words_of(row["pcm"])]
    rows: list[dict[str, object]] = []
    mixtures: list[dict[str, object]] = []
    for seed in SEEDS:
        begun = time.process_time()
        texts = {name: [Text(str(at), row[name]) for at, row in enumerate(train)] for name in ("pcm", "en")}
        identifier = fit("pcm", texts, IdentifierFit(seed=seed))
        seconds = round(time.process_time() - begun, 1)
        for kind, said in kinds(test, seed).items():
            figures = measure(identifier, said)
            named = {name: round(value, 4) for name, value in figures.items()}
            copies = {"copies_caught": round(1 - figures["passed"], 4)}
            about = {"threshold": round(identifier.threshold, 3), "cpu_seconds_to_fit": seconds}
            rows.append({"seed": seed, "text": kind, **named, **copies, **about, **machine})
            print(json.dumps(rows[-1]))
        for share in SHARES:
            passed = {}
            for name, begins in (("begins", True), ("ends", False)):
                shares = identifier.shares(mixed(differing, share, begins=begins))
                told = sum(each is not None and each >= identifier.threshold for each in shares)
                passed[f"passed_where_it_{name}_so"] = round(told / len(shares), 3)
            said = {"texts": len(differing), "threshold": round(identifier.threshold, 3)}
            mixtures.append({"seed": seed, "share_in_pcm": round(share, 2), **passed, **said, **machine})
            print(json.dumps(mixtures[-1]))
    write("identification.csv", rows)
    write("identification_mixed.csv", mixtures)


if __name__ == "__main__":
    main()
