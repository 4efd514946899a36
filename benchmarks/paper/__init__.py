"""The paper's table: pure training, a teacher in the loop, and teachers apart, in one run on one machine.

What is compared is a student's seconds for a sample: the CPU seconds of its whole process and, within its waits for a
batch, the time in which none of its threads ran. All students of a comparison are alive, and one at a time runs, for
most of a second each, in turns (`interleave`); the others are stopped. `docs/benchmarks.md` says what that hides.
"""

from benchmarks.paper.run import run

__all__ = ["run"]
