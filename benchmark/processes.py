"""Processes that do not outlive the one that began them."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Die when the parent does, even by SIGKILL: a restarted run must not meet its own orphans."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr] # a worker has a parent
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
