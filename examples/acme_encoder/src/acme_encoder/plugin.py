"""The entry point. The strategy is named, not imported, so that ``--help`` does not wait for torch."""

from typing import Callable

from acme_encoder.config import AcmeEncoderConfig
from encoders.hookspecs import hookimpl


@hookimpl
def register_encoders(register: Callable) -> None:
    register("acme", strategy="acme_encoder.strategy:AcmeEncoderStrategy", config=AcmeEncoderConfig)
