"""The service over loopback: many clients at once against one query at a time.

    python benchmarks/service.py [--clients=32] [--width=16] [--items=10000]

`launch/serve.py` runs as a process with a ResNet-18 of that width and a gallery of random vectors.
Each query uploads a PNG of 32 x 32 pixels, and is decoded, embedded and searched. Clients are
connections of this process that send their next query when the last is answered; both ways of
asking take turns. The clients take part of the same cores.

ratio: queries a second by one client / by all, goal at most 1/4.
"""

import asyncio
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import harness
import numpy as np
from PIL import Image

from iamcl2r_jax import config, methods
from iamcl2r_jax.gallery import Gallery, NewItem
from iamcl2r_jax.gallery.embedder import describe
from iamcl2r_jax.models import stored

_PICTURES = 64
_K = 10
_SPAN = 4.0  # seconds of a turn


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--width", type=int, default=16, help="of the ResNet-18")
    options.add_argument("--items", type=int, default=10_000, help="of the gallery")
    args = options.parse_args(argv)
    span = _SPAN
    if args.small:
        args.clients, args.width, args.items, args.repeats, span = 4, 4, 100, 1, 0.3
    with tempfile.TemporaryDirectory() as directory:
        new_gallery(directory, args.width, args.items)
        with Served(directory) as served:
            rates: dict[int, list[float]] = {1: [], args.clients: []}
            for turn in range(args.repeats + 1):
                for clients, measured in rates.items():
                    rate = asyncio.run(queries(served.port, clients, span))
                    if turn:  # the first warms up
                        measured.append(rate)
            batches = mean_batch(served.port)
    one, many = (statistics.median(measured) for measured in rates.values())
    rows = [
        ("one query at a time, queries a second", f"{one:.1f}"),
        (f"{args.clients} clients, queries a second", f"{many:.1f}"),
        ("queries in a batch, mean over both", f"{batches:.1f}"),
    ]
    figures = {
        "one": one,
        "many": many,
        "many / one": many / one,
        "rates": {str(clients): measured for clients, measured in rates.items()},
        "clients": args.clients,
        "width": args.width,
        "items": args.items,
    }
    return harness.finish("service", rows, figures, one / many, args)


def new_gallery(directory: str, width: int, items: int) -> None:
    """A gallery of random unit vectors, served by a ResNet-18 of random variables."""
    c, checkpoint = config.default(), os.path.join(directory, "model")
    metadata = stored.Metadata(
        kind=stored.EXTERNAL,
        architecture=stored.Architecture.of("resnet18", c.num_slots - 1, {"width": width}),
        head=methods.get(c.method).external_head,
        num_slots=c.num_slots,
        slots=(0, 100),
        image=stored.ImageInput.of(c.image),
        about={"accuracy": None},
    )
    rng = np.random.default_rng(0)
    # Small and positive suits kernels, scales and variances alike.
    variables = {
        collection: _drawn(rng, shapes)
        for collection, shapes in stored.expected_variables(metadata).items()
    }
    stored.save_model(checkpoint, stored.Model(metadata, variables))
    info = describe(checkpoint)
    with Gallery.create(os.path.join(directory, "gallery"), info, name="model") as gallery:
        for start in range(0, items, 1000):
            count = min(1000, items - start)
            vectors = rng.standard_normal((count, info.width), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            gallery.add([NewItem(f"item{start + n}") for n in range(count)], {"model": vectors})


def _drawn(rng: np.random.Generator, shapes):
    import jax

    return jax.tree.map(
        lambda leaf: (0.05 * rng.standard_normal(leaf.shape) + 0.02).astype(leaf.dtype) ** 2,
        shapes,
    )


class Served:
    """`launch/serve.py` as a process, as a context."""

    def __init__(self, directory: str):
        self._gallery = os.path.join(directory, "gallery")

    def __enter__(self) -> "Served":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "iamcl2r_jax.programs.serve", self._gallery, "--port=0"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "IAMCL2R_TOKEN": "token-of-the-benchmark"},
        )
        self.port = int(self._process.stdout.readline().rpartition(":")[2])
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=60).close()
                return self
            except OSError:  # 503 until the model is compiled
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError("the service does not become ready")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


def request_bytes(seed: int) -> bytes:
    """A search as it goes over the wire."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    body = b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n%d\r\n' % _K
    body += b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
    body += file.getvalue() + b"\r\n--b--\r\n"
    head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def queries(port: int, clients: int, span: float) -> float:
    """Queries a second by so many clients during so many seconds."""
    requests = [request_bytes(seed) for seed in range(_PICTURES)]
    end = time.perf_counter() + span

    async def client(turn: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < end:
            writer.write(requests[turn % len(requests)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise RuntimeError(f"the service answered {head!r}")
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            count, turn = count + 1, turn + clients
        writer.close()
        await writer.wait_closed()
        return count

    started = time.perf_counter()
    counts = await asyncio.gather(*(client(turn) for turn in range(clients)))
    return sum(counts) / (time.perf_counter() - started)


def mean_batch(port: int) -> float:
    """How many queries a batch had, by the service's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    total, count = (float(values[f"iamcl2r_batch_queries_{name}"]) for name in ("sum", "count"))
    return total / count


if __name__ == "__main__":
    main()
