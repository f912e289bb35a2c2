"""No setting is infinite or no number, wherever it stands."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import lsemrl
from lsemrl.errors import UserError
from lsemrl.finite import check_all_finite


def floats() -> Iterator[tuple[type[Any], str, Any]]:
    """Every number among the fields of what users configure: dataclasses that check themselves, all optional."""
    seen = set()
    for module in pkgutil.walk_packages(lsemrl.__path__, "lsemrl."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if not (is_dataclass(value) and value.__module__.startswith("lsemrl.") and "__post_init__" in vars(value)):
                continue
            if {field.name for field in fields(value) if field.default is field.default_factory} - REQUIRED.get(
                value.__name__, {}
            ).keys():
                continue  # a record, made by the program
            for field in fields(value):
                if re.search(r"\bfloat\b", str(field.type)) and (value, field.name) not in seen:
                    seen.add((value, field.name))
                    yield value, field.name, field.type


REQUIRED = {
    "Endpoint": {"base_url": "http://localhost/v1", "model": "m"},
    "MeasureSettings": dict.fromkeys(("target", "general")),
}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_no_number_among_the_settings_may_be_infinite_or_none(bad: float) -> None:
    tried = 0
    for kind, name, annotation in floats():
        value = (bad, 0.9) if "tuple" in str(annotation) else {"a": bad} if "dict" in str(annotation) else bad
        with pytest.raises(UserError, match=name.replace("threshold", "tau")):
            kind(**REQUIRED.get(kind.__name__, {}), **{name: value})
        tried += 1
    assert tried > 25


def test_the_field_is_named_at_any_depth() -> None:
    check_all_finite({"a": {"b": [1.0, None, "inf"]}})
    with pytest.raises(UserError, match=r"^model\.rewards\.mine\.penalty is nan; give a finite number"):
        check_all_finite({"model": {"init_args": {"rewards": {"mine": {"penalty": math.nan}}}}})
