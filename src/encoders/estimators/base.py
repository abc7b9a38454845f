"""What all estimators share: parameters, training and prediction."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from cfg.app import AppConfig
from cfg.encoder import EncoderConfig
from encoders.build import with_checkpoint_sizes
from encoders.errors import InputError
from encoders.estimators.arrays import Sequences, read_arrays
from encoders.estimators.folders import read_folder, write_folder
from encoders.estimators.isolation import isolated
from encoders.estimators.settings import SHORT, make_config, seed_of
from encoders.estimators.tags import TaggedEstimator, check_is_fitted
from encoders.training.data.prepared import Prepared
from encoders.training.data.sequences import SequenceData, SequenceSet
from encoders.training.encode import encode
from encoders.training.settle import settle
from encoders.training.sizes import encoder_for
from encoders.training.tasks.answers import Answers
from encoders.training.tasks.many import BATCH_TOKENS, PART, answer_many
from encoders.training.tasks.spec import task_spec

__all__ = ["SequenceEstimator"]

Callbacks = Optional[Sequence[Any]]


class SequenceEstimator(TaggedEstimator):
    """The parameters and the training of `SequenceClassifier`, `SequenceRegressor` and `SequenceEncoder`.

    Training is that of ``python -m app``, with its defaults, in a folder that is removed afterwards. Settings that are
    not given are chosen from the data (`encoders.training.settle`): of a small set nothing is held out; of a larger one
    a share is held out to choose the epoch, and with ``refit`` all sequences are then trained on for that many epochs.

    Args:
        encoder: the name of any strategy, a mapping with ``name`` and fields of its config, or a config.
        hidden_size, num_layers, max_epochs, learning_rate, batch_size, patience, validation_fraction, refit: the
            application's settings with these names; None: their defaults.
        missing: how NaN is treated: ``error``, ``mean`` or ``forward``.
        own_scale: first scale each sequence to mean 0 and standard deviation 1.
        layout: ``channels_first``: ``[n, channels, time]`` and ``[channels, time]``, as in aeon; ``channels_last``:
            ``[n, time, channels]`` and ``[time, channels]``. ``[n, time]`` is one channel in both cases.
        settings: any other setting by its key on the command line, e.g. ``{"job.noise": 0.1, "encoder.dropout": 0}``.
        random_state: an int for the same result every time; a `numpy.random.RandomState` or None draws a seed.
        device: ``cpu``, ``gpu``, ``mps`` or ``auto``.
        threads: number of threads of PyTorch on the CPU, in fitting and predicting; None: unchanged.
        callbacks: functions that are called with each epoch's figures (``{"epoch": 1, "val_loss": ...}``), or callbacks
            of Lightning.
        verbose: 1 shows a progress bar.
    """

    def __init__(
        self, encoder: Union[str, Mapping[str, Any], EncoderConfig] = "gated_deltanet", *,
        hidden_size: Optional[int] = None, num_layers: Optional[int] = None, max_epochs: Optional[int] = None,
        learning_rate: Optional[float] = None, batch_size: Optional[int] = None, patience: Optional[int] = None,
        validation_fraction: Optional[float] = None, refit: Optional[bool] = None, missing: Optional[str] = None,
        own_scale: Optional[bool] = None, layout: str = "channels_first",
        settings: Optional[Mapping[str, Any]] = None, random_state: Any = None, device: str = "cpu",
        threads: Optional[int] = 1, callbacks: Callbacks = None, verbose: int = 0,
    ) -> None:
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.refit = refit
        self.missing = missing
        self.own_scale = own_scale
        self.layout = layout
        self.settings = settings
        self.random_state = random_state
        self.device = device
        self.threads = threads
        self.callbacks = callbacks
        self.verbose = verbose

    _objectives: Tuple[str, ...] = ()
    n_features_in_: int

    def save(self, folder: Union[str, Path]) -> Path:
        """Save the trained model to a folder for `load`, and for ``python -m app run=FOLDER`` with ``job=predict``,
        ``encode``, ``stream`` or ``export``. Nothing is pickled; callbacks are not saved.

        Args:
            folder: the folder; it is made if it does not exist, and an older model in it is replaced.

        Returns:
            The folder.
        """
        check_is_fitted(self, "encoder_")
        return write_folder(Path(folder), self, {"columns": getattr(self, "n_features_in_", None), **self._facts()})

    @classmethod
    def load(cls, folder: Union[str, Path], device: str = "cpu") -> Any:
        """Load an estimator that was saved, or the model of a run of ``python -m app`` with that run's settings.

        Args:
            folder: the folder of `save` or of the run.
            device: the device for predictions.

        Returns:
            The fitted estimator.

        Raises:
            RunError: the folder does not exist, files are damaged, or the run is of another kind.
        """
        trained, params, facts = read_folder(Path(folder), device, cls.__name__, cls._objectives)
        made = cls(**params)
        made._keep(trained.encoder, trained.task, trained.pipeline, trained.config)
        made.history_ = []
        if facts.get("columns") is not None:
            made.n_features_in_ = facts["columns"]
        made._adopt(facts)
        return made

    def _facts(self) -> Dict[str, Any]:
        """Further values that this kind of estimator saves."""
        return {}

    def _adopt(self, facts: Mapping[str, Any]) -> None:
        """Restore what `_facts` returned."""

    def _config(self, objective: str) -> AppConfig:
        short = {key: getattr(self, name) for name, key in SHORT.items()}
        settings = {**(self.settings or {}), **{key: value for key, value in short.items() if value is not None}}
        return make_config(self.encoder, objective, settings, seed_of(self.random_state), self.device, self.threads,
                           bool(self.verbose))

    def _read(self, X: Any) -> Sequences:
        """Training sequences."""
        missing = self.missing or (self.settings or {}).get("data.missing", "error")
        who = f"{type(self).__name__}.fit"
        found = read_arrays(X, self.layout, who, missing != "error")
        if len(found.values) < 2:
            raise InputError(f"{who}: X must have two sequences, to learn from one and choose by the other; got "
                             "n_samples = 1")
        if hasattr(self, "n_features_in_"):
            del self.n_features_in_
        if found.columns is not None:
            self.n_features_in_ = found.columns
        return found

    def _fit(self, data: SequenceData, objective: str) -> None:
        """Train, and keep the result."""
        train_with = _training(type(self).__name__)
        config = self._config(objective)
        with isolated(self.threads), tempfile.TemporaryDirectory(prefix="myfla-fit-") as folder:
            task = task_spec(objective, data)
            config, _ = settle(config, data, task)
            config = dataclasses.replace(config, encoder=with_checkpoint_sizes(encoder_for(config, data, task)))
            torch.use_deterministic_algorithms(config.deterministic)
            module, parts = train_with.prepare(config, data, task)
            outcome = train_with.train(module, parts, data, config, Path(folder), tuple(self.callbacks or ()))
            done = train_with.whole(outcome, config, Path(folder))
            self._keep(done.encoder.to(_place(self.device)).eval(), done.task.to(_place(self.device)).eval(),
                       outcome.parts.pipeline, config)
        self.history_: List[Dict[str, Any]] = outcome.last.rows

    def _keep(self, encoder: Any, task: Any, pipeline: Any, config: AppConfig) -> None:
        self.encoder_, self.task_, self.pipeline_, self.config_ = encoder, task, pipeline, config
        self.n_channels_ = len(pipeline.schema.features)

    def _prepared(self, X: Any, method: str) -> Prepared:
        check_is_fitted(self, "encoder_")
        who = f"{type(self).__name__}.{method}"
        schema = self.pipeline_.schema
        values, names, columns = read_arrays(X, self.layout, who, self.pipeline_.missing != "error")
        wanted = getattr(self, "n_features_in_", columns)
        if columns not in (None, wanted):
            raise InputError(f"{who}: X has {columns} features, but {type(self).__name__} is expecting {wanted} "
                             "features as input: the columns of a table are its steps; give series of other lengths as "
                             "a list of arrays")
        if names is not None:
            order = schema.match(names, who)
            values = [value[:, order] for value in values]
        elif values[0].shape[1] != self.n_channels_:
            raise InputError(f"{who}: X must have {self.n_channels_} channels, as in fit; got {values[0].shape[1]}, by "
                             f"layout={self.layout!r}")
        return Prepared(SequenceSet(values, torch.zeros(len(values), dtype=torch.int64)), self.pipeline_)

    def _answers(self, X: Any, method: str) -> Answers:
        prepared = self._prepared(X, method)
        with isolated(self.threads):
            parts = [part.answers for part in answer_many(self.encoder_, self.task_, self.pipeline_, prepared)]
        held = ((name, [getattr(part, name) for part in parts]) for name in Answers._fields)
        return Answers(**{name: torch.cat(values) for name, values in held if values[0] is not None})

    def _embeddings(self, X: Any, method: str) -> np.ndarray:
        prepared = self._prepared(X, method)
        with isolated(self.threads):
            spans = [range(i, min(i + PART, len(prepared))) for i in range(0, len(prepared), PART)]
            parts = [encode(self.encoder_, prepared, span, BATCH_TOKENS, False).embeddings for span in spans]
        return np.asarray(torch.cat(parts).numpy())


def _training(who: str) -> Any:
    try:
        from encoders.training import run
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(f"{who}.fit needs the package {problem.name!r}; pip install 'myfla[train]'",
                                  name=problem.name) from None
    return run


def _place(device: str) -> str:
    """The PyTorch device for a trainer's ``auto`` or ``gpu``."""
    if device in ("gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    return "mps" if device == "mps" else "cpu"
