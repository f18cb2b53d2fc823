"""YAML and JSON as data: no tags, no more work and memory than the text's own size justifies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import yaml

LONGEST_YAML = 2**17  # bytes; a configuration that a run writes has 6 kB, and PyYAML reads some 40 kB a second
_MOST_VALUES = 100_000  # in a YAML file, each counted as often as an alias repeats it; a configuration has 300
_COMPUTED = "tag:yaml.org,2002:python/"  # a loader may make many values of one such node; a configuration has one
_LONGEST_NUMBER = 1000  # characters; Python takes seconds for numbers of many thousands


def parse_yaml(text: str, loader_class: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Parse a YAML text into plain data.

    Args:
        loader_class: a loader that may read more tags, each as plain data.

    Raises:
        yaml.YAMLError: it is not YAML, has a tag that makes anything but plain data, has a name twice in one mapping,
            or repeats parts by aliases until it stands for more than `_MOST_VALUES` values; or it is longer than
            `LONGEST_YAML`.
        ValueError, RecursionError: a number or nesting that Python refuses.
    """
    if len(text) > LONGEST_YAML:
        raise yaml.YAMLError(f"it is longer than {LONGEST_YAML} characters")
    loader = loader_class(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_size(root, {})
        return loader.construct_document(root)
    except (AttributeError, KeyError, TypeError) as error:  # PyYAML's own, on tags of other kinds of value
        raise yaml.YAMLError(f"a value that its tag does not fit ({error})") from error
    finally:
        loader.dispose()


def _check_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for.

    Args:
        known: the answer for each node seen so far, by its id; 0 while inside it.
    """
    if id(node) not in known:
        known[id(node)] = 0
        parts: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            _check_named_once(node)
            parts = (part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif not node.tag.endswith(":str") and len(node.value) > _LONGEST_NUMBER:
            raise _refused(node, f"a value of {len(node.value)} characters that is not text")
        known[id(node)] = 1 + sum(_check_size(part, known) for part in parts)
        if node.tag.startswith(_COMPUTED):
            known[id(node)] = _MOST_VALUES // 100
        if known[id(node)] > _MOST_VALUES:
            raise _refused(
                node, f"it stands for more than {_MOST_VALUES} values; write fewer, or fewer aliases (*name)"
            )
    elif known[id(node)] == 0:
        raise _refused(node, "a value that contains itself by an alias (*name)")
    return known[id(node)]


def _check_named_once(node: yaml.MappingNode) -> None:
    """Refuse a name with two values, of which PyYAML would take the last."""
    names = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            if (key.tag, key.value) in names:
                raise _refused(key, f"{key.value[:40]!r} occurs twice, with two values")
            names.add((key.tag, key.value))


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def parse_json(data: bytes, *, change: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """Parse a JSON text in UTF-8.

    Args:
        change: is given each object as soon as it is read, to drop what need not be in memory with the others.

    Raises:
        UnicodeDecodeError: it is not in UTF-8.
        ValueError: it is not JSON, has a name twice in one object with two values, is nested too deeply, or has
            numbers too long.
    """
    text = data.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=partial(_named_once, change))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _named_once(change: Callable[[dict[str, Any]], None] | None, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        differing = next((name for name, value in pairs if value != found[name]), None)
        if differing is not None:
            raise ValueError(f'an object has "{differing[:40]}" twice, with two values')
    if change is not None:
        change(found)
    return found
