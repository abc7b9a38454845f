"""Other libraries on these ops. Each module here needs its own extra; importing this package needs none of them."""
