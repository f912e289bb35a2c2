"""The part of a reward, and the mix of parts that a policy is trained on."""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lsemrl.canonical import canonical
from lsemrl.rewards.advantages import AdvantageSettings, group_advantages
from lsemrl.rewards.patience import Attendant, Patience
from lsemrl.types import Completion, Example, Rewards, UserError

Combine = Literal["sum", "gate", "normalize_then_sum"]
Against = Literal["reference", "source"]
"""What a completion is held against."""


class Reward(ABC):
    """One part of a reward. A subclass of yours is named in a configuration by its class_path.

    Args:
        weight: What the part is multiplied by in the mix. 0 only watches: the part is logged and trains nothing.
        opens_from: As a gate the part stands open from this score on.

    Attributes:
        decides: Whether the part has a say: it has a weight, or is a gate, whose weight plays no role.

    Raises:
        UserError: The weight is not finite, or `opens_from` not in (0, 1].
    """

    reads_references: bool = True
    """Whether completions are held against references: such a part is NaN where there are none, and is not asked."""

    def __init__(self, weight: float = 1.0, opens_from: float = 1.0) -> None:
        if not math.isfinite(weight):
            raise UserError(f"weight is {weight} in {type(self).__name__}: give a finite number")
        if not 0 < opens_from <= 1:
            raise UserError(f"opens_from is {opens_from} in {type(self).__name__}: set it above 0 and at most 1")
        self.weight, self.opens_from = weight, opens_from
        self.decides = bool(weight)

    @abstractmethod
    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Score N completions, unweighted: floating point, shape [N], finite, NaN where the part does not apply."""

    def opens(self, scores_N: Tensor) -> Tensor:
        """Where the part, as a gate, stands open, by what it scored: bool [N]."""
        return scores_N.isnan() | (scores_N >= self.opens_from)

    def look_at(self, examples: Sequence[Example]) -> str:
        """Look at the rows of a run before weights are read.

        Returns:
            What is to be said of them, such as by which rule they are judged or that the part does not apply to some;
            "" where there is nothing.

        Raises:
            UserError: It cannot score them.
        """
        return ""

    @property
    def counters(self) -> dict[str, float]:
        """Running counts since the start, to be logged."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run must have again, running counts above all, as JSON can hold it."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:  # noqa: B027 - most rewards have nothing to take up
        """Take up what `state` gave."""


class RewardMix:
    """Named parts and how they are combined.

    Parts of weight 0 and parts that are NaN for a completion are left out of its total; where nothing is left, the
    total is NaN.

    - `sum` (the paper): the weighted sum of the parts.
    - `gate`: the weighted sum of the parts that are no gates where every gate is open, and 0 where one is not. A gate
      is open from its `opens_from` on (1 if it has none), and where it is NaN, unless its class says otherwise
      (`Reward.opens`). Its weight plays no role.
      For rewards that are not negative: below 0, being shut out would be a gain.
    - `normalize_then_sum`: every part becomes an advantage within its group before it is weighted and added (GDPO,
      arXiv 2601.05242), so that a rare failure of one part cannot drown what the others say. A part that its group
      ties in, to `resolution`, gives 0. What is left to do is to scale the totals by the deviation of the whole batch
      (`AdvantageSettings` with scale_rewards batch).

    Args:
        parts: The parts by the name they are logged under.
        combine: See above.
        gate: The name or names of the gates, "language" if None; with combine gate only.
        patience: What is done about a part that fails.
        resolution: As in `AdvantageSettings`; read by combine normalize_then_sum only.

    Raises:
        UserError: There are no parts, or a gate is none, names none of them or leaves nothing to be gated.
    """

    def __init__(
        self,
        parts: dict[str, Reward],
        combine: Combine = "sum",
        gate: str | Sequence[str] | None = None,
        patience: Patience = Patience(),
        resolution: float = AdvantageSettings().resolution,
    ) -> None:
        if not parts:
            raise UserError("rewards is empty: name at least one part")
        if combine not in get_args(Combine):
            raise UserError(f"combine is {combine!r}: choose one of {', '.join(get_args(Combine))}")
        if gate is not None and combine != "gate":
            raise UserError(
                f"gate is {gate!r}, but combine is {combine!r}, which adds gates up like all others; set combine to "
                "gate, or gate to null"
            )
        gates = ("language",) if gate is None else (gate,) if isinstance(gate, str) else tuple(gate)
        if combine == "gate":
            for name in gates:
                if name not in parts:
                    raise UserError(f"gate is {name!r}: name one of the rewards, {', '.join(parts)}")
            if not gates or set(gates) == set(parts):
                raise UserError(
                    f"gate is {list(gates)}: name at least one of the rewards and leave at least one to gate"
                )
        self.parts = dict(parts)
        self.combine, self._settings = combine, AdvantageSettings(resolution=resolution)
        self.gates = gates if combine == "gate" else ()
        for name in self.gates:
            parts[name].decides = True
        self._attendants = {name: Attendant(name, patience) for name in parts}
        # Counts of ranks that are no more, which none of the parts here has in its own.
        self._others: dict[str, dict[str, float]] = {name: {} for name in parts}

    def __call__(self, completions: Sequence[Completion], num_generations: int) -> Rewards:
        """Score N completions, siblings next to each other.

        Args:
            completions: N = B * G.
            num_generations: G.

        Returns:
            The totals, every part, and where gates stand open, on the CPU.

        Raises:
            UserError: A part failed, or gave something else than N finite floats or NaNs, as often as `patience` lets
                it; or the weights make a total that float32 cannot hold.
        """
        assert len(completions) % num_generations == 0, "completions come in whole groups"
        # So that no part, and none of a user's own, tells apart what is one text.
        completions = [
            replace(each, text=canonical(each.text), example=in_one_form(each.example)) for each in completions
        ]
        parts_N = {name: self._ask(name, completions) for name in self.parts}
        open_N = torch.ones(len(completions), dtype=torch.bool)
        for name in self.gates:
            open_N = open_N & self.parts[name].opens(parts_N[name])
        total_N = self._total(parts_N)
        plain_N = total_N = total_N.masked_fill(~open_N & ~total_N.isnan(), 0.0)
        if self.combine == "normalize_then_sum":
            total_N = self._total({name: self._normalized(part_N, num_generations) for name, part_N in parts_N.items()})
        return Rewards(total_N=total_N, plain_N=plain_N, parts_N=parts_N, open_N=open_N)

    def look_at(self, examples: Sequence[Example]) -> list[str]:
        """What the parts say of the rows of a run, before weights are read.

        Raises:
            UserError: One cannot score them, or counts and reads references that some rows lack; or none is paid for.
        """
        if not any(part.weight for name, part in self.parts.items() if name not in self.gates):
            watched = [name for name in self.parts if name not in self.gates]
            raise UserError(
                f"rewards have a weight of 0 throughout ({', '.join(watched)}), so that nothing is rewarded; give one "
                "of them a weight"
            )
        bare = sum(not example.references for example in examples)
        needy = [name for name, part in self.parts.items() if part.reads_references and part.decides]
        if bare and needy:
            raise UserError(
                f"rewards.{needy[0]} is {type(self.parts[needy[0]]).__name__}, which reads references, and {bare:,} of "
                f"{len(examples):,} rows have none; take one that reads the source (SemanticSimilarity with against: "
                "source; a class of yours says reads_references = False), or set its weight to 0 and let it be no gate"
            )
        self.state()  # so that what no checkpoint can hold is not told at the first one
        return [f"rewards.{name}: {line}" for name, part in self.parts.items() if (line := part.look_at(examples))]

    @property
    def counters(self) -> dict[str, float]:
        """The running counts of all parts, as rewards/<part>/<count>; `failures` are batches that a part gave up."""
        return {
            f"rewards/{name}/{key}": value
            for name in self.parts
            for key, value in {**self._counts(name), "failures": float(self._attendants[name].failures)}.items()
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run must have again, part by part.

        Raises:
            UserError: A part counts other things than numbers, or has a state that JSON cannot hold.
        """
        return {
            name: {
                "class": type(part).__name__,
                "failures": self._attendants[name].failures,
                "counts": self._counts(name),
                "own": _held(name, part),
            }
            for name, part in self.parts.items()
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what `state` or `add_up` gave; parts that are new, or of another class, begin at nothing."""
        for name, part in self.parts.items():
            before = state.get(name, {})
            if before.get("class") == type(part).__name__:
                self._attendants[name].failures = before["failures"]
                part.resume(before["own"])
                own, told = _numbers(name, part), before.get("counts", {})
                self._others[name] = {key: value - own.get(key, 0.0) for key, value in told.items()}

    def _counts(self, name: str) -> dict[str, float]:
        return _added([_numbers(name, self.parts[name]), self._others[name]])

    def _ask(self, name: str, completions: Sequence[Completion]) -> Tensor:
        part, missing_N = self.parts[name], torch.full((len(completions),), math.nan)
        rows = [at for at, each in enumerate(completions) if each.example.references or not part.reads_references]
        asked = [completions[at] for at in rows]
        found = self._attendants[name](lambda: _checked(name, part(asked), len(asked))) if asked else None
        return missing_N if found is None else missing_N.index_copy(0, torch.tensor(rows), found)

    def _total(self, parts_N: dict[str, Tensor]) -> Tensor:
        weighted = [
            part.weight * parts_N[name] for name, part in self.parts.items() if part.weight and name not in self.gates
        ]
        if not weighted:
            return torch.full_like(next(iter(parts_N.values())), math.nan)
        stacked_KN = torch.stack(weighted)
        total_N = stacked_KN.nansum(dim=0).masked_fill(stacked_KN.isnan().all(dim=0), math.nan)
        if stacked_KN.isinf().any() or total_N.isinf().any():
            weights = ", ".join(f"{name} {part.weight:g}" for name, part in self.parts.items())
            raise UserError(f"a total of the rewards is infinite in float32; lower their weights ({weights})")
        return total_N

    def _normalized(self, part_N: Tensor, num_generations: int) -> Tensor:
        advantages_BG, _ = group_advantages(part_N.view(-1, num_generations), self._settings)
        return advantages_BG.reshape(-1).masked_fill(part_N.isnan(), math.nan)


def concatenate(several: Sequence[Rewards]) -> Rewards:
    """The rewards of all completions of `several` mixes with the same parts."""
    return Rewards(
        total_N=torch.cat([one.total_N for one in several]),
        plain_N=torch.cat([one.plain_N for one in several]),
        parts_N={name: torch.cat([one.parts_N[name] for one in several]) for name in several[0].parts_N},
        open_N=torch.cat([one.open_N for one in several]),
    )


def add_up(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one mix goes on with after several, which gave their `state`: the counts of all, else what the first had."""
    return {
        name: {
            **first,
            "failures": sum(state[name]["failures"] for state in states),
            "counts": _added([state[name].get("counts", {}) for state in states]),
        }
        for name, first in (states[0].items() if states else ())
    }


def _added(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(each.get(key, 0.0) for each in counts) for key in itertools.chain(*counts)}


def in_one_form(example: Example) -> Example:
    """`example` with the texts that are compared in one form (see `lsemrl.canonical`)."""
    references = tuple(map(canonical, example.references))
    return replace(example, source=canonical(example.source), references=references)


def _numbers(name: str, part: Reward) -> dict[str, float]:
    """The counts of a part, of which a tensor or one of numpy's numbers could not be written."""
    try:
        return {key: float(count) for key, count in part.counters.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor of several
        raise UserError(
            f"rewards.{name} is {type(part).__name__}, whose counters are no numbers ({error}); give a float for each"
        ) from error


def _held(name: str, part: Reward) -> dict[str, Any]:
    """The state of a part, if it can be written."""
    own = part.state()
    try:
        json.dumps(own)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"rewards.{name} is {type(part).__name__}, whose state() no checkpoint can hold ({error}); give numbers, "
            "texts, and lists and dictionaries of them"
        ) from error
    return own


def _checked(name: str, scores: object, count: int) -> Tensor:
    """`scores` as float32 on the CPU, if they are what a reward may give."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = f"a tensor of {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"reward {name!r} gave {got}: return a tensor of floating point numbers")
    if scores.shape != (count,):
        raise UserError(
            f"reward {name!r} gave shape {tuple(scores.shape)} for {count} completions: return one number for each"
        )
    scores_N = scores.detach().to("cpu", torch.float32)
    if scores_N.isinf().any():
        raise UserError(
            f"reward {name!r} gave an infinite number, or one too large for float32: return finite ones, or NaN where "
            "it does not apply"
        )
    return scores_N
