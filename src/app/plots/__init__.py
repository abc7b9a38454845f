"""Pictures of runs: each module makes `Figure`s of one kind, `style` gives them one look and writes them."""
