"""World: the processes of a run, as ``torchrun`` starts them. Alone, everything here does nothing.

    torchrun --nproc-per-node 8 train.py configs/...

gloo for tensors on the CPU, nccl for those on GPUs. The plan's batches are global, so a run goes on with another number of
processes, to the same batches, wherever that number divides ``batch_size``.
"""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process among ``size``; ``device`` is its own."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank, on the CPU; they must have one shape."""
        if self.size == 1:
            return [values.cpu()]
        all_values = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(all_values, values)
        return [v.cpu() for v in all_values]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network for the training pass: gradients are averaged over processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def no_sync(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Holds the averaging of gradients back until the last part of a step."""
        if last or not isinstance(network, DistributedDataParallel):
            return nullcontext()
        return network.no_sync()


def start_world(device: str | None) -> World:
    """Join the processes that ``torchrun`` started, or stand alone. ``device`` as in the config."""
    kind = torch.device(device or default_device()).type
    size, rank, local_rank = (int(os.environ.get(name, d)) for name, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if size == 1:
        return World(0, 1, torch.device(device or kind))
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: start "
                "fewer processes, or set device=cpu"
            )
        torch.cuda.set_device(local_rank)
    if rank == 0:
        warn_of_stale_addresses()
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", rank, size)))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun on one machine keeps its store over restarts: addresses of killed processes must not be found in it.
            store = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    except dist.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise ValueError(f"the processes cannot meet at {place} ({reason}): choose another --master-port") from None
    return World(rank, size, torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind))


def warn_of_stale_addresses() -> None:
    """Say so if restarts by ``torchrun`` on several machines would find the addresses of killed processes in its store."""
    machines, restarts = (int(os.environ.get(name, 0)) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if machines > 1 and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        warnings.warn(
            "restarts by torchrun on several machines need a store of their own: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on "
            "all of them, or a run whose process was killed will not find together again",
            stacklevel=2,
        )


def leave_world() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def default_device() -> str:
    """cuda, mps or cpu: the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
