"""Conditions on columns, as --where gives them: a small part of Python's syntax, never evaluated.

A text is parsed to a syntax tree, whose nodes are checked one by one and turned into a pyarrow
expression; anything else than comparisons of columns with constants is refused.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ops.config import ConfigError
from ops.text import printable

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 100  # of nested parts
SYNTAX = (
    'Write for instance: width >= 512 and caption is not null and source in ("a", "b"). There are '
    '== != < <= > >=, in, not in, is null, and, or, not, "text" in COLUMN, and col("any name").'
)
CONSTANTS = {"null": None, "none": None, "true": True, "false": False}

Kind = Literal["number", "text", "boolean"]
COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}


@dataclass(frozen=True)
class Condition:
    """A parsed condition; `columns` are the names in it."""

    text: str
    columns: frozenset[str]
    _tree: ast.expr = field(repr=False)

    def expression(self, kinds: Mapping[str, Kind | None]) -> pc.Expression:
        """The pyarrow expression for columns of these kinds; a column of kind None has nulls only.

        Raises ConfigError for a comparison of different kinds.
        """
        return _Compiler(self.text, kinds).compile(self._tree)


def parse_condition(text: str) -> Condition:
    """The condition that a text spells; raises ConfigError for any other text."""
    try:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"it has more than {MAX_LENGTH:,} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in a text, which is no mistake here
            tree = ast.parse(text.strip(), mode="eval").body
        _check_depth(tree)
        columns = frozenset(_columns(tree))
        # Compiled for made-up kinds, so that all but the kinds is checked before anything is read.
        _Compiler(text, dict.fromkeys(columns)).compile(tree)
    except SyntaxError as error:
        raise _refused(text, f"it is no expression ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _refused(text, str(error) or "it is nested too deeply") from None
    return Condition(text, columns, tree)


def _check_depth(tree: ast.expr) -> None:
    waiting: list[tuple[ast.AST, int]] = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        waiting += ((child, depth + 1) for child in ast.iter_child_nodes(node))


def _refused(text: str, why: str) -> ConfigError:
    return ConfigError(f"--where {printable(repr(text), 100)}: {why}. {SYNTAX}")


def _columns(tree: ast.expr) -> list[str]:
    found = []
    for node in ast.walk(tree):
        name = _column_name(node)
        if name is not None:
            found.append(name)
    return found


def _column_name(node: ast.AST) -> str | None:
    """The column that a node names: NAME or col("NAME")."""
    if isinstance(node, ast.Name):
        return None if node.id.lower() in CONSTANTS or node.id == "col" else node.id
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return None
    if node.func.id != "col" or node.keywords or len(node.args) != 1:
        return None
    name = node.args[0]
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


class _Compiler:
    """Turns the nodes of a tree into an expression."""

    def __init__(self, text: str, kinds: Mapping[str, Kind | None]) -> None:
        self._text, self._kinds = text, kinds

    def compile(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.BoolOp):
            parts = [self.compile(value) for value in node.values]
            combined = parts[0]
            for part in parts[1:]:
                combined = combined & part if isinstance(node.op, ast.And) else combined | part
            return combined
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.compile(node.operand)
        if isinstance(node, ast.Compare):
            return self._chain(node)
        name = _column_name(node)
        if name is not None and self._kinds[name] in ("boolean", None):
            return pc.equal(self._column(name), True)
        raise _refused(self._text, f"{_shown(node)} is no condition")

    def _chain(self, node: ast.Compare) -> pc.Expression:
        """a < b < c is a < b and b < c."""
        sides = [node.left, *node.comparators]
        parts = [
            self._comparison(left, op, right)
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        combined = parts[0]
        for part in parts[1:]:
            combined = combined & part
        return combined

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            return self._null_test(left, isinstance(op, ast.IsNot), right)
        if isinstance(op, ast.In | ast.NotIn):
            found = self._membership(left, right)
            return ~found if isinstance(op, ast.NotIn) else found
        (first, one), (second, other) = self._operand(left), self._operand(right)
        self._check_kinds(one, other, left, right)
        return getattr(pc, COMPARISONS[type(op)])(first, second)

    def _null_test(self, left: ast.expr, negated: bool, right: ast.expr) -> pc.Expression:
        name = _column_name(left)
        if name is None or not (_is_constant(right) and _constant(right) is None):
            raise _refused(self._text, "`is` and `is not` need a column and null")
        column = self._column(name)
        return column.is_valid() if negated else column.is_null()

    def _membership(self, left: ast.expr, right: ast.expr) -> pc.Expression:
        """COLUMN in (constants), or "text" in COLUMN; null for a null, as of other comparisons."""
        name, holder = _column_name(left), _column_name(right)
        if name is not None and isinstance(right, ast.Tuple | ast.List):
            column = self._column(name)
            for value in right.elts:
                self._check_kinds(self._kinds[name], self._operand(value)[1], left, value)
            equal = [pc.equal(column, self._operand(value)[0]) for value in right.elts]
            if not equal:
                raise _refused(self._text, "a list is empty")
            combined = equal[0]
            for one in equal[1:]:
                combined = combined | one
            return combined
        if holder is not None and _is_constant(left) and isinstance(_constant(left), str):
            self._check_kinds("text", self._kinds[holder], left, right)
            column = self._column(holder).cast(pa.large_string())  # nulls alone have no text type
            return pc.match_substring(column, _constant(left))
        raise _refused(
            self._text, "`in` needs a column and a list of constants, or a text and a column"
        )

    def _operand(self, node: ast.expr) -> tuple[pc.Expression, Kind | None]:
        name = _column_name(node)
        if name is not None:
            return self._column(name), self._kinds[name]
        if not _is_constant(node):
            raise _refused(self._text, f"{_shown(node)} is neither a column nor a constant")
        value = _constant(node)
        if value is None:
            raise _refused(self._text, "nothing equals null: write `is null`")
        return pc.scalar(value), _kind_of(value)

    def _column(self, name: str) -> pc.Expression:
        return pc.field((name,))  # a tuple: dots in a name are no path

    def _check_kinds(
        self, one: Kind | None, other: Kind | None, left: ast.expr, right: ast.expr
    ) -> None:
        if None not in (one, other) and one != other:
            raise _refused(self._text, f"{_shown(left)} is a {one}, and {_shown(right)} a {other}")


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id.lower() in CONSTANTS
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return isinstance(node.operand, ast.Constant) and type(node.operand.value) in (int, float)
    if not isinstance(node, ast.Constant) or isinstance(node.value, bytes | complex):
        return False
    return node.value is not Ellipsis


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return CONSTANTS[node.id.lower()]
    if isinstance(node, ast.UnaryOp):
        return -_constant(node.operand)
    assert isinstance(node, ast.Constant)
    value = node.value
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value:,} does not fit into 64 bits")
    return value


def _kind_of(value: bool | int | float | str) -> Kind:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def _shown(node: ast.AST) -> str:
    return printable(ast.unparse(node), 60)


def column_kind(values: list[Any]) -> set[Kind]:
    """The kinds of some values that are not None."""
    return {_kind_of(value) for value in values if value is not None}


def typed_column(values: list[Any], kind: Kind | None) -> pa.Array:
    """Values of one kind, or None, as a column that a condition's expression takes."""
    types = {"number": None, "text": pa.large_string(), "boolean": pa.bool_(), None: pa.null()}
    if kind == "number" and any(isinstance(value, float) for value in values):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, types[kind] if any(v is not None for v in values) else pa.null())
