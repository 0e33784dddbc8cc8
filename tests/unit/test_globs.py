"""Globs over stream paths."""

from __future__ import annotations

import itertools
import re

import pytest

from wayside.core.errors import BadRequest
from wayside.core.globs import Glob, is_glob
from wayside.core.records import require_path


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("orders/*", ["orders/1", "orders/a b"], ["orders", "orders/eu/1", "order/1", "orders2/1", "x/orders/1"]),
        ("orders/**", ["orders/1", "orders/eu/1"], ["orders", "orders2/1", "x/orders/1"]),
        ("**", ["a", "a/b/c", "__mine"], ["__call/1", "__ds/x"]),
        ("*", ["a"], ["a/b"]),
        ("*/*", ["a/b"], ["a", "a/b/c", "__call/1"]),
        ("**/paid", ["paid", "orders/paid", "a/b/paid"], ["paid/1", "unpaid", "a/unpaid"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z", "a/z/z"], ["a", "z", "a/z/b", "ab/z"]),
        ("a/*/**", ["a/b/c", "a/b/c/d"], ["a/b", "a"]),
        ("orders/*/paid", ["orders/eu/paid"], ["orders/paid", "orders/eu/x/paid", "orders/eu/paid/1"]),
        ("orders/eu", ["orders/eu"], ["orders", "orders/eu/1", "orders/eu2"]),
    ],
)
def test_wildcards_stand_for_whole_segments(glob: str, matching: list[str], others: list[str]) -> None:
    """``*`` is one segment; ``**`` any number of them, at least one at the end; reserved paths never match."""
    found = Glob(glob)
    assert [path for path in matching + others if found.matches(path)] == matching
    assert all(path.startswith(found.prefix) for path in matching)


def test_matching_agrees_with_a_regular_expression() -> None:
    """Every glob of up to four segments over a small alphabet, on every path of up to five."""
    paths = ["/".join(p) for n in range(1, 6) for p in itertools.product("ab", repeat=n)]
    for length in range(1, 5):
        for segments in itertools.product(["a", "*", "**"], repeat=length):
            middle = "".join({"**": "([^/]+/)*", "*": "[^/]+/"}.get(s, s + "/") for s in segments[:-1])
            expected = re.compile(middle + {"**": "[^/]+(/[^/]+)*", "*": "[^/]+"}.get(segments[-1], segments[-1]))
            glob = Glob("/".join(segments))
            wrong = [p for p in paths if glob.matches(p) != bool(expected.fullmatch(p))]
            assert not wrong, f"{glob!r}: {wrong}"


def test_a_glob_of_many_wildcards_is_matched_in_few_steps() -> None:
    """Where trying each combination would never end."""
    assert not Glob("/".join(["**", "a"] * 100)).matches("/".join(["a"] * 400 + ["b"]))


@pytest.mark.parametrize(
    "text", ["", "/a", "a//*", "a/../*", "orders/eu-*", "a/***", "a\n/*", "__call/*", "*/" * 600 + "*"]
)
def test_what_can_match_nothing_is_refused(text: str) -> None:
    """With a stable code."""
    with pytest.raises(BadRequest) as refused:
        Glob(text)
    assert refused.value.code == "glob-invalid"


def test_a_glob_is_no_path_of_a_stream() -> None:
    """And is known by a whole segment; an asterisk among others is an ordinary character of a path."""
    for text in ("*", "**", "orders/*", "orders/**/x"):
        assert is_glob(text)
        with pytest.raises(BadRequest, match="glob"):
            require_path(text, 1024)
    for text in ("orders", "a*b", "a/***"):
        assert not is_glob(text)
        require_path(text, 1024)
