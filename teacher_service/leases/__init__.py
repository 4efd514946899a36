"""Partitions as a worker holds them: the chain of each, where it begins, what it takes in."""
