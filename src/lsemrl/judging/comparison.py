"""Two arms row by row: their predictions paired, what was judged of each pair, and what that comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from lsemrl import __version__
from lsemrl.canonical import canonical
from lsemrl.errors import UserError
from lsemrl.files import make_folder, write_lines
from lsemrl.json_records import write_json
from lsemrl.judging.client import printable
from lsemrl.reading import Json, Unreadable, fault_of, read_lines

if TYPE_CHECKING:
    from rich.table import Table

Answer = Literal["A", "B", "tie"]
Outcome = Literal["win", "loss", "tie", "invalid"]
_DEFINITIONS = {
    "win": "the judge names the first arm's output in both orders (endpoint), or its meaning F1 is higher (oracle)",
    "tie": "the judge says tie twice, or its two answers disagree, or the outputs are equal, which is not asked",
    "invalid": "in either order no verdict could be read; left out of every share",
    "shares": "of rows that are not invalid",
    "win_rate": "wins among decided rows, wins / (wins + losses), with the 95% Wilson score interval",
    "first_place_rate": "how often the text shown first is named, among answers that name one; 0.5 is no bias",
}
DISAGREE = "the orders disagree"
"""The note of a row whose two answers contradict each other."""
_OF_ASKING = ("concurrency", "attempts", "timeout", "backoff", "max_wait", "key_variable", "template_by")
"""Of an endpoint: how it was asked, which decides no verdict."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row of a predictions file.

    Attributes:
        source: What the policy was asked.
        output: What it said.
        references: The accepted outputs; empty in files that hold none.
    """

    source: str
    output: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row of both arms.

    Attributes:
        id: The row's.
        source: What both arms were asked.
        outputs: What the first and the second arm said.
        references: The accepted outputs, if known.
    """

    id: str
    source: str
    outputs: tuple[str, str]
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of one row.

    Attributes:
        outcome: For the first arm.
        answers: What an endpoint said with the first arm shown first, and with the second arm shown first; None where
            no verdict could be read. Empty if none was asked.
        replies: The texts these were read from, or why there are none.
        note: Why, where the outcome alone does not tell.
        cut: Whether a reply ran into the limit on tokens.
    """

    outcome: Outcome
    answers: tuple[Answer | None, ...] = ()
    replies: tuple[str, ...] = ()
    note: str = ""
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms compared.

    Attributes:
        arms: Names of the first and the second.
        files: Their predictions, as seen from the folder of the result.
        judge: Who judged, with all settings that matter; never a key.
        pairs: The common rows.
        judgements: One for each pair.
        missing: Rows that only the first and only the second file has.
    """

    arms: tuple[str, str]
    files: tuple[str, ...]
    judge: dict[str, Any]
    pairs: tuple[Pair, ...]
    judgements: tuple[Judgement, ...]
    missing: tuple[int, int]

    def count(self, outcome: Outcome) -> int:
        """Rows that came out so."""
        return sum(judgement.outcome == outcome for judgement in self.judgements)

    def share(self, outcome: Outcome) -> float | None:
        """Of the rows that are not invalid, in [0, 1]; None if all are."""
        valid = len(self.judgements) - self.count("invalid")
        return self.count(outcome) / valid if valid else None

    @property
    def places(self) -> tuple[int, int]:
        """How often an endpoint named the text shown first, and the one shown second; without invalid rows."""
        answers = [
            answer for judgement in self.judgements if judgement.outcome != "invalid" for answer in judgement.answers
        ]
        return answers.count("A"), answers.count("B")

    def summary(self) -> dict[str, Any]:
        """The result as JSON values; what cannot be told from these rows is None."""
        wins, losses = self.count("win"), self.count("loss")
        first, second = self.places
        asked = [judgement for judgement in self.judgements if judgement.answers]
        return {
            "arms": list(self.arms),
            "files": list(self.files),
            "lsemrl": __version__,
            "judge": self.judge,
            "rows": len(self.pairs),
            "only_in_first": self.missing[0],
            "only_in_second": self.missing[1],
            "wins": wins,
            "losses": losses,
            "ties": self.count("tie"),
            "invalid": self.count("invalid"),
            "shares": {"win": self.share("win"), "tie": self.share("tie"), "loss": self.share("loss")},
            "win_rate": wins / (wins + losses) if wins + losses else None,
            "win_rate_interval": list(wilson(wins, wins + losses)),
            "asked": len(asked),
            "disagreements": sum(judgement.note == DISAGREE for judgement in asked),
            "first_place_rate": first / (first + second) if first + second else None,
            "replies_cut": sum(judgement.cut for judgement in asked),
            "definitions": _DEFINITIONS,
        }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.975)
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Read what `lsemrl predict` wrote, by id.

    Raises:
        UserError: The file cannot be read, a line is no prediction, or two rows have one id.
    """
    try:
        lines = read_lines(path)
    except Unreadable as reason:
        raise UserError(f"{path} cannot be read ({reason}); give the predictions.jsonl of lsemrl predict") from reason
    reader = Json()
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if fault := fault_of(line):
            raise UserError(f"{path}:{number} {fault}; write it again with lsemrl predict")
        try:
            row = reader.parse(line)
            texts = [row["id"], row["source"], row["output"]]
            references = row.get("references", [])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}:{number} is no prediction, an object with id, source and output; give the predictions.jsonl "
                "of lsemrl predict"
            ) from error
        if not isinstance(references, list) or not all(isinstance(text, str) for text in (*texts, *references)):
            raise UserError(f"{path}:{number} has a field that is no text; write it again with lsemrl predict")
        id_, source, output, *references = map(printable, (*texts, *references))
        if id_ in predictions:
            raise UserError(f"{path}:{number} has the id {id_!r} of an earlier row; ids must differ")
        predictions[id_] = Prediction(source=source, output=output, references=tuple(references))
    return predictions


def pair_up(first: dict[str, Prediction], second: dict[str, Prediction]) -> tuple[Pair, ...]:
    """The rows that both arms have, in the order of the first.

    Raises:
        UserError: There are none, or one id names different rows.
    """
    pairs = []
    for id_, one in first.items():
        if (other := second.get(id_)) is None:
            continue
        if canonical(one.source) != canonical(other.source):
            raise UserError(f"the row {id_!r} has another source in each file; predict the same rows with both arms")
        pairs.append(
            Pair(
                id=id_,
                source=one.source,
                outputs=(one.output, other.output),
                references=one.references or other.references,
            )
        )
    if not pairs:
        examples = " and ".join(repr(next(iter(rows))) if rows else "no row" for rows in (first, second))
        raise UserError(
            f"the two files have no id in common (they begin with {examples}); predict the same rows with both arms"
        )
    return tuple(pairs)


def decides_verdicts(judge: Any) -> Any:
    """What a judge.json holds of its judge, without what is only of how it was asked."""
    return (
        {name: value for name, value in judge.items() if name not in _OF_ASKING} if isinstance(judge, dict) else judge
    )


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write the summary as judge.json, and every row with its texts and verdicts as verdicts.jsonl.

    Returns:
        The path of judge.json.

    Raises:
        UserError: `folder` cannot be written.
    """
    make_folder(folder, "--output")
    winners = {"win": comparison.arms[0], "loss": comparison.arms[1]}
    rows = [
        {
            "id": pair.id,
            "source": pair.source,
            "outputs": dict(zip(comparison.arms, pair.outputs, strict=True)),
            "references": pair.references,
            **asdict(judgement),
            "winner": winners.get(judgement.outcome),
        }
        for pair, judgement in zip(comparison.pairs, comparison.judgements, strict=True)
    ]
    write_lines(folder / "verdicts.jsonl", rows)
    path = folder / "judge.json"
    write_json(path, comparison.summary())
    return path


def table(comparison: Comparison) -> Table:
    """The result for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = comparison.summary()
    first, second = comparison.arms

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}%"

    low, high = result["win_rate_interval"]
    notes = [
        f"rows in both files {result['rows']}; only in {first}'s {result['only_in_first']}, "
        f"only in {second}'s {result['only_in_second']}; {result['invalid']} invalid"
    ]
    if result["asked"]:
        notes.append(
            f"the orders disagreed in {result['disagreements']} rows of {result['asked']}; the text shown first was "
            f"named in {percent(result['first_place_rate'])} of the answers that name one"
        )
    if result["replies_cut"]:
        notes.append(f"{result['replies_cut']} rows have replies that were cut: raise endpoint.max_tokens")
    shown = Table(
        title=Text(f"{first} against {second}", style="bold"),
        title_justify="left",
        caption=Text("\n".join(notes)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in (f"{first} wins", "tie", f"{second} wins", f"{first} wins, of decided rows", "95% interval"):
        shown.add_column(Text(head), justify="right")
    shown.add_row(
        *(
            f"{percent(result['shares'][name])} ({result[plural]})"
            for name, plural in (("win", "wins"), ("tie", "ties"), ("loss", "losses"))
        ),
        percent(result["win_rate"]),
        f"{percent(low)} to {percent(high)}",
    )
    return shown
