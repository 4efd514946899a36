"""One file for each fault of kafka-python that the project works around, each with a test of its own."""
