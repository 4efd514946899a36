"""The process of a loader: opens a dataset and a view of its own, and answers requests for samples.

`python -m pipeline.views.child FD PARENT`: a connected socket, and the process ID of who is at its other end.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.datasets import open_dataset
from pipeline.tether import end_with
from pipeline.user_code import one_line, said
from pipeline.views.fetch import Fetcher
from pipeline.views.messages import STORAGE, Answer, Task, receive, send
from schemas.errors import DistillogError


def main(descriptor: int, parent: int) -> None:
    """Answer until the other end is closed."""
    end_with(parent, signal.SIGKILL)
    with socket.socket(fileno=descriptor) as end:
        try:
            task: Task = receive(end)
            opened: list[Fetcher] = []
            send(end, _answer(lambda: opened.append(_opened(task))))
            while opened:
                send(end, _answer(partial(opened[0].fetch, *receive(end))))
        except (EOFError, ConnectionError):
            return  # nobody asks any more


def _opened(task: Task) -> Fetcher:
    fetcher = Fetcher(open_dataset(task.uri), task.view, partners=task.partners)
    if fetcher.dataset.fields != task.fields:
        # Its first item could not be read for a moment, or the data change.
        raise OSError(f"opened once more, it has the fields {fetcher.dataset.fields}, not {task.fields}")
    fetcher.hold_to(task.kinds)
    return fetcher


def _answer(make: Callable[[], Any]) -> Answer:
    try:
        return Answer(make(), busy=time.process_time())
    except OSError as error:
        return Answer(error=STORAGE, text=one_line(error))
    except DistillogError as error:
        return Answer(error=type(error).__name__, text=str(error))
    except Exception as error:  # a bug, in our code or in a user's
        traceback.print_exc()
        return Answer(error=type(error).__name__, text=said(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
