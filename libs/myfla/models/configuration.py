"""`ModelConfig`: the settings of a model as attributes and as an official ``config.json``."""

import copy
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Dict, Optional, Tuple, Type, TypeVar, Union

from myfla.utils.atomic import replacing
from myfla.utils.errors import CheckpointError, message, value_error
from myfla.utils.regular import read_regular

__all__ = ["CONFIG_NAME", "ModelConfig", "read_json"]

CONFIG_NAME = "config.json"
Config = TypeVar("Config", bound="ModelConfig")

# Fields of the official base class. Not written to a file unless they were given.
DEFAULTS = {
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "architectures": None,
    "dtype": None,
    "backend": "auto",
}


class ModelConfig:
    """Settings of a model. Keys that the model does not know are kept, and written again by `save_pretrained`.

    Subclasses set their own fields and hand everything else to this constructor.

    Args:
        pad_token_id, bos_token_id, eos_token_id: token ids, or None; the last may be a list.
        tie_word_embeddings: whether the output projection is the embedding itself.
        kwargs: any other key of a ``config.json``.

    Raises:
        ValueError: a key that would hide a method or belongs to another kind of model.
    """

    model_type = ""
    keys_to_ignore_at_inference = ("past_key_values",)
    sub_configs: ClassVar[Dict[str, Any]] = {}  # asked for by transformers' Auto classes

    def __init__(
        self,
        pad_token_id: Optional[int] = None,
        bos_token_id: Optional[int] = None,
        eos_token_id: Any = None,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        kind = kwargs.pop("model_type", self.model_type)
        if kind != self.model_type:
            raise value_error(type(self).__name__, "model_type", f"must be {self.model_type!r}", kind)
        if "torch_dtype" in kwargs:  # the older name
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
        for name, value in kwargs.items():
            if name not in DEFAULTS and hasattr(type(self), name):
                raise value_error(type(self).__name__, name, "must not be the name of a method", value, "rename it")
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in DEFAULTS:
            return DEFAULTS[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    # ---- other forms ----------------------------------------------------------------------------------------------

    def to_dict(self) -> Dict[str, Any]:
        """All fields, and ``model_type``; a copy."""
        return {**copy.deepcopy(self.__dict__), "model_type": self.model_type}

    def to_json_string(self) -> str:
        """`to_dict` as JSON, sorted by name."""
        fields = self.to_dict()
        if fields.get("dtype") is not None:
            fields["dtype"] = str(fields["dtype"]).replace("torch.", "")
        fields.pop("backend", None)  # a choice of this machine, and no part of the model
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls: Type[Config], fields: Dict[str, Any], **overrides: Any) -> Config:
        """A config with the given fields, of which ``overrides`` win."""
        return cls(**{**copy.deepcopy(fields), **overrides})

    @classmethod
    def from_pretrained(cls: Type[Config], folder: Union[str, Path], **overrides: Any) -> Config:
        """Read ``config.json`` from a folder.

        Args:
            folder: the folder, or the file itself.
            overrides: fields that win over the file's.

        Raises:
            CheckpointError: no folder, no file, no JSON object in it, the config of another kind of model, or a field
                out of range.
        """
        path, fields = read_json(f"{cls.__name__}.from_pretrained", folder)
        kind = fields.get("model_type", cls.model_type)
        if kind != cls.model_type:
            hint = "load it with the class of that model, or with myfla.models.load_model"
            raise CheckpointError(message(str(path), "model_type", f"must be {cls.model_type!r}", kind, hint))
        try:
            return cls.from_dict(fields, **overrides)
        except (TypeError, ValueError) as problem:
            raise CheckpointError(f"{path}: {problem}") from None

    def save_pretrained(self, folder: Union[str, Path]) -> None:
        """Write ``config.json`` into a folder, which is made if it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / CONFIG_NAME) as temporary:
            temporary.write_text(self.to_json_string(), encoding="utf-8")

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def read_json(who: str, folder: Union[str, Path], name: str = CONFIG_NAME) -> Tuple[Path, Dict[str, Any]]:
    """The JSON object in ``folder/name`` (or in the file ``folder``), and where it was.

    Raises:
        CheckpointError: the folder or file is missing, or holds no JSON object.
    """
    path = Path(folder)
    if not path.exists():
        hint = "model hubs are not contacted; download the files first and give their folder"
        raise CheckpointError(message(who, "folder", "must be an existing folder", str(folder), hint))
    if path.is_dir():
        path = path / name
    try:
        found = json.loads(read_regular(path).decode("utf-8"))
    except OSError as problem:
        hint = f"it must lie beside the weights in {os.path.dirname(str(path)) or '.'}"
        got = problem.strerror or str(problem)
        raise CheckpointError(message(who, name, "must be a readable file", got, hint)) from None
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(message(str(path), "content", "must be JSON", str(problem)[:200])) from None
    if not isinstance(found, dict):
        raise CheckpointError(message(str(path), "content", "must be a JSON object", type(found).__name__))
    return path, found
