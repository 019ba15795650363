"""Data parallelism: each rank holds the whole student (DistributedDataParallel) or a part of each parameter (FSDP2).

Checkpoints always hold full tensors under the same names, so a run may resume with the other method.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from askd_ray.models.student import StudentKind, StudentModel

Tensors = dict[str, torch.Tensor]


def shard(model: nn.Module, layers: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Distribute a model on the CPU over all ranks, in place; it is then on ``device``.

    A layer is gathered only while it computes, forward or backward. Parameters outside the layers (embeddings,
    convolutions, the last norms) stay gathered from the forward pass to the end of the backward pass, because the
    objective uses the projection in between. A teacher has no backward pass: its outer parameters stay gathered after
    the first forward pass.

    ``dtype`` is the precision of the training. In half precision a layer computes in it, residual connections included.
    The ranks exchange its parameters as ``dtype``, so autocast does not have to keep cast copies of them, and its
    gradients as float32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def wrap_network(student: StudentModel, world_size: int) -> nn.Module:
    """Return the module that the training calls; it averages gradients over ranks.

    A sharded student averages after every micro-batch, so that no rank has to hold the gradients of all parameters.
    """
    if world_size == 1 or isinstance(student, FSDPModule):
        return student
    # Gradients are not copied to buckets. Buffers are constants, and a language model's weights are among them.
    return DistributedDataParallel(student, gradient_as_bucket_view=True, broadcast_buffers=False)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip the norm of the gradients, over all parameters and ranks, to ``max_norm``; return the norm before, a scalar.

    The norm stays on the device: the host does not wait for it.
    """
    norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor of a sharded one (all ranks call it together); an unsharded tensor comes back as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a full tensor, sharded as ``like`` is; if ``like`` is unsharded, the tensor itself."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gather_on_cpu(tensors: Tensors, keep: bool) -> Tensors:
    """Return full copies on the CPU. A rank without ``keep`` only contributes its parts and returns nothing."""
    # Not torch's get_model_state_dict: averages and labels are no module's state, and it does not copy plain tensors.
    gathered: Tensors = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor.detach())
        if keep:
            gathered[name] = full.cpu().contiguous().clone()
    return gathered


@torch.no_grad()
def unsharded(student: StudentModel, student_kind: StudentKind) -> StudentModel:
    """Return a student that each rank can decode with by itself: a full copy if the student is sharded.

    A sharded student would wait for the other ranks at every token, and each rank decodes a different number of tokens.
    """
    if not isinstance(student, FSDPModule):
        return student
    full = student_kind.empty_like(student)
    target = full.state_dict()
    for name, tensor in student.state_dict().items():
        target[name].copy_(full_tensor(tensor))
    return full.to(next(student.parameters()).device).eval()
