"""What the tests do for the run they are part of."""

from __future__ import annotations

import warnings

import pytest


class OfALibrary(UserWarning):
    """A class that would have to be imported."""


def test_a_warning_is_told_without_its_class(pytestconfig: pytest.Config) -> None:
    told = warnings.WarningMessage(OfALibrary("look here"), OfALibrary, "file.py", 3)
    conftest = next(p for p in pytestconfig.pluginmanager.get_plugins() if hasattr(p, "no_plots"))

    conftest.pytest_warning_recorded(told)

    assert type(told.message) is told.category is UserWarning
    assert str(told.message) == "OfALibrary: look here"
