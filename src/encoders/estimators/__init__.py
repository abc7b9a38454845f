"""Encoders with the interface of scikit-learn and aeon: fit, predict, transform; training is the application's."""
