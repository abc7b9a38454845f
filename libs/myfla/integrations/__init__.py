"""Other libraries with these operations. Each module needs its own extra; importing this package needs none."""
