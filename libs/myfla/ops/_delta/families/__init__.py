"""The rules of the engine, each with its preparation of chunks from tokens."""
