"""A live gallery shown in one go: two models that come with the package, and images in the package.

It indexes a gallery with the first model, serves it, gates, tries and promotes the second, searches
the old vectors with it, embeds them again while queries run, rolls back, and says what happened.
Everything is below --workdir, which replaces one that is there.
"""

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from iamcl2r_jax.programs import start

TOKEN = "token-of-the-demonstration"
_CLASSES = 10
_SPLITS = {"gallery": ("test", 30), "query": ("train", 20)}  # split of the data set, images each
_RATE = 60.0  # items a second; as fast as the model is, the backfill would end before a query
_OLD, _NEW = "first", "second"
_WAIT = 600.0  # seconds for the service to start; a busy machine compiles for minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", help="OLD,NEW: checkpoints; by default those that come with the package")
    add("--dataset", default="glyphs/digits", help="whose images are used (default: %(default)s)")
    add(
        "--workdir",
        default="runs/demo",
        type=start.path,
        help="directory to make, in place of one that is there (default: %(default)s)",
    )
    add("--data-dir", type=start.path, help="where TFDS keeps data sets")
    add("--stay", action="store_true", help="go on serving at the end, until Ctrl-C")
    options = start.parse(parser, arguments)
    from iamcl2r_jax.programs import exits

    return exits.status_of(lambda: _demo(options))


def external_models() -> list[str]:
    """The external models that come with the package, of few classes first."""
    from iamcl2r_jax.data import sources
    from iamcl2r_jax.models import checkpoints

    directory = os.path.join(os.path.dirname(sources.__file__), "external")
    found = []
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        classes = re.fullmatch(r"\w+-(\d+)", name)
        if classes and checkpoints.exists(path):
            found.append((int(classes[1]), path))
    return [path for _, path in sorted(found)]


def _demo(options: argparse.Namespace) -> None:
    from iamcl2r_jax.system.errors import InputError

    start.prepare_jax()
    models = options.models.split(",") if options.models else external_models()
    if len(models) < 2:
        raise InputError(
            f"models={','.join(models)}: two checkpoints are needed; name them as OLD,NEW"
        )
    began = time.monotonic()
    _clear(options.workdir)
    folder = os.path.abspath(os.path.join(options.workdir, "images"))
    gallery = os.path.abspath(os.path.join(options.workdir, "gallery"))
    _step(f"images: {write_images(folder, options)}")
    _step(f"index:  {index_images(gallery, folder, models[0])}")
    with Service(gallery, folder) as service:
        _step(f"serve:  {service.address}, in a process of its own")
        show_upgrade(service, folder, models[1])
        _step(f"done in {time.monotonic() - began:.0f} s; all of it is in {options.workdir}")
        if options.stay:
            print(f"look at it: {service.address} and {service.address}/upgrade#token={TOKEN}")
            try:
                service.process.wait()
            except KeyboardInterrupt:
                print()


def _clear(workdir: str) -> None:
    """Removes what an earlier demonstration left, and nothing else."""
    from iamcl2r_jax.system.errors import InputError

    left = set(os.listdir(workdir)) if os.path.isdir(workdir) else set()
    if left - {"images", "gallery", "service.log"}:
        raise InputError(f"workdir={workdir}: holds other files; name an empty directory")
    shutil.rmtree(workdir, ignore_errors=True)
    os.makedirs(workdir)


def write_images(folder: str, options: argparse.Namespace) -> str:
    """Writes labelled images as files, as a user has them: FOLDER/SPLIT/CLASS/NUMBER.png."""
    import numpy as np
    from PIL import Image

    from iamcl2r_jax.data import sources

    count = 0
    for name, (split, each) in _SPLITS.items():
        images = sources.load(
            options.dataset, split, image_size=32, data_dir=options.data_dir, num_classes=_CLASSES
        )
        for label in range(_CLASSES):
            directory = os.path.join(folder, name, images.class_names[label])
            os.makedirs(directory)
            for n, position in enumerate(np.flatnonzero(images.labels == label)[:each]):
                Image.fromarray(images.images[position]).save(f"{directory}/{n:03}.png")
                count += 1
    return f"{count} files of {options.dataset}, {_CLASSES} classes"


def index_images(directory: str, folder: str, checkpoint: str) -> str:
    from iamcl2r_jax.gallery import Gallery, indexing
    from iamcl2r_jax.gallery.embedder import Embedders, describe

    with Gallery.create(directory, describe(checkpoint), name=_OLD) as gallery:
        found = indexing.sources(os.path.join(folder, "gallery"))
        start = time.perf_counter()
        added = indexing.add_files(gallery, Embedders(), found)
        rate = len(added.items) / (time.perf_counter() - start)
    return f"{len(added.items)} items embedded by {_OLD}, {rate:.0f} a second with compiling"


class Service:
    """The service as a process, as a context; ends it at the end."""

    def __init__(self, gallery: str, folder: str):
        self._directories = gallery, folder

    def __enter__(self) -> "Service":
        gallery, folder = self._directories
        command = [sys.executable, "-m", "iamcl2r_jax.programs.serve", gallery]
        command += ["--port=0", f"--images={folder}"]
        self._log = open(os.path.join(os.path.dirname(gallery), "service.log"), "w+")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "IAMCL2R_TOKEN": TOKEN},
        )
        said = self.process.stdout.readline()
        if " on http" not in said:
            self.__exit__()
            raise RuntimeError(f"the service did not start; see {self._log.name}")
        self.address = said.split()[-1]
        end = time.monotonic() + _WAIT
        while self.request("GET", "/readyz").status_code != 200:
            if time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"the service is not ready; see {self._log.name}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()
        self._log.close()

    def request(self, method: str, path: str, **body: Any):
        import requests

        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.request(method, self.address + path, headers=headers, timeout=600, **body)

    def order(self, action: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """The status and the answer of an action on the upgrade."""
        answer = self.request("POST", f"/v1/upgrade/{action}", json=body)
        return answer.status_code, answer.json()

    def status(self) -> dict[str, Any]:
        return self.request("GET", "/v1/status").json()

    def search(self, path: str, k: int = 1) -> dict[str, Any]:
        with open(path, "rb") as file:
            answer = self.request("POST", "/v1/search", files={"image": file}, data={"k": k})
        return answer.json() | {"status": answer.status_code}


class Traffic:
    """Queries in threads, one after the other; counts what answered."""

    def __init__(self, service: Service, paths: Sequence[tuple[str, str]]):
        self._service, self._paths = service, paths
        self._ended, self._lock = threading.Event(), threading.Lock()
        self.models, self.stored = collections.Counter(), collections.Counter()
        self.failed = self.right = 0

    def __enter__(self) -> "Traffic":
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, turn: int) -> None:
        while not self._ended.is_set():
            path, label = self._paths[turn % len(self._paths)]
            turn += 7
            found = self._service.search(path)
            with self._lock:
                if found["status"] != 200:
                    self.failed += 1
                    continue
                hit = found["hits"][0]
                self.models[found["model"]] += 1
                self.stored[hit["stored_by"]] += 1
                self.right += hit["label"] == label

    def described(self) -> str:
        total = sum(self.models.values())
        by = ", ".join(f"{count} by {model}" for model, count in sorted(self.models.items()))
        stored = ", ".join(f"{n} of {model}'s" for model, n in sorted(self.stored.items()))
        right = self.right / max(total, 1)
        return f"{total} queries ({by}), {self.failed} failed; nearest: {stored}; {right:.0%} right"


def show_upgrade(service: Service, folder: str, checkpoint: str) -> None:
    query = os.path.join(folder, "query")
    paths = [
        (os.path.join(query, label, name), label)
        for label in sorted(os.listdir(query))
        for name in sorted(os.listdir(os.path.join(query, label)))
    ]
    found = service.search(paths[0][0])
    _step(f"search: a {paths[0][1]} finds a {found['hits'][0]['label']}, by {found['model']}")

    sets = {"model": checkpoint, "name": _NEW, "gallery": f"folder:{folder}"}
    code, verdict = service.order("gate", **sets)
    _step(f"gate:   {_judged(code, verdict)}")
    if code == 409 and "values" in verdict:
        code, verdict = service.order("gate", **sets, accept_incompatible=True)
        _step("        accepted all the same, so that there is something to see: on record")
    ordered(service, "canary", share=0.25)
    with Traffic(service, paths) as traffic:
        time.sleep(3)
    _step(f"canary: a quarter of the queries: {traffic.described()}")

    with Traffic(service, paths) as traffic:
        ordered(service, "promote")
        time.sleep(3)
    _step(f"promote, no vector touched: {traffic.described()}")

    start = time.monotonic()
    with Traffic(service, paths) as traffic:
        ordered(service, "backfill", rate=_RATE, batch=10)
        while (state := service.status())["upgrade"]["state"] == "backfilling" or (
            state["work"]["running"]
        ):
            time.sleep(0.2)
    took = time.monotonic() - start
    done = state["upgrade"]["backfill"]
    _step(f"backfill: {done['done']} of {done['total']} items in {took:.0f} s, meanwhile")
    _step(f"        {traffic.described()}")

    start = time.perf_counter()
    ordered(service, "rollback")
    took = time.perf_counter() - start
    found = service.search(paths[0][0])
    _step(f"rollback in {1000 * took:.0f} ms: {found['model']} answers from its own vectors again")


def _judged(code: int, verdict: dict[str, Any]) -> str:
    if "values" not in verdict:
        raise RuntimeError(f"the gate failed with status {code}: {verdict.get('error')}")
    values, (low, high) = verdict["values"], verdict["gain_interval"]
    answer = "compatible" if verdict["compatible"] else "refused, not compatible"
    return (
        f"{answer}: {verdict['metric']} of {_OLD}'s queries in its vectors "
        f"{values['old/old']:.3f}, of {_NEW}'s {values['new/old']:.3f} "
        f"({verdict['gain']:+.3f} [{low:+.3f}, {high:+.3f}]), re-embedded {values['new/new']:.3f}"
    )


def ordered(service: Service, action: str, **body: Any) -> None:
    code, answer = service.order(action, **body)
    if code not in (200, 202):
        raise RuntimeError(f"{action}: {answer.get('error')}")


def _step(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
