"""Kills processes that work on a gallery, and looks at what they left.

python tests/gallery_kills.py DIRECTORY FIRST_SEED COUNT: prints a JSON line for each kill, and ends
with status 1 at the first violation. Without JAX, so that a process is forked in milliseconds.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import numpy as np
from gallery_world import embedders, pass_gate, promoted, units, write_images

from iamcl2r_jax.gallery import Gallery, backfill, indexing, upkeep

ITEMS = 40
WORK = ("add", "backfill", "promote", "rollback", "retire")


def prepare(work, directory):
    """The gallery as it is before the work begins."""
    from gallery_world import new_gallery

    with new_gallery(directory) as gallery:
        if work == "add":
            pass_gate(gallery)
            gallery.canary(0.5)
            return
        indexing.add_files(gallery, embedders(), sources(directory))
        if work == "promote":
            pass_gate(gallery)
            gallery.canary(0.5)
            return
        promoted(gallery)
        if work == "retire":
            backfill.run(gallery, embedders())
        if work == "rollback":
            backfill.run(gallery, embedders(), batch=8, report=lambda progress: gallery.pause())
            gallery.resume()


def sources(directory):
    return indexing.sources(str(pathlib.Path(directory).parent / "images"))


def do(work, gallery, acknowledge=lambda line: None):
    """The work from wherever it stands, as a person would give the command again."""
    state = gallery.status()["upgrade"]["state"]
    if work == "add":
        for source in sources(gallery.directory):
            indexing.add_files(gallery, embedders(), [source])
            acknowledge(source.key)
    elif work == "backfill":
        if state != "complete":
            backfill.run(
                gallery,
                embedders(),
                batch=2,
                report=lambda progress: acknowledge(progress.done),
            )
    elif work == "promote":
        if state != "promoted":
            gallery.promote()
        acknowledge("promoted")
    elif work == "rollback":
        if state != "rolled_back":
            gallery.rollback()
        acknowledge("rolled_back")
    else:
        if state != "retired":
            gallery.retire()
        acknowledge("retired")


def answers(gallery):
    """What searches find, by each model that may search: keys with scores and origins."""
    found = {}
    for name in ("a", "b"):
        try:
            results = gallery.search(units(4, 3), model=name, k=ITEMS + 5)
        except Exception as error:
            found[name] = type(error).__name__
            continue
        found[name] = [
            [(hit.item.key, hit.item.label, hit.score, hit.model) for hit in hits]
            for hits in results
        ]
    return found


def killed(work, directory, delay):
    """Forks a process that does the work, and kills it after a delay; what it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with Gallery(directory) as gallery:
                os.write(writing, b'"begun"\n')
                do(work, gallery, lambda line: os.write(writing, f"{json.dumps(line)}\n".encode()))
                os.write(writing, b'"end"\n')
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        begun = lines.readline()
        assert begun == b'"begun"\n', begun
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        acknowledged = [json.loads(line) for line in lines if line.endswith(b"\n")]
    os.waitpid(child, 0)
    return acknowledged


def check(work, directory, acknowledged, watermark):
    """Raises AssertionError if something acknowledged was lost, doubled or half done."""
    with Gallery(directory) as gallery:
        assert upkeep.verify(gallery, files=True) == []
        assert upkeep.verify_store(gallery) == []
        status = gallery.status()
        upgrade = status["upgrade"]
        assert upgrade["watermark"] >= watermark
        done = [line for line in acknowledged if line != "end"]
        if work == "add":
            assert status["items"] in (len(set(done)), len(set(done)) + 1)
            assert all(gallery.item(key) is not None for key in done)
            assert [g["vectors"] for g in status["generations"]] == [status["items"]] * 2
        else:
            assert status["items"] == ITEMS
        if work == "backfill" and done:
            assert upgrade["backfill"]["done"] >= done[-1]
        if work in ("promote", "rollback", "retire") and done:
            assert upgrade["state"] == done[-1]
        found = answers(gallery)
        for hits in (hits for of in found.values() if isinstance(of, list) for hits in of):
            assert len({hit[0] for hit in hits}) == len(hits) == status["items"]
        return upgrade["watermark"]


def main(root, first, count):
    root = pathlib.Path(root)
    write_images(root / "images", ITEMS)
    templates, expected, seconds = {}, {}, {}
    for work in WORK:
        templates[work] = root / f"template-{work}"
        prepare(work, str(templates[work]))
        whole = root / "uninterrupted"
        shutil.copytree(templates[work], whole)
        with Gallery(str(whole)) as gallery:
            start = time.perf_counter()
            do(work, gallery)
            seconds[work] = time.perf_counter() - start
            expected[work] = answers(gallery)
        shutil.rmtree(whole)
    for seed in range(first, first + count):
        rng, work = random.Random(seed), WORK[seed % len(WORK)]
        directory = str(root / "killed")
        shutil.copytree(templates[work], directory)
        watermark, kills, cut, known = 0, 0, 0, []
        for _ in range(3):  # the same work may be killed again
            acknowledged = killed(work, directory, rng.uniform(0, seconds[work]))
            kills += 1
            cut += acknowledged[-1:] != ["end"]
            known += acknowledged
            watermark = check(work, directory, known, watermark)
            if acknowledged[-1:] == ["end"] or rng.random() < 0.5:
                break
        with Gallery(directory) as gallery:
            do(work, gallery)
            assert answers(gallery) == expected[work], f"seed {seed}, {work}: other answers"
        shutil.rmtree(directory)
        print(json.dumps({"seed": seed, "work": work, "kills": kills, "cut": cut}), flush=True)


if __name__ == "__main__":
    np.seterr(all="raise")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
