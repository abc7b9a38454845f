"""``job=bench``, part by part: `works` (what is measured), `timing` (in turn), `memory` (each in its own process)."""
