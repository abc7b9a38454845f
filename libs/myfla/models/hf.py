"""The models as transformers' own: ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` find them.

    import myfla.models.hf
    model = AutoModelForCausalLM.from_pretrained(folder)

Importing this module registers ``gated_deltanet`` and ``rwkv7``; nothing else of the library imports transformers. The
official library registers the same names: whichever is imported last serves them. The classes here compute what those
of `myfla.models` do and have the same parameters; transformers' loading, saving, `Trainer` and generation work on them.
"""

import dataclasses
import functools
import os
from typing import Any, ClassVar, Dict, List, Optional, Tuple, Type

import torch
from torch import nn

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
    from transformers import GenerationMixin as Generation
    from transformers import PretrainedConfig as Config
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
except ImportError as problem:
    remedy = "pip install 'myfla[hf]'"
    raise ImportError(f"myfla.models.hf: transformers must be installed; {remedy} ({problem})") from None

from myfla.models import configuration
from myfla.models.auto import MODELS
from myfla.models.checkpoint import WeightFiles
from myfla.models.checkpoint_names import adapt_names
from myfla.models.configuration_utils import AttentionConfigBase
from myfla.models.delta_net.modeling_delta_net import DeltaNetStack
from myfla.models.gated_deltanet.modeling_gated_deltanet import GatedDeltaNetStack
from myfla.models.gated_deltaproduct.modeling_gated_deltaproduct import GatedDeltaProductStack
from myfla.models.kda.modeling_kda import KDAStack
from myfla.models.language_model import LanguageModel
from myfla.models.rwkv7.modeling_rwkv7 import RWKV7LanguageModel, RWKV7Stack
from myfla.models.stack import Stack
from myfla.utils.errors import value_error

__all__ = [
    "DeltaNetConfig",
    "DeltaNetForCausalLM",
    "DeltaNetModel",
    "GatedDeltaNetConfig",
    "GatedDeltaNetForCausalLM",
    "GatedDeltaNetModel",
    "GatedDeltaProductConfig",
    "GatedDeltaProductForCausalLM",
    "GatedDeltaProductModel",
    "KDAConfig",
    "KDAForCausalLM",
    "KDAModel",
    "RWKV7Config",
    "RWKV7ForCausalLM",
    "RWKV7Model",
    "register",
]

CACHES = ("past_key_values", "cache", "cache_params")
"""The names of the cache: the first is this library's, the second transformers' from 5.24 on."""

BASE_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


class _Config(AttentionConfigBase, Config):
    """A config of transformers with the fields, defaults and rules of one of ours."""

    plain = configuration.ModelConfig  # without annotation: transformers would make a field of it
    keys_to_ignore_at_inference = list(CACHES)  # noqa: RUF012

    def __init__(self, **fields: Any) -> None:
        fields.pop("model_type", None)
        checked = self.plain(**fields).to_dict()
        checked.pop("model_type")
        base = {name: checked.pop(name) for name in BASE_FIELDS}
        unknown = [name for name in checked if name in fields and name not in self.plain().__dict__]
        base.update({name: checked.pop(name) for name in unknown})
        for name, value in sorted(checked.items(), key=lambda field: field[0] == "attn"):  # reads the depth
            setattr(self, name, value)
        super().__init__(**base)

    def _parse_attention_config(self, attn: Any) -> Any:
        return self.plain._parse_attention_config(self, attn)  # type: ignore[attr-defined]


class GatedDeltaNetConfig(_Config):
    """`myfla.models.GatedDeltaNetConfig` for transformers."""

    model_type = "gated_deltanet"
    plain = MODELS["gated_deltanet"][0]

    def __init__(self, **fields: Any) -> None:  # transformers adds one to a class that has none
        super().__init__(**fields)


class DeltaNetConfig(_Config):
    """`myfla.models.DeltaNetConfig` for transformers."""

    model_type = "delta_net"
    plain = MODELS["delta_net"][0]

    def __init__(self, **fields: Any) -> None:  # transformers adds one to a class that has none
        super().__init__(**fields)


class GatedDeltaProductConfig(_Config):
    """`myfla.models.GatedDeltaProductConfig` for transformers."""

    model_type = "gated_deltaproduct"
    plain = MODELS["gated_deltaproduct"][0]

    def __init__(self, **fields: Any) -> None:  # transformers adds one to a class that has none
        super().__init__(**fields)


class KDAConfig(_Config):
    """`myfla.models.KDAConfig` for transformers."""

    model_type = "kda"
    plain = MODELS["kda"][0]

    def __init__(self, **fields: Any) -> None:  # transformers adds one to a class that has none
        super().__init__(**fields)


class RWKV7Config(_Config):
    """`myfla.models.RWKV7Config` for transformers."""

    model_type = "rwkv7"
    plain = MODELS["rwkv7"][0]

    def __init__(self, **fields: Any) -> None:  # transformers adds one to a class that has none
        super().__init__(**fields)


class _Pretrained(PreTrainedModel):
    """What transformers expects of its models."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    stack: Type[Stack]
    _no_split_modules: ClassVar = ["DeltaNetBlock", "GatedDeltaNetBlock", "GatedDeltaProductBlock", "KDABlock",
                         "RWKV7Block"]
    _skip_keys_device_placement: ClassVar = list(CACHES)
    _is_stateful = True
    _input_embed_layer = "embeddings"
    gradient_checkpointing = False

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> "PreTrainedModel":
        if isinstance(config, configuration.ModelConfig):
            config = cls.config_class(**config.to_dict())
        return super()._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it; older RWKV-7 names in a local folder are converted."""
        tensors = _converted(name) if name is not None and os.path.isdir(name) else None
        if tensors is None:
            return super().from_pretrained(name, *args, **kwargs)
        kwargs.setdefault("config", cls.config_class.from_pretrained(name))
        return super().from_pretrained(None, *args, state_dict=tensors, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what was not loaded; tensors that were loaded are marked and must stay as they are."""
        loaded = [p for p in module.parameters() if getattr(p, "_is_hf_initialized", False)]
        values = [p.detach().clone() for p in loaded]
        if module is getattr(self, "lm_head", None):
            self.model.init_head(module)
        elif not isinstance(module, PreTrainedModel):
            (self if isinstance(self, Stack) else self.model).init_module(module)
        for parameter, value in zip(loaded, values):
            parameter.copy_(value)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        for module in self.modules():
            if isinstance(module, _Pretrained):
                module.gradient_checkpointing = enable


def _returning(kind: type, forward: Any) -> Any:
    """A forward pass that takes its cache by each of transformers' names and returns outputs of transformers.

    transformers reads its signature.
    """
    field = next(field.name for field in dataclasses.fields(kind) if field.name in CACHES)

    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, return_dict: Optional[bool] = None, **kwargs: Any) -> Any:
        values = dict(forward(self, *args, return_dict=True, **_renamed(f"{type(self).__name__}.forward", kwargs)))
        if CACHES[0] in values:
            values[field] = values.pop(CACHES[0])
        out = kind(**values)
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    return wrapped


def _renamed(who: str, kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """The same keywords, with the cache under this library's name."""
    named = [name for name in CACHES if kwargs.get(name) is not None]
    if len(named) > 1:
        raise value_error(who, named[0], f"excludes {named[1]}: both name the cache", "both", "give one of them")
    rest = {name: value for name, value in kwargs.items() if name not in CACHES}
    return {**rest, CACHES[0]: kwargs[named[0]]} if named else rest


class _Base(_Pretrained):
    forward = _returning(BaseModelOutputWithPast, Stack.forward)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.build(config)
        self.post_init()


class GatedDeltaNetModel(_Base, GatedDeltaNetStack):
    """`myfla.models.GatedDeltaNetModel` for transformers."""

    config_class = GatedDeltaNetConfig


class DeltaNetModel(_Base, DeltaNetStack):
    """`myfla.models.DeltaNetModel` for transformers."""

    config_class = DeltaNetConfig


class GatedDeltaProductModel(_Base, GatedDeltaProductStack):
    """`myfla.models.GatedDeltaProductModel` for transformers."""

    config_class = GatedDeltaProductConfig


class KDAModel(_Base, KDAStack):
    """`myfla.models.KDAModel` for transformers."""

    config_class = KDAConfig


class RWKV7Model(_Base, RWKV7Stack):
    """`myfla.models.RWKV7Model` for transformers."""

    config_class = RWKV7Config


class _Language(_Pretrained, Generation):
    base: Type[_Base]
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embeddings.weight"}
    forward = _returning(CausalLMOutputWithPast, LanguageModel.forward)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.base(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.criterion = None
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the layers keep recurrent states, in a separate cache


class GatedDeltaNetForCausalLM(_Language, LanguageModel):
    """`myfla.models.GatedDeltaNetForCausalLM` for transformers."""

    config_class, base = GatedDeltaNetConfig, GatedDeltaNetModel


class DeltaNetForCausalLM(_Language, LanguageModel):
    """`myfla.models.DeltaNetForCausalLM` for transformers."""

    config_class, base = DeltaNetConfig, DeltaNetModel


class GatedDeltaProductForCausalLM(_Language, LanguageModel):
    """`myfla.models.GatedDeltaProductForCausalLM` for transformers."""

    config_class, base = GatedDeltaProductConfig, GatedDeltaProductModel


class KDAForCausalLM(_Language, LanguageModel):
    """`myfla.models.KDAForCausalLM` for transformers."""

    config_class, base = KDAConfig, KDAModel


class RWKV7ForCausalLM(_Language, RWKV7LanguageModel):
    """`myfla.models.RWKV7ForCausalLM` for transformers."""

    config_class, base = RWKV7Config, RWKV7Model
    forward = _returning(CausalLMOutputWithPast, RWKV7LanguageModel.forward)


CLASSES: List[Tuple[Type[_Config], Type[_Base], Type[_Language]]] = [
    (GatedDeltaNetConfig, GatedDeltaNetModel, GatedDeltaNetForCausalLM),
    (DeltaNetConfig, DeltaNetModel, DeltaNetForCausalLM),
    (GatedDeltaProductConfig, GatedDeltaProductModel, GatedDeltaProductForCausalLM),
    (KDAConfig, KDAModel, KDAForCausalLM),
    (RWKV7Config, RWKV7Model, RWKV7ForCausalLM),
]


def register() -> None:
    """Make transformers' Auto classes serve these models; done when this module is imported.

    ``AutoModel.from_config`` takes the configs of `myfla.models` too.
    """
    for config, base, language in CLASSES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for kind in (config, config.plain):
            AutoModel.register(kind, base, exist_ok=True)
            AutoModelForCausalLM.register(kind, language, exist_ok=True)


def _converted(folder: Any) -> Optional[Dict[str, torch.Tensor]]:
    """All tensors of a folder under their new names, or None where none has an old one."""
    names = [name for name in os.listdir(str(folder)) if name.endswith(".safetensors")]
    if not names:
        return None
    files = WeightFiles(folder)
    if not any(name.endswith("attn.x_x") for name in files.names):
        return None
    sources = adapt_names(files.names, headless=False)
    read = {source.name: files.read(source.name) for source in sources.values()}
    return {name: read[s.name] if s.change is None else s.change(read[s.name]) for name, s in sources.items()}


register()
