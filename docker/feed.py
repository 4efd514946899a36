"""Feed a stream as a job: end with 0 only when the feeder is through, so that one that was stopped is started again.

Usage: feed.py STREAM [OPTIONS]

`distillog feed` itself ends with 0 on SIGTERM, too, which a job would take for all orders fed.
"""

import sys

from pipeline.cli import main
from pipeline.stop_signals import terminated

try:
    main(["feed", *sys.argv[1:]])
except SystemExit as end:
    if end.code:
        raise
if terminated():
    sys.exit(143)  # the next one goes on where the topic ends
