"""The supervisor of one machine's workers: how many there are, where each runs, what it shows."""
