"""One of two processes that train a block together: python parallel_worker.py RANK PORT WRAPPER MODEL."""

import os
import sys

import torch
import torch.distributed as dist

from small_models import prompt, small_model

STEPS = 2


def wrapped(model, wrapper):
    if wrapper == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, batches, scale):
    """Some steps of plain gradient descent on ``[rows, T]`` ids; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        (loss * scale).backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main():
    rank, port, wrapper, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    batches = [prompt(batch=2, length=12, seed=step) for step in range(STEPS)]
    alone = small_model(kind, dtype=torch.float64, use_l2warp=False).train()
    train(alone, batches, 1.0)
    together = small_model(kind, dtype=torch.float64, use_l2warp=False).train()
    train(wrapped(together, wrapper), [ids[rank : rank + 1] for ids in batches], 1.0)
    worst = 0.0
    for mine, theirs in zip(together.parameters(), alone.parameters()):
        worst = max(worst, float((whole(mine.detach()) - theirs.detach()).abs().max()))
    together.eval()
    if wrapper == "ddp" and rank == 0:  # the wrapped model still generates, through its cache
        assert together.generate(batches[0], max_new_tokens=3).shape == (2, 15)
    print(f"largest difference {worst:.2e}", flush=True)
    assert worst < 1e-10
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
