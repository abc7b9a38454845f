"""Functions for all parts of the library: errors, dtypes, l2 normalisation."""
