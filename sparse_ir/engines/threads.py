"""Running tasks in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


def run_threads(tasks: Sequence[Callable[[], None]], end_thread: Callable[[], None]) -> None:
    """Run every task in its own thread, each ending with ``end_thread``; raise the first error."""
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # raised again below, in the thread of the caller
            failures.append(error)
        finally:
            end_thread()

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
