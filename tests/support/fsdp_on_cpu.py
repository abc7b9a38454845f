"""``python -m app`` with FSDP on the CPU, where torch offers it to nobody but its own tests: two processes over gloo.

With ``CUT=n`` in the environment every process ends, as if killed, before the n-th whole checkpoint.
"""

import os
from typing import Any

import lightning.pytorch.strategies.fsdp as lightning_fsdp
import torch
from torch.distributed import fsdp
from torch.distributed.fsdp.api import FullOptimStateDictConfig, FullStateDictConfig, StateDictType

FSDP = fsdp.FullyShardedDataParallel


class OnCPU(FSDP):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "device_id": torch.device("cpu")})


def whole_tensors(module: Any, world_size: int, rank0_only: bool = True) -> Any:
    """What is on the CPU already cannot be moved there: torch would free it before it is copied."""
    settings = {"rank0_only": False, "offload_to_cpu": False}
    return FSDP.state_dict_type(module, StateDictType.FULL_STATE_DICT, FullStateDictConfig(**settings),
                                FullOptimStateDictConfig(**settings))


def cut_at(number: int) -> None:
    from encoders.training.loop.resume import WholeCheckpoint

    save, calls = WholeCheckpoint._save, []

    def cut(*args: Any) -> None:
        calls.append(1)
        if len(calls) == number:
            os._exit(9)
        save(*args)

    WholeCheckpoint._save = cut  # type: ignore[method-assign]


if __name__ == "__main__":
    from app.main import main

    fsdp.FullyShardedDataParallel = OnCPU  # type: ignore[misc]
    lightning_fsdp._get_full_state_dict_context = whole_tensors
    if "CUT" in os.environ:
        cut_at(int(os.environ["CUT"]))
    main()
