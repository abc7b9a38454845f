"""The base class of all models: initialisation, reading from a folder, and writing to one."""

import copy
import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Type, TypeVar, Union, cast

import torch
from torch import nn

from myfla.models.checkpoint import WeightFiles, check_names, check_shape
from myfla.models.checkpoint_names import adapt_names
from myfla.models.checkpoint_write import write_weights
from myfla.models.configuration import ModelConfig, read_json
from myfla.utils.atomic import replacing
from myfla.utils.errors import CheckpointError, message, unknown_keyword, value_error

__all__ = ["FLAPreTrainedModel"]

Model = TypeVar("Model", bound="FLAPreTrainedModel")
GENERATION_CONFIG = "generation_config.json"
# What official callers pass and what means nothing where only local safetensors are read.
INERT = ("local_files_only", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


class FLAPreTrainedModel(nn.Module):
    """Base of all models.

    Args:
        config: the settings; any object with the attributes of ``config_class``.

    Attributes:
        config_class: the class with which `from_pretrained` reads ``config.json``.
        generation_config: the content of ``generation_config.json``, the defaults of `generate`.
        gradient_checkpointing: whether blocks are computed again in the backward pass instead of kept.
    """

    config_class: Type[ModelConfig] = ModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    headless = True  # whether there is no output projection

    def __init__(self, config: Any) -> None:
        super().__init__()
        wanted = self.config_class.model_type
        kind = getattr(config, "model_type", None)
        if kind != wanted:
            got = type(config).__name__ if kind is None else kind
            raise value_error(type(self).__name__, "config", f"must be a config of {wanted!r}", got)
        self.config = config
        self.generation_config: Dict[str, Any] = {}
        self.gradient_checkpointing = False

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the embedding."""
        return self.get_input_embeddings().weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        raise NotImplementedError

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another output projection in."""
        setattr(self, "lm_head", new_embeddings)

    def num_parameters(self) -> int:
        """Number of trainable parameters; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Trade time for memory: keep only the input of each block in training."""
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep what the backward pass needs."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, FLAPreTrainedModel):
                module.gradient_checkpointing = on

    def tie_weights(self) -> None:
        """Make the output projection the embedding, if the config says so; one without an output projection has nothing
        to tie."""

    # ---- files ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: Type[Model],
        folder: Union[str, Path],
        config: Optional[ModelConfig] = None,
        dtype: Union[str, torch.dtype, None] = "auto",
        device: Any = None,
        **overrides: Any,
    ) -> Model:
        """Read an official checkpoint folder: ``config.json`` and one or several safetensors files.

        A model without an output projection can read the folder of one that has it, and omits it. Older RWKV-7
        names are converted. Every tensor must be there and none may be left over. Nothing is ever unpickled.

        Args:
            folder: a local folder.
            config: used instead of the folder's.
            dtype: dtype of the parameters; ``"auto"`` for the one that the config tells, or else the weights
                have. None is torch's default. Decay parameters are never kept in less than float32.
            device: the device of the parameters.
            overrides: fields of the config that replace those of the folder, and ``backend``, see `myfla.backends`.

        Returns:
            The model, in evaluation mode.

        Raises:
            CheckpointError: a missing, damaged, pickled or unfit file; the message names file, key and remedy.
            TypeError: an unknown keyword.

        Example:
            >>> import tempfile
            >>> from myfla.models import RWKV7Config, RWKV7Model
            >>> config = RWKV7Config(hidden_size=16, head_dim=8, num_hidden_layers=1, vocab_size=5)
            >>> folder = tempfile.mkdtemp()
            >>> RWKV7Model(config).save_pretrained(folder)
            >>> RWKV7Model.from_pretrained(folder)(torch.tensor([[1, 2]])).last_hidden_state.shape
            torch.Size([1, 2, 16])
        """
        overrides = {name: value for name, value in overrides.items() if name not in INERT}
        dtype = overrides.pop("torch_dtype", dtype)
        read = config is None
        if config is None:
            config = cls.config_class.from_pretrained(folder)
        known = config.to_dict()
        for name in overrides:
            if name not in known and name != "backend":
                raise unknown_keyword(f"{cls.__name__}.from_pretrained", name, ["config", "dtype", "device", *known])
        if overrides:
            config = type(config).from_dict(known, **overrides)
        files, make = WeightFiles(folder), cast(Callable[..., Model], cls)  # a model also takes device and dtype
        try:
            model = make(config, device="meta", dtype=_number_format(folder, config, files, dtype))
        except (TypeError, ValueError) as problem:
            if not read or overrides or isinstance(problem, CheckpointError):
                raise
            raise CheckpointError(message(f"{folder}/config.json", "content", "must describe a model", str(problem))
                                  ) from None
        model._fill(files, device)
        model._read_generation_config(Path(folder))
        return model.eval()

    def save_pretrained(self, folder: Union[str, Path], max_shard_size: Union[int, str] = "5GB") -> None:
        """Write a folder that the official library, transformers and `from_pretrained` read.

        Args:
            folder: made if it is not there; weights of an older model in it are removed.
            max_shard_size: bytes in one weight file, or like ``"200MB"``.

        Raises:
            ValueError: a size that cannot be read.
            OSError: the folder is read-only or full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.copy(self.config)
        config.architectures, config.dtype = [type(self).__name__], self.dtype
        write_weights(folder, self._saved_tensors(), max_shard_size)
        config.save_pretrained(folder)
        if self.generation_config:
            with replacing(folder / GENERATION_CONFIG) as temporary:
                text = json.dumps(self.generation_config, indent=2, sort_keys=True)
                temporary.write_text(text + "\n", encoding="utf-8")

    def _saved_tensors(self) -> Dict[str, torch.Tensor]:
        """The state dict without what is tied to another entry."""
        return dict(self.state_dict())

    def _fill(self, files: WeightFiles, device: Any) -> None:
        """Put the tensors of a folder in the place of this model's, which has none yet."""
        sources = adapt_names(files.names, self.headless)
        needed = set(self._saved_tensors())
        tied = [name for name in self.state_dict() if name not in needed and name in sources]
        what = f"{type(self).__name__} as config.json describes it"
        check_names(files.folder, needed, [name for name in sources if name not in tied], what)
        for name, parameter in list(self.named_parameters()):
            source = sources[name]
            tensor = files.read(source.name)
            tensor = tensor if source.change is None else source.change(tensor)
            check_shape(files.path(source.name), source.name, tensor.shape, parameter.shape)
            _check_floating(files, source.name, tensor)
            new = nn.Parameter(tensor.to(device=device or "cpu", dtype=parameter.dtype), parameter.requires_grad)
            new.__dict__.update(parameter.__dict__)
            owner, _, own = name.rpartition(".")
            setattr(self.get_submodule(owner), own, new)
        self.tie_weights()
        for name in tied:
            self._check_tied(files, sources[name].name, self.state_dict()[name])

    def _check_tied(self, files: WeightFiles, name: str, tied: torch.Tensor) -> None:
        tensor = files.read(name).to(device=tied.device, dtype=tied.dtype)
        if tensor.shape != tied.shape or not torch.equal(tensor, tied):
            rule, got = "must equal the embedding, since tie_word_embeddings is true", "another tensor"
            hint = "set tie_word_embeddings to false in config.json, or remove the tensor"
            raise CheckpointError(message(str(files.path(name)), name, rule, got, hint))

    def _read_generation_config(self, folder: Path) -> None:
        if (folder / GENERATION_CONFIG).is_file():
            self.generation_config = read_json("checkpoint", folder, GENERATION_CONFIG)[1]


def _number_format(folder: Any, config: Any, files: WeightFiles, dtype: Any) -> Optional[torch.dtype]:
    """The format that ``from_pretrained(dtype=)`` asks for."""
    if dtype is None:
        return None
    told = dtype if dtype != "auto" else config.dtype
    if told is None or told == "auto":
        tensor = next((files.read(name) for name in files.names), torch.empty(0))
        return tensor.dtype if tensor.is_floating_point() else None
    found = told if isinstance(told, torch.dtype) else getattr(torch, str(told).replace("torch.", ""), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        rule = "must name a floating-point format of torch"
        if dtype == "auto":
            raise CheckpointError(message(f"{folder}/config.json", "dtype", rule, told, "give dtype= yourself"))
        raise value_error("from_pretrained", "dtype", rule, told)
    return found


def _check_floating(files: WeightFiles, name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        hint = "quantised checkpoints are not read"
        raise CheckpointError(message(str(files.path(name)), name, "must be floating point", tensor.dtype, hint))
