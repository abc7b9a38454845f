"""Pictures of runs: each module makes figures of one kind, `style` has their style and writes them."""
