"""Chooses the device and the threads of torch."""

import ctypes
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch

from askd_ray.errors import AskdError

Device = Literal["cpu", "cuda"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types of the recipe's ``train.precision``."""

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def n_cores() -> int:
    """Return the number of cores that this process may use; respects a container's CPU limit (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _CGROUP_QUOTA.read_text().partition(" ") if _CGROUP_QUOTA.is_file() else ("max", "", "")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def device_of(use_gpu: bool) -> Device:
    """Return the device of a recipe's stages: a GPU only if ``train.workers.gpu`` is true.

    In a Ray worker, "cuda" is the GPU that Ray assigned: the worker sees no other GPU.
    """
    return "cuda" if use_gpu else "cpu"


def usable_device(use_gpu: bool) -> Device:
    """Return :func:`device_of`, after a check that this process can use the device.

    Raises :class:`AskdError` as :func:`check_cuda` does.
    """
    if use_gpu:
        check_cuda()
    return device_of(use_gpu)


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return the precision of a model that is only run: float16 on a GPU, as every engine runs a Whisper; else float32.

    Whisper's weights are published in float16, and bfloat16 has 3 bits less.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def check_cuda() -> None:
    """Check that torch can use a GPU of this machine.

    Raises :class:`AskdError` without a GPU, and when its driver is too old for this torch.
    """
    if not torch.cuda.is_available():
        cuda = torch.version.cuda
        built = f"torch {torch.__version__} is built for CUDA {cuda}" if cuda else "this torch is built for CPUs only"
        raise AskdError(
            f"a GPU is required, but this machine has no GPU that torch can use (no NVIDIA GPU, or its driver is too "
            f"old; {built}; docs/install.md): use --set train.workers.gpu=false or --device cpu, or set RAY_ADDRESS to "
            "a cluster with GPUs"
        )


def gpu_memory_bytes(device: torch.device) -> int:
    """Return the size of a GPU's memory, whether it is free or not."""
    return torch.cuda.get_device_properties(device).total_memory


def start_copy(pinned: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, Callable[[], None]]:
    """Start to copy a tensor in pinned memory to a GPU, beside what the GPU computes.

    Returns the copy, and a function to call before the copy is used: it lets the GPU wait, not the host.
    """
    main, side, copied = torch.cuda.current_stream(device), _side_stream(device), torch.cuda.Event()
    with torch.cuda.stream(side):
        copy = pinned.to(device, non_blocking=True)
    copied.record(side)
    copy.record_stream(main)  # its memory is free again when the computation no longer needs it
    return copy, partial(main.wait_event, copied)


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def use_tf32(device: torch.device) -> None:
    """Let a GPU multiply float32 matrices in TF32, which has 10-bit mantissas and is several times as fast.

    It does nothing on a CPU.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


@contextmanager
def exact_matmul() -> Generator[None]:
    """Multiply float32 matrices in float32 within the block, also after :func:`use_tf32`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def use_threads(threads: int = 0, processes: int = 1) -> int:
    """Set the number of torch's threads and return it; 0 means the machine's cores divided by ``processes``.

    Ray sets OMP_NUM_THREADS to a worker's logical CPUs, which are deliberately fewer than the cores that it may use.
    """
    threads = threads or max(1, n_cores() // processes)
    torch.set_num_threads(threads)
    return threads


def use_one_thread_here(elsewhere: int) -> None:
    """Let torch use one thread in the calling thread, and ``elsewhere`` threads in threads that start later.

    For threads that work at the same time. Threads that have used torch before keep their number.
    """
    torch.get_num_threads()  # from now on this thread has a separate number
    torch.set_num_threads(1)  # sets the number of this thread, and the default of new threads
    other = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    other.start()
    other.join()


def release_memory() -> None:
    """Return the memory of freed tensors from glibc's allocator to the system; without glibc, do nothing.

    Batches have many shapes and fragment the heap: without this call, a process that trained six students of 73 M
    parameters in sequence held 13 GB (docs/LOG.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def one_torch_thread() -> Generator[None]:
    """Limit torch to one thread: its idle threads spin for a while and block cores that the engine needs.

    With two torch threads on two cores, a short clip takes 1.5 times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
