"""Job configs: what a run does."""

from dataclasses import dataclass
from typing import Dict, Optional, Type

from cfg.validation import Fields

__all__ = ["JOB_CONFIGS", "JobConfig", "TrainJobConfig"]

OBJECTIVES = ("classify", "regress", "next_step")
SCHEDULES = ("cosine", "linear", "constant")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass
class JobConfig:
    """What every job has.

    Args:
        name: the name of the job.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "???"

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field. A subclass calls ``super().validate()`` and then checks its own."""
        Fields(self, "job").text("name")


@dataclass
class TrainJobConfig(JobConfig):
    """Train an encoder with a head on top, choose the epoch on validation data, report on test data.

    Args:
        objective: ``classify`` (cross-entropy) or ``regress`` (squared error) with one target for each sequence or each
            step, as in the data; ``next_step``: predict at each step the next token or the next features.
        learning_rate: largest learning rate of AdamW; null: chosen from the training data.
        schedule: course of the learning rate after the warm-up: ``cosine`` and ``linear`` fall to zero, ``constant``
            stays.
        warmup (share): share of all steps during which the learning rate rises to its largest value.
        weight_decay: weight decay of matrices; vectors, embeddings and parameters marked ``_no_weight_decay`` have
            none.
        label_smoothing (share): share of the target spread over all classes.
        class_weights: ``balanced``: all classes have the same weight in the loss, whatever their numbers of examples;
            ``none``: all examples have the same weight.
        noise (standard deviations): standard deviation of the Gaussian noise on every training value, in units of the
            (standardised) input.
        offset (standard deviations): standard deviation of the random shift of every channel of a training sequence,
            the same at all its steps; it imitates other sensors and other days. Not with ``next_step``. Null: chosen
            from the training data.
        amplitude (standard deviations): standard deviation of the random factor, around 1, of every channel of a
            training sequence, the same at all its steps.
        warp (logarithm): largest factor, as a logarithm, by which a training sequence is randomly stretched or shrunk
            in time: with 0.3, 100 steps become 74 to 135. Only with one target for each sequence.
        crop (share): largest share of a training sequence that is cut off at random. Only with one target for each
            sequence.
        mask (share): largest share of a training sequence that is hidden at random, by setting it to the mean. Only
            with one target for each sequence. Null: chosen from the training data.
        patience (epochs): stop after this many epochs without a better validation loss.
        test_pieces (steps): feed test sequences in pieces of this length, as a stream would; null: as a whole.
        test_carry: continue each of these pieces from the state after the piece before; false: start each from zero.
        baselines: also measure simple methods on the same split.
        refit: train again on training and validation data together, for the number of epochs that validation has
            chosen.
    """

    name: str = "train"
    objective: str = "classify"
    learning_rate: Optional[float] = 2e-3
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.2
    label_smoothing: float = 0.1
    class_weights: str = "none"
    noise: float = 0.0
    offset: Optional[float] = 0.3
    amplitude: float = 0.0
    warp: float = 0.0
    crop: float = 0.0
    mask: Optional[float] = 0.0
    patience: int = 20
    test_pieces: Optional[int] = None
    test_carry: bool = True
    refit: bool = True
    baselines: bool = True

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.choice("objective", OBJECTIVES)
        fields.choice("schedule", SCHEDULES)
        fields.number("warmup", 0, 1)
        fields.number("weight_decay", 0, 100)
        fields.choice("class_weights", CLASS_WEIGHTS)
        fields.number("learning_rate", 0, 10, open_low=True, optional=True)
        fields.number("label_smoothing", 0, 1, open_high=True)
        fields.number("offset", 0, 100, optional=True)
        for name, most in (("noise", 100), ("amplitude", 100), ("warp", 3)):
            fields.number(name, 0, most)
        fields.number("crop", 0, 1, open_high=True)
        fields.number("mask", 0, 1, optional=True)
        fields.integer("patience", 1, 1 << 20)
        fields.integer("test_pieces", 1, 1 << 30, optional=True)
        fields.flag("test_carry")
        fields.flag("refit")
        fields.flag("baselines")


JOB_CONFIGS: Dict[str, Type[JobConfig]] = {"train": TrainJobConfig}
