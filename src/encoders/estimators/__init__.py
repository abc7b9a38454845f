"""Encoders with the interface of scikit-learn and aeon: fit, predict, transform; trained as the application trains."""
