"""Token by token: what decoding runs on."""
