"""The one tag of Detectron2's YAML files: `!!python/object/apply:eval`, with which they write out anchor sizes.

    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3)] for x in [32, 64, 128, 256, 512]]"]

Detectron2 runs the text as a program. Here it is parsed and computed if it is arithmetic: numbers, + - * / **,
parentheses, lists, and one list comprehension over a list. Anything else is refused as any other tag is.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_LONGEST = 200  # characters, so at most some thousand numbers
_LARGEST = 10**12  # of a number and all that it is made of
_LARGEST_EXPONENT = 64


class ConfigLoader(yaml.SafeLoader):
    """A loader of plain data and of arithmetic."""

    def arithmetic(self, node: yaml.Node) -> Any:
        """Compute the text in the node, or raise a ConstructorError."""
        try:
            match node:
                case yaml.SequenceNode(value=[yaml.ScalarNode(value=text)]):
                    return compute(text)
            raise ValueError("give it one text in a list")
        except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
            tag = "the tag !!python/object/apply:eval holds more than arithmetic"
            raise yaml.constructor.ConstructorError(None, None, f"{tag} ({error})", node.start_mark) from error


ConfigLoader.add_constructor(_TAG, ConfigLoader.arithmetic)


def compute(text: str) -> Any:
    """Compute an arithmetic expression: a number, or lists of them.

    Raises ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError or MemoryError for any other text, for a
    number above `_LARGEST`, an exponent above `_LARGEST_EXPONENT` and a text above `_LONGEST`.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    return _value(ast.parse(text.strip(), mode="eval").body, {})


def _value(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in variables:
            return variables[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element, variables) for element in elements]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)](_number(operand, variables))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _number(left, variables), _number(right, variables)
            if isinstance(op, ast.Pow) and abs(b) > _LARGEST_EXPONENT:
                raise ValueError(f"the exponent {b}")
            return _bounded(_OPERATORS[type(op)](a, b))
        case ast.ListComp(
            elt=element, generators=[ast.comprehension(target=ast.Name(id=name), iter=values, ifs=[], is_async=0)]
        ) if not variables:
            return [_value(element, {name: value}) for value in _list(values)]
    raise ValueError(ast.unparse(node))


def _number(node: ast.expr, variables: Mapping[str, Any]) -> int | float:
    value = _value(node, variables)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{ast.unparse(node)} is not a number")
    return value


def _list(node: ast.expr) -> list[Any]:
    if not isinstance(node, (ast.List, ast.Tuple)):
        raise ValueError(f"{ast.unparse(node)} is not written as a list")
    return [_value(element, {}) for element in node.elts]


def _bounded(number: Any) -> int | float:
    if not isinstance(number, (int, float)) or not abs(number) <= _LARGEST:  # complex, infinite or NaN, too
        raise ValueError(f"the number {str(number)[:40]}")
    return number
