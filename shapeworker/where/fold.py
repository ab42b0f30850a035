"""Constant expressions become constants, in the order in which Postgres' planner does it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from shapeworker.where import arrays, tree
from shapeworker.where.compile import evaluate
from shapeworker.where.errors import EvaluationError, InvalidWhere

FAILED = "Failed to apply function to constant arguments"


def fold(node: tree.Expression, parameters: Mapping[int, tree.Constant] | None = None) -> tree.Expression:
    """The same with all that is constant evaluated. ``parameters`` replaces Params, which stay without it.

    Raises InvalidWhere if evaluation fails, but not for what can never be reached.
    """
    if isinstance(node, tree.Constant | tree.ColumnRef):
        return node
    return _Folder(parameters).fold(node)


class _Folder:
    def __init__(self, parameters: Mapping[int, tree.Constant] | None) -> None:
        self._parameters = parameters
        # Shared operands (of BETWEEN) stay shared.
        self._done: dict[int, tree.Expression] = {}

    def fold(self, node: tree.Expression) -> tree.Expression:
        found = self._done.get(id(node))
        if found is None:
            found = self._done[id(node)] = self._fold(node)
        return found

    def _fold(self, node: tree.Expression) -> tree.Expression:
        match node:
            case tree.Constant() | tree.ColumnRef():
                return node
            case tree.Param():
                return node if self._parameters is None else self._parameters[node.number]
            case tree.Junction():
                return self._junction(node)
            case tree.Case():
                return self._case(node)
            case tree.Coalesce():
                return self._coalesce(node)
            case tree.Apply():
                return self._apply(replace(node, arguments=tuple(map(self.fold, node.arguments))))
            case tree.ArrayOf():
                return self._evaluated(replace(node, items=tuple(map(self.fold, node.items))), 0)
            case tree.Extreme():
                return self._evaluated(replace(node, items=tuple(map(self.fold, node.items))), 0)
            case tree.Not() | tree.IsNull() | tree.Is():
                return self._evaluated(replace(node, item=self.fold(node.item)), 0)
            case tree.NullIf():
                left, right = self.fold(node.left), self.fold(node.right)
                if _is_null(left) or _is_null(right):
                    return left
                return self._evaluated(replace(node, left=left, right=right), 0)
            case tree.IsDistinct():
                return self._evaluated(replace(node, left=self.fold(node.left), right=self.fold(node.right)), 0)
            case tree.Quantified():
                folded = replace(node, left=self.fold(node.left), array=self.fold(node.array))
                return self._evaluated(folded, 0)
            case tree.Element():
                indices = tuple(map(self.fold, node.indices))
                return self._evaluated(replace(node, item=self.fold(node.item), indices=indices), 0)
            case tree.Slice():
                ends = tuple((first and self.fold(first), last and self.fold(last)) for first, last in node.ends)
                return self._evaluated(replace(node, item=self.fold(node.item), ends=ends), 0)
        raise TypeError(type(node).__name__)

    def _apply(self, node: tree.Apply) -> tree.Expression:
        if node.function.strict and any(_is_null(argument) for argument in node.arguments):
            return tree.Constant(node.type, None)
        return self._evaluated(node, node.at)

    def _evaluated(self, node: tree.Expression, at: int) -> tree.Expression:
        if not all(isinstance(operand, tree.Constant) for operand in tree.children(node)):
            return node
        try:
            if isinstance(node, tree.ArrayOf):
                values = [item.value for item in node.items if isinstance(item, tree.Constant)]
                return tree.Constant(node.type, arrays.build(values, node.nested))
            return tree.Constant(node.type, evaluate(node))
        except EvaluationError as error:
            raise InvalidWhere.located(at, f"{FAILED}: {error}") from None

    def _junction(self, node: tree.Junction) -> tree.Expression:
        stop = node.connective == "or"
        kept: list[tree.Expression] = []
        for item in node.items:
            folded = self.fold(item)
            if isinstance(folded, tree.Constant):
                if folded.value is stop:
                    return folded
                if folded.value is (not stop):
                    continue
            kept.append(folded)
        if not kept:
            return tree.FALSE if stop else tree.TRUE
        if all(_is_null(item) for item in kept):
            return kept[0]
        return kept[0] if len(kept) == 1 else replace(node, items=tuple(kept))

    def _case(self, node: tree.Case) -> tree.Expression:
        arms: list[tuple[tree.Expression, tree.Expression]] = []
        for condition, result in node.arms:
            folded = self.fold(condition)
            if isinstance(folded, tree.Constant):
                if folded.value is not True:
                    continue
                last = self.fold(result)
                return replace(node, arms=tuple(arms), otherwise=last) if arms else last
            arms.append((folded, self.fold(result)))
        otherwise = self.fold(node.otherwise)
        return replace(node, arms=tuple(arms), otherwise=otherwise) if arms else otherwise

    def _coalesce(self, node: tree.Coalesce) -> tree.Expression:
        kept: list[tree.Expression] = []
        for item in node.items:
            folded = self.fold(item)
            if _is_null(folded):
                continue
            kept.append(folded)
            if isinstance(folded, tree.Constant):
                break
        if not kept:
            return tree.Constant(node.type, None)
        return kept[0] if len(kept) == 1 else replace(node, items=tuple(kept))


def _is_null(node: tree.Expression) -> bool:
    return isinstance(node, tree.Constant) and node.value is None
