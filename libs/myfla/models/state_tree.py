"""Walking through the states a layer keeps: a tensor, or tuples, lists, dicts and dataclasses of tensors."""

from dataclasses import fields, is_dataclass
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import torch

from myfla.utils.errors import CacheError, message

__all__ = ["join_tensors", "map_tensors", "tensors_of"]

_PLAIN = (int, float, bool, str, type(None))


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same structure with every tensor replaced; containers are rebuilt, so nothing is shared but tensors.

    Args:
        function: called with each tensor.
        tree: a tensor, None, a number, a string, or a tuple, list, dict or dataclass of such.

    Raises:
        NotImplementedError: the structure holds an object of another kind.

    Example:
        >>> map_tensors(lambda t: t + 1, (torch.zeros(1), None))
        (tensor([1.]), None)
    """
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, _PLAIN):
        return tree
    return _rebuild(tree, [map_tensors(function, child) for _, child in _children(tree)])


def tensors_of(tree: Any, path: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    """Every tensor of a structure with its path, e.g. ``("conv_state.0", tensor)``.

    Example:
        >>> [name for name, _ in tensors_of({"conv_state": (torch.zeros(1), None)})]
        ['conv_state.0']
    """
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif not isinstance(tree, _PLAIN):
        for name, child in _children(tree):
            for found in tensors_of(child, f"{path}.{name}" if path else str(name)):
                yield found


def join_tensors(function: Callable[[List[torch.Tensor], str], Any], trees: Sequence[Any], who: str, field: str) -> Any:
    """One structure made of several equal ones, tensor by tensor.

    Args:
        function: called with the tensors that stand at one place, in the order of ``trees``, and with their path.
        trees: structures of one form, at least one.
        who, field: who asks and what the structures are, for the message.

    Raises:
        CacheError: the structures differ.

    Example:
        >>> join_tensors(lambda found, path: torch.cat(found), [(torch.zeros(1),), (torch.ones(1),)], "cat", "state")
        (tensor([0., 1.]),)
    """
    first = trees[0]
    for tree in trees:
        if type(tree) is not type(first):
            got = f"{type(first).__name__} and {type(tree).__name__}"
            raise CacheError(message(who, field, "must be of one kind in all caches", got))
    if isinstance(first, torch.Tensor):
        return function(list(trees), field)
    if isinstance(first, _PLAIN):
        if any(tree != first for tree in trees):
            raise CacheError(message(who, field, "must be equal in all caches", list(trees)))
        return first
    children = [list(_children(tree)) for tree in trees]
    names = [[name for name, _ in row] for row in children]
    if any(row != names[0] for row in names):
        raise CacheError(message(who, field, "must have the same parts in all caches", names))
    joined = [
        join_tensors(function, [row[i][1] for row in children], who, f"{field}.{name}")
        for i, name in enumerate(names[0])
    ]
    return _rebuild(first, joined)


def _children(tree: Any) -> List[Tuple[Any, Any]]:
    if isinstance(tree, dict):
        return list(tree.items())
    if isinstance(tree, (tuple, list)):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    raise NotImplementedError(
        f"Cache: a state of type {type(tree).__name__} cannot be transformed; use tensors, tuples, lists or dicts"
    )


def _rebuild(tree: Any, children: List[Any]) -> Any:
    if isinstance(tree, dict):
        return dict(zip(tree, children))
    if isinstance(tree, tuple):
        return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
    if isinstance(tree, list):
        return children
    return type(tree)(**{field.name: child for field, child in zip(fields(tree), children)})
