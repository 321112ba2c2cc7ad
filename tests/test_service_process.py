"""The service as a process: it starts, answers, works in processes of its own, and ends."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import service_world
from service_world import pictures

from iamcl2r_jax.gallery.service import work
from iamcl2r_jax.gallery.service.answers import WorkError
from iamcl2r_jax.programs import serve

ROOT = pathlib.Path(__file__).parents[1]
# The program with the cheap models of the tests: what it does with JAX is tested elsewhere.
PROGRAM = """
import sys
import service_world
from iamcl2r_jax.gallery import embedder
from iamcl2r_jax.programs import serve, start
start.prepare_jax = lambda: None
embedder.CheckpointEmbedder = service_world.Embedder
embedder.Embedders.__init__.__defaults__ = (service_world.Embedder,)
sys.exit(serve.main())
"""


class Served:
    """A service as a process; `end` sends a signal and returns its exit status and its errors."""

    def __init__(self, directory, *options, **environment):
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory), "--port=0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )
        self.said = [self.process.stdout.readline()]
        if "--token-file" not in " ".join(options) and serve.TOKEN_VARIABLE not in environment:
            self.said += [self.process.stdout.readline() for _ in range(2)]
        self.address = self.said[0].split()[-1]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def wait_until_ready(self):
        end = time.monotonic() + 60
        while requests.get(f"{self.address}/readyz", timeout=20).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.fixture
def directory(tmp_path):
    made, _ = service_world.gallery(tmp_path / "gallery")
    made.close()
    return tmp_path / "gallery"


def test_it_answers_what_it_has_before_it_ends(directory):
    served = Served(directory, "--batch=1", "--wait=0")
    served.wait_until_ready()
    content = pictures()["class1/1.png"][0]
    began = threading.Barrier(9)

    def ask(_):
        began.wait()
        files = {"image": content}
        answer = requests.post(f"{served.address}/v1/search", files=files, timeout=20)
        return answer.status_code, answer.json()["hits"][0]["key"]

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, n) for n in range(8)]
        began.wait()
        next(answer for answer in answers if answer.result())
        code, errors = served.end()
    whole = [answer.result() for answer in answers if answer.exception() is None]
    assert whole
    assert set(whole) == {(200, "class1/1.png")}
    # Who came too late found nobody; nobody got half an answer.
    late = [answer.exception() for answer in answers if answer.exception() is not None]
    assert all("refused" in str(error) or "reset" in str(error).lower() for error in late)
    assert (code, errors) == (0, "")


def test_it_listens_on_loopback_and_prints_the_token_it_made(directory):
    served = Served(directory)
    assert served.address.startswith("http://127.0.0.1:")
    token = served.said[1].removeprefix("token: ").strip()
    assert served.said[2].strip().endswith(f"{served.address}/upgrade#token={token}")
    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.post(f"{served.address}/v1/upgrade/pause", headers=headers, timeout=20)
    assert answer.status_code == 409
    assert served.end(signal.SIGINT) == (0, "")


def test_a_token_of_the_operator_is_not_printed(directory, tmp_path):
    (tmp_path / "token").write_text("secret-of-the-operator\n")
    served = Served(directory, f"--token-file={tmp_path / 'token'}")
    headers = {"Authorization": "Bearer secret-of-the-operator"}
    address = f"{served.address}/v1/items?key=class0/0.png"
    assert requests.delete(address, headers=headers, timeout=20).status_code == 200
    served.process.send_signal(signal.SIGTERM)
    output, errors = served.process.communicate(timeout=60)
    assert "secret" not in "".join([*served.said, output, errors])


def test_work_in_a_process_ends_with_an_error_of_one_line(directory):
    with pytest.raises(WorkError, match="there is no upgrade in progress") as refused:
        work.in_process(str(directory), "backfill", {"batch": 1}, threading.Event())
    assert refused.value.status == 409


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port=99999"], "port=99999: must be from 0 to 65535"),
        (["--batch=0"], "batch=0: must be from 1 to 1024"),
        (["--host=nowhere.invalid"], "cannot listen there"),
        (["--images={missing}"], "missing: must be a directory"),
        (["--token-file={missing}"], "cannot be read"),
    ],
)
def test_bad_options_are_one_line(directory, tmp_path, capsys, options, says):
    options = [option.format(missing=tmp_path / "missing") for option in options]
    assert serve.main([str(directory), *options]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_port_in_use_and_no_gallery_are_one_line(directory, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main([str(directory), f"--port={port}"]) == 2
    assert "cannot listen there" in capsys.readouterr().err
    assert serve.main([str(tmp_path)]) == 2
    assert "there is no gallery at this place" in capsys.readouterr().err
