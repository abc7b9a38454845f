"""Many sequences as views of one long array, which may be a memory-mapped file."""

import tempfile
from typing import Any, List, Optional, Sequence, Tuple, Union, overload

import numpy as np
import torch
from torch import Tensor

__all__ = ["Views", "empty_array"]

IN_MEMORY = 64 << 20  # bytes; larger arrays are written to a file


class Views(Sequence[Tensor]):
    """The sequences ``values[starts[i]:ends[i]]``, made when they are requested.

    Args:
        values: ``[rows, ...]``.
        starts, ends: ``[N]`` int64.

    Example:
        >>> views = Views(torch.arange(5), torch.tensor([0, 2]), torch.tensor([2, 5]))
        >>> views[1], views.select([1, 0]).lengths
        (tensor([2, 3, 4]), [3, 2])
    """

    def __init__(self, values: Tensor, starts: Tensor, ends: Tensor) -> None:
        self.values, self.starts, self.ends = values, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> "Views": ...

    def __getitem__(self, index: Union[int, slice]) -> Union[Tensor, "Views"]:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.values[int(self.starts[index]) : int(self.ends[index])]

    def select(self, indices: Sequence[int]) -> "Views":
        """Those at ``indices``, in that order."""
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        return Views(self.values, self.starts[chosen], self.ends[chosen])

    @property
    def lengths(self) -> List[int]:
        """Rows of each."""
        return (self.ends - self.starts).tolist()


def empty_array(shape: Tuple[int, ...], dtype: Any, scratch: Optional[str]) -> np.ndarray:
    """An array to fill: in memory if it is small, otherwise in a file without a name, which is removed after use.

    Args:
        shape, dtype: of numpy.
        scratch: folder for the file; None for the system's folder for temporary files.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.truncate(size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
