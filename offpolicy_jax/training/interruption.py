"""Ctrl-C and SIGTERM as a request."""

import signal
import threading


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a request that the loop honours at a safe point. A second Ctrl-C ends at once."""

    requested = False

    def __enter__(self):
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._old[kind] = signal.signal(kind, self._handle)
        return self

    def _handle(self, kind, frame):
        if self.requested and kind == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_):
        for kind, old in self._old.items():
            signal.signal(kind, old)
