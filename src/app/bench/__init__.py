"""The parts of ``job=bench``: `works` (what is measured), `timing` (samples in turn), `memory` (a process for each)."""
