"""Copies micro-batches to a GPU: one buffer and one copy for each, while the one before it is computed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.data.schema import Batch
from askd_ray.torch_setup import start_copy

Tensors = dict[str, torch.Tensor]
_ALIGNMENT = 64  # bytes: every array begins where its type may begin, and where a GPU reads fast


@dataclass(frozen=True)
class PackedArrays:
    """Arrays in one buffer of bytes; ``layout`` gives each one's first byte, type and shape."""

    buffer: torch.Tensor
    layout: Mapping[str, tuple[int, torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]], pinned: bool) -> "PackedArrays":
        """Pack arrays; ``pinned`` memory can be copied to a GPU without waiting."""
        layout: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        size = 0
        for name, tensor in tensors.items():
            layout[name] = size, tensor.dtype, tuple(tensor.shape)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        for name, tensor in tensors.items():
            start = layout[name][0]
            if tensor.nbytes:  # an empty tensor cannot always be viewed as bytes
                buffer[start : start + tensor.nbytes] = tensor.flatten().view(torch.uint8)
        return cls(buffer, layout)

    def unpack(self, buffer: torch.Tensor) -> Tensors:
        """Return the arrays in a copy of the buffer on any device, as views of it."""
        tensors: Tensors = {}
        for name, (start, dtype, shape) in self.layout.items():
            n_bytes = dtype.itemsize * int(np.prod(shape))
            tensors[name] = buffer[start : start + n_bytes].view(dtype).view(shape)
        return tensors


def arrays_of(batch: Batch) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a batch that a device needs: all but the utterances' names."""
    return {name: value for name, value in vars(batch).items() if name not in ("ids", "numbers")}


def on_device(batches: Sequence[Batch], device: torch.device) -> Iterator[Tensors]:
    """Yield the arrays of each batch as tensors on a device.

    On a CPU nothing is copied. To a GPU, each batch is one copy on a side stream, which runs while the batch before it
    is computed; the host waits for neither.
    """
    if device.type != "cuda":
        for batch in batches:
            yield {name: torch.from_numpy(array).to(device) for name, array in arrays_of(batch).items()}
        return

    def started(batch: Batch) -> tuple[Tensors, Callable[[], None]]:
        packed = PackedArrays.of(arrays_of(batch), pinned=True)
        buffer, wait = start_copy(packed.buffer, device)
        return packed.unpack(buffer), wait

    copies = [started(batch) for batch in batches[:1]]
    for number in range(len(batches)):
        tensors, wait = copies.pop()
        copies += [started(batch) for batch in batches[number + 1 : number + 2]]
        wait()
        yield tensors


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device; the host does not wait for the copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
