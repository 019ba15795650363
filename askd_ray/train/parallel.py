"""Many ranks, one student: each rank has all of it (DistributedDataParallel), or a share of each parameter (FSDP2).

Whatever a rank holds, a checkpoint has whole tensors under the same names: a run may go on the other way.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import WhisperForConditionalGeneration

from askd_ray.models.empty import empty_whisper
from askd_ray.models.windows import WindowedWhisper

Tensors = dict[str, torch.Tensor]


def shard(model: WindowedWhisper, device: torch.device) -> WindowedWhisper:
    """Share a model on the CPU out over all ranks, in place; returns it, now on ``device``.

    A layer is whole only while it computes, forward or backward. What lies in no layer (embeddings, convolutions, the
    last norms) stays whole from the forward to the end of the backward pass: the objective uses the projection in
    between. For a teacher, which has no backward pass, it stays whole after the first forward pass. In half precision
    (autocast) the backward pass needs the layers' weights, cast down, as they were: 2 bytes a parameter on each rank.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (model.whisper.model.encoder, model.whisper.model.decoder):
        for layer in part.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def network_of(student: WindowedWhisper, world_size: int) -> nn.Module:
    """Return what the training calls: it averages gradients over ranks.

    A sharded student does it with every micro-batch: until then each rank would hold the gradients of all parameters.
    """
    if world_size == 1 or isinstance(student, FSDPModule):
        return student
    return DistributedDataParallel(student)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a norm of ``max_norm``, over all parameters and ranks' shares; returns it as it was."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.item()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor of which each rank holds a share (all ranks call it together), or one that is whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of a whole tensor, shared out as ``like`` is, or the tensor if that one is whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gather(tensors: Tensors, keep: bool) -> Tensors:
    """Return whole copies on the CPU; nothing on a rank that does not ``keep`` them but has to give its shares."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        entire = whole(tensor.detach())
        if keep:
            found[name] = entire.cpu().contiguous().clone()
    return found


@torch.no_grad()
def whole_model(student: WindowedWhisper) -> WhisperForConditionalGeneration:
    """Return a student's model in which each rank can decode by itself: a whole copy if it is sharded.

    A sharded one would wait for the other ranks at every token, and each decodes another number of them.
    """
    if not isinstance(student, FSDPModule):
        return student.whisper
    model = empty_whisper(student.whisper.config)
    model.generation_config = student.whisper.generation_config
    target = model.state_dict()
    for name, tensor in student.whisper.state_dict().items():
        target[name].copy_(whole(tensor))
    cast(nn.Module, model).to(next(student.parameters()).device)
    return model.eval()
