"""The soak: a whole Distillog as real processes, a seeded schedule of faults, and a checker of its own."""
