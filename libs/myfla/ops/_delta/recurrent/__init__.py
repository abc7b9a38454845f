"""The recurrent form, token by token, for decoding."""
