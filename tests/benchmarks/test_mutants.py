"""The list of mutants is of the code as it is: `make mutants` runs it."""

from __future__ import annotations

import pytest
from mutants import EQUIVALENT, MUTANTS, Mutant, files_of, found


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.becomes[:40]}")
def test_what_a_mutant_changes_is_there(mutant: Mutant) -> None:
    assert found(mutant) and files_of(mutant)
    assert mutant.was != mutant.becomes


def test_there_are_enough_of_them() -> None:
    assert len(set(MUTANTS)) >= 50
    assert EQUIVALENT.keys() <= {(mutant.file, mutant.becomes) for mutant in MUTANTS}
