"""Tables of calls that clients make: what is called, with which parameters, and what must come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

A = 67
"""The token "a" of the tokenizer that ``support.write_tokenizer`` makes."""
SAY_A: dict[str, Any] = {"logit_bias": {str(A): 100}}
"""Makes a model of random weights say "a" as long as it may."""
AAAA = "aaaa"


@dataclass(frozen=True)
class Refused:
    """The client's own error for 400, which names the parameter, and has these words in its message."""

    param: str
    words: str = ""

    def check(self, call: Callable[[], Any]) -> None:
        with pytest.raises(Exception, match=self.words or self.param) as told:
            call()
        assert getattr(told.value, "status_code", None) == 400, repr(told.value)
        body: Any = getattr(told.value, "body", None)
        if body is None:  # a client that hands on the message alone
            assert f"'{self.param}" in str(told.value)
        else:
            assert (body.get("error") or body)["param"] == self.param, body


Row = tuple[str, Mapping[str, Any], Callable[[Any], Any] | Refused]
"""(which call, its parameters, a check of what comes)."""


def cases(rows: Sequence[Row]) -> list[Any]:
    """The rows as cases of a test, by name and parameters."""
    return [pytest.param(*row, id=f"{number}-{row[0]}-{'+'.join(row[1])}") for number, row in enumerate(rows)]


def check(call: Callable[..., Any], given: Mapping[str, Any], expected: Callable[[Any], Any] | Refused) -> None:
    """Call, and judge what comes: a check either asserts, or says whether all is well."""
    if isinstance(expected, Refused):
        expected.check(lambda: call(**given))
        return
    came = call(**given)
    assert expected(came) is not False, came


def schema(value: Any) -> dict[str, Any]:
    """A JSON schema that one answer alone fulfils."""
    return {
        "type": "object",
        "properties": {"it": {"const": value}},
        "required": ["it"],
        "additionalProperties": False,
    }
