"""Arithmetic and comparisons from a text, parsed and never `eval`ed.

Objectives (`rps / cost`), costs (`0.15 + sm_pct / 100`) and constraints (`cpu_cores * num_replicas <= 8`) come from
files that a user may have been sent by somebody else. Only numbers, names, + - * / **, parentheses and one comparison
(<=, >=, <, >, ==, !=) are accepted; everything else is an `ExpressionError` that quotes the text. A comparison in
parentheses is a number, 1 where it holds and else 0: a cost may be `0.4 * (gpu_type == "T4")`.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import ExpressionError

Array = npt.NDArray[Any]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.LtE: operator.le,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Expression:
    """One parsed expression; call it with a mapping of names to numbers or arrays.

    Args:
        text: Arithmetic, or one comparison of two arithmetic expressions.

    Raises:
        ExpressionError: The text holds anything but numbers, names, arithmetic and comparisons.
    """

    def __init__(self, text: str) -> None:
        self.text = str(text)
        try:
            self._tree = ast.parse(self.text.strip(), mode="eval").body
            self.names = frozenset(_check(self._tree, self.text))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
            raise ExpressionError(f"cannot read the expression {self.text!r:.200}") from error
        self.is_comparison = isinstance(self._tree, ast.Compare)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Evaluates with numpy's rules, so arrays of equal or broadcastable shape work as well as numbers.

        Raises:
            ExpressionError: A name of the expression has no value, or stands for a text where a number is needed.
        """
        missing = sorted(self.names - set(values))
        if missing:
            raise ExpressionError(f"{self.text!r} names {', '.join(missing)}, which is not known here")
        try:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                tree = self._tree
                return _compare(tree, values) if isinstance(tree, ast.Compare) else _evaluate(tree, values)
        except (TypeError, ValueError) as error:
            raise ExpressionError(f"{self.text!r} computes with, or orders, a text") from error

    def slack(self, values: Mapping[str, Any]) -> Any:
        """How far a bound holds, relative to its limit: >= 0 where it holds (`a <= b` gives 1 - a / b).

        Raises:
            ExpressionError: The expression is not a <= or >= comparison.
        """
        tree = self._tree
        if not (isinstance(tree, ast.Compare) and isinstance(tree.ops[0], (ast.LtE, ast.GtE, ast.Lt, ast.Gt))):
            raise ExpressionError(f"{self.text!r} is not a bound: write EXPR <= EXPR or EXPR >= EXPR")
        try:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                left, right = _evaluate(tree.left, values), _evaluate(tree.comparators[0], values)
                ratio = np.asarray(left, float) / np.asarray(right, float)
        except (TypeError, ValueError) as error:
            raise ExpressionError(f"{self.text!r} computes with, or orders, a text") from error
        return 1.0 - ratio if isinstance(tree.ops[0], (ast.LtE, ast.Lt)) else ratio - 1.0

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def _check(node: ast.expr, text: str) -> set[str]:
    """Returns the names in `node`; raises on any node that is not plain arithmetic."""
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=(int() | float()) as value) if abs(value) < 1e300:  # more would overflow a float
            return set()
        case ast.Name(id=name):
            return {name}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _check(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _check(left, text) | _check(right, text)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            sides = (side for side in (left, right) if not _is_text(side))  # a categorical value stands alone
            return set[str]().union(*(_check(side, text) for side in sides))
    raise ExpressionError(f"{text!r}: only numbers, names, + - * / **, and one comparison are understood")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Constant(value=int() | float() as value):
            return float(value)  # as numpy computes: no integer can grow without end
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, values)
        case ast.UnaryOp(operand=operand):
            return _evaluate(operand, values)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left, values), _evaluate(right, values)
            if isinstance(a, str) or isinstance(b, str):  # Python would repeat or join it, without end
                raise TypeError("arithmetic on a text")
            if isinstance(op, (ast.Div, ast.Pow)):  # numpy's rules also for plain numbers: x / 0 is inf, no exception
                a = np.asarray(a, float)
            return _BINARY[type(op)](a, b)
        case ast.Compare():
            return np.asarray(_compare(node, values), float)
    raise AssertionError(node)  # _check has seen every node


def _compare(node: ast.Compare, values: Mapping[str, Any]) -> Any:
    return _COMPARE[type(node.ops[0])](_evaluate(node.left, values), _evaluate(node.comparators[0], values))
