"""How many states one round of a recurrent step works on. These numbers change speed, never meaning."""

STEP_BLOCK = 1 << 20
"""Elements of large states that one round of a recurrent step's operations works on, on a CPU: they stay in cache."""

STEP_WHOLE = 4 * STEP_BLOCK
"""Elements of states up to which there is one round: the last cache holds them, and calls cost more."""
