"""A Milvus server as a process, on loopback, from the wheel `milvus`; no Docker."""

import os
import signal
import subprocess
import time
import urllib.request
import warnings

import pytest

_WAIT = 300.0  # seconds to start


class Server:
    """A standalone server that keeps its data and its port when it is killed and started again."""

    def __init__(self, directory):
        """Args:
        directory: of its data, made if it is missing.
        """
        milvus = pytest.importorskip("milvus", reason="needs the wheel: pip install milvus==2.3.5")
        pytest.importorskip("pymilvus", reason="needs pymilvus")
        self._directory = str(directory)
        os.makedirs(self._directory, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the wheel leaves sockets open
            config = milvus.MilvusServerConfig(data_dir=self._directory)
            config.resolve()
            self._health, holder = config.resolve_port(9091)
            holder.close()
            milvus._initialize_data_files(config.base_data_dir)
        self.port = config.get("proxy_port")
        self._process = None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Starts it and waits until it answers."""
        binaries = os.path.join(self._directory, "bin")
        environment = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._health),
            "MILVUS_RUN_DIR": os.path.join(self._directory, "run"),
            "LD_LIBRARY_PATH": binaries,
        }
        with open(os.path.join(self._directory, "log"), "a") as log:
            self._process = subprocess.Popen(
                [os.path.join(binaries, "milvus"), "run", "standalone"],
                cwd=self._directory,
                env=environment,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _WAIT
        while not self._healthy():
            assert self._process.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.2)

    def _healthy(self):
        try:
            address = f"http://127.0.0.1:{self._health}/healthz"
            with urllib.request.urlopen(address, timeout=20) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def kill(self):
        """SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
