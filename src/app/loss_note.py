"""An explanation for a training loss that is larger than the validation loss."""

from typing import Mapping

from cfg.app import AppConfig

__all__ = ["loss_note"]

_CHANGES = {"noise": "noise", "offset": "random shifts", "amplitude": "random factors", "warp": "warped time",
            "crop": "random parts", "mask": "hidden stretches"}


def loss_note(config: AppConfig, figures: Mapping[str, float]) -> str:
    """A sentence for the report; "" if the training loss is not larger.

    Args:
        config: of the run.
        figures: of the chosen epoch, with ``train_loss`` and, where there was validation, ``val_loss``.
    """
    train, held = figures.get("train_loss"), figures.get("val_loss")
    if train is None or held is None or not train > held:
        return ""
    job, reasons = config.job, []
    smoothing = getattr(job, "label_smoothing", 0)
    if smoothing and getattr(job, "objective", "") != "regress":
        reasons.append(f"label smoothing {smoothing:g}")
    if config.encoder.dropout:
        reasons.append(f"dropout {config.encoder.dropout:g}")
    if config.encoder.drop_path:
        reasons.append(f"skipped layers (drop_path {config.encoder.drop_path:g})")
    reasons += [f"{word} ({name} {getattr(job, name):g})" for name, word in _CHANGES.items() if getattr(job, name, 0)]
    if getattr(job, "class_weights", "none") == "balanced":
        reasons.append("class weights")
    listed = "with " + ", ".join(reasons) + ", and " if reasons else ""
    return (f"The training loss is larger than the validation loss because it is measured {listed}as a mean over the "
            "epoch, during which the weights change; the validation loss is measured at the end of the epoch, without "
            "these effects.")
