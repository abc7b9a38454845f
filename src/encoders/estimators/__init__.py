"""Encoders as scikit-learn's and aeon's users know them: fit, predict, transform; trained as the application trains."""
