"""What differs between the members of the family: how their tokens become chunks."""
