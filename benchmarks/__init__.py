"""What the pipeline costs beside bare loops: `python -m benchmarks`, or `make bench`."""
