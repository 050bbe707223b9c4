"""A network that breaks off: passes connections on to a server, and cuts each behind so many bytes of its answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self


class CuttingProxy:
    """``cut``: for each connection, the bytes of the answer that come through; None: all of them."""

    def __init__(self, port: int, cut: Callable[[], int | None]) -> None:
        self._port, self._cut = port, cut
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client, self._cut()), daemon=True).start()

    def _serve(self, client: socket.socket, left: int | None) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            try:
                while data := server.recv(65536):
                    client.sendall(data if left is None else data[:left])
                    if left is not None and (left := left - len(data)) <= 0:
                        self.cuts += 1
                        break
            finally:
                # Closing alone ends nothing while the other thread reads.
                for end in (client, server):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _pass_on(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
