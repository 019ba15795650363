"""Device and threads, decided in one place."""

import ctypes
import os
import threading
from pathlib import Path
from typing import Literal

import torch

from askd_ray.errors import AskdError

Device = Literal["cpu", "cuda"]

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def n_cores() -> int:
    """Return the number of cores that this process may use; a container's share (cgroup v2) counts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _CGROUP_QUOTA.read_text().partition(" ") if _CGROUP_QUOTA.is_file() else ("max", "", "")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def device_of(use_gpu: bool) -> Device:
    """Return where a recipe's stages compute: on a GPU only where ``train.use_gpu`` asks for one.

    Where Ray runs the work, "cuda" is the GPU that it granted: no other one can be seen from there.
    """
    return "cuda" if use_gpu else "cpu"


def usable_device(use_gpu: bool) -> Device:
    """Return :func:`device_of`, where this process can compute there.

    Raises :class:`AskdError` as :func:`check_cuda` does.
    """
    if use_gpu:
        check_cuda()
    return device_of(use_gpu)


def check_cuda() -> None:
    """Check that torch can compute on a GPU of this machine.

    Raises :class:`AskdError` when there is none, and when its driver is too old for this torch.
    """
    if not torch.cuda.is_available():
        cuda = torch.version.cuda
        built = f"torch {torch.__version__} is built for CUDA {cuda}" if cuda else "this torch is built for CPUs only"
        raise AskdError(
            f"a GPU is asked for, and this machine has no GPU that torch can use (no NVIDIA GPU, or its driver is too "
            f"old; {built}; docs/install.md): --set train.use_gpu=false or --device cpu, or RAY_ADDRESS of a cluster "
            "that has some"
        )


def use_threads(threads: int = 0, processes: int = 1) -> int:
    """Let torch use ``threads`` threads (0: the machine's cores, shared by ``processes``); returns how many.

    Ray sets OMP_NUM_THREADS from the logical CPUs of a worker, which on purpose are fewer than what it may use.
    """
    threads = threads or max(1, n_cores() // processes)
    torch.set_num_threads(threads)
    return threads


def use_one_thread_here(elsewhere: int) -> None:
    """Let torch compute with one thread in the calling thread, and with ``elsewhere`` in threads that begin later.

    For threads that work side by side. Threads that have computed already keep what they have.
    """
    torch.get_num_threads()  # from now on this thread has a number of its own
    torch.set_num_threads(1)  # sets that, and what all threads begin with
    other = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    other.start()
    other.join()


def release_memory() -> None:
    """Hand back to the system what glibc's allocator keeps of freed tensors; elsewhere nothing happens.

    Batches are of ever new shapes, and leave holes in its heap: without this a process that trained six students of
    73 M parameters one after the other held 13 GB (docs/LOG.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
