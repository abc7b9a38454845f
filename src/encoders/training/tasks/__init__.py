"""Tasks on top of an encoder: heads, losses, figures and predictions, one `Task` for each objective."""
