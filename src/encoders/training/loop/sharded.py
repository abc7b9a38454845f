"""FSDP through Lightning, with the same checkpoints as other runs: complete tensors, no pickle."""

from pathlib import Path
from typing import Any, Dict, Optional, Union

from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import OptimStateKeyType
from torch.distributed.fsdp.api import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from encoders.blocks import PreNormBlock

__all__ = ["ShardedStrategy"]


class ShardedStrategy(FSDPStrategy):
    """Every process keeps a part of each block's parameters; checkpoints are read by the checkpoint plugin.

    Lightning's own class reads them with ``torch.load``.
    """

    def __init__(self) -> None:
        super().__init__(auto_wrap_policy=ModuleWrapPolicy({PreNormBlock}), state_dict_type="full")

    def load_checkpoint(self, checkpoint_path: Union[str, Path], weights_only: Optional[bool] = None) -> Dict[str, Any]:
        """Every process reads the whole file and keeps its parts of the weights and of the optimizer's state."""
        checkpoint = self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path))
        whole = (FullStateDictConfig(rank0_only=False), FullOptimStateDictConfig(rank0_only=False))
        model, module = self.model, self.lightning_module
        if model is None or module is None:
            raise RuntimeError("a checkpoint is loaded once Lightning has set the strategy up, not before")
        with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, *whole):
            model.load_state_dict(checkpoint.pop("state_dict"))
            if module.trainer.state.fn == TrainerFn.FITTING:
                for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", [])):
                    state = FSDP.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, model)
                    optimizer.load_state_dict(FSDP.optim_state_dict_to_load(model, optimizer, state))
        return checkpoint
