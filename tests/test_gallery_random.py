"""Random lives of a gallery: whatever is done in whatever order, every item is found exactly once.

After each step a gallery that has followed every change in memory answers as one that was opened
just now, and as the bookkeeping here says: whose vector of which picture is found.
"""

import os
import random

import numpy as np
import pytest
from gallery_world import Product, embedders, info, new_gallery, write_image

from iamcl2r_jax.gallery import Gallery, Refused, backfill, indexing, transitions, upkeep
from iamcl2r_jax.gallery.images import read
from iamcl2r_jax.system.errors import InputError

PRODUCTS = {name: Product(name) for name in "abc"}


class Life:
    """A gallery, and what must be in it.

    Attributes:
      pictures: {key: {model name: seed of the picture whose vector is stored}}.
      on_disk: {key: seed of the picture}; None where the file is damaged.
    """

    def __init__(self, root, seed):
        self.root, self.random = root, random.Random(seed)
        self.gallery = new_gallery(root / "g")
        self.pictures, self.on_disk, self.seeds = {}, {}, 0

    def path(self, key):
        return str(self.root / f"class{int(key) % 3}" / f"{key}.png")

    def draw(self, key):
        self.seeds += 1
        write_image(self.path(key), self.seeds)
        self.on_disk[key] = self.seeds

    def step(self):
        """One random action; it may be refused, but then nothing has changed."""
        weights = {
            self.add: 6,
            self.remove: 2,
            self.change_file: 2,
            self.damage_file: 1,
            self.gate: 3,
            self.canary: 4,
            self.promote: 4,
            self.backfill: 6,
            self.pause: 1,
            self.resume: 3,
            self.rollback: 1,
            self.retire: 2,
        }
        (action,) = self.random.choices(list(weights), list(weights.values()))
        before = self.gallery.status()["upgrade"]
        try:
            action()
        except (Refused, InputError):
            assert self.gallery.status()["upgrade"] == before
        return action.__name__

    def add(self):
        keys = [f"{self.random.randrange(30):02}" for _ in range(self.random.randrange(1, 5))]
        keys = sorted(set(keys))
        for key in keys:
            self.draw(key)
        sources = [indexing.Source(key, self.path(key), f"class{int(key) % 3}") for key in keys]
        models = [model.name for model in self.gallery.writing_models()]
        assert indexing.add_files(self.gallery, embedders(), sources).unreadable == []
        for key in keys:
            self.pictures[key] = dict.fromkeys(models, self.on_disk[key])

    def remove(self):
        some = self.random.sample(sorted(self.pictures), min(2, len(self.pictures)))
        assert self.gallery.remove(some) == len(some)
        for key in some:
            del self.pictures[key]

    def change_file(self):
        if self.pictures:
            self.draw(self.random.choice(sorted(self.pictures)))

    def damage_file(self):
        if self.pictures:
            key = self.random.choice(sorted(self.pictures))
            with open(self.path(key), "wb") as file:
                file.write(b"none")
            self.on_disk[key] = None

    def gate(self):
        serving = self.gallery.status()["serving"]
        name = self.random.choice([name for name in "abc" if name != serving])
        self.gallery.register(info(name), name)
        compatible = self.random.random() < 0.7
        self.gallery.record_gate(name, compatible=compatible, details={})

    def canary(self):
        self.gallery.canary(self.random.random())

    def promote(self):
        self.gallery.promote()

    def backfill(self):
        batches = self.random.randrange(1, 4)

        def stopping(progress):
            nonlocal batches
            batches -= 1
            if batches == 0 and progress.state == "backfilling":
                self.gallery.pause()

        base, target = self.names()
        backfill.run(self.gallery, embedders(), batch=5, report=stopping)
        number = self.gallery.status()["upgrade"]["target"]
        with self.gallery.database.reading() as connection:
            rows = connection.execute(
                f"SELECT key FROM items JOIN vectors_{number} ON item = items.id"
            ).fetchall()
        for (key,) in rows:
            if target not in self.pictures[key]:  # both models have looked at the file now
                assert self.on_disk[key] is not None
                self.pictures[key] = {base: self.on_disk[key], target: self.on_disk[key]}

    def names(self):
        """The models of the base, and of the upgrade's target."""
        status = self.gallery.status()
        if status["upgrade"] is None:
            raise InputError("no upgrade")
        (base,) = [g["model"] for g in status["generations"] if g["base"]]
        return base, status["upgrade"]["new_model"]

    def pause(self):
        self.gallery.pause()

    def resume(self):
        self.gallery.resume()

    def rollback(self):
        self.gallery.rollback()

    def retire(self):
        self.gallery.retire()
        (kept,) = self.gallery.status()["generations"]
        for stored in self.pictures.values():
            for model in set(stored) - {kept["model"]}:
                del stored[model]

    def check(self):
        assert upkeep.verify(self.gallery) == []
        status = self.gallery.status()
        assert status["items"] == len(self.pictures)
        (base,) = [g["model"] for g in status["generations"] if g["base"]]
        assert all(base in stored for stored in self.pictures.values())
        upgrade = status["upgrade"]
        query = np.eye(1, 32, dtype=np.float32)
        with Gallery(self.gallery.directory) as fresh:
            for model in status["models"]:
                name = model["name"]
                found = self.answers(self.gallery, name, query)
                assert found == self.answers(fresh, name, query)
                if found == "refused":
                    assert name != status["serving"]
                    continue
                assert len({key for key, _, _ in found}) == len(found) == len(self.pictures)
                for key, origin, score in found:
                    assert origin in (base, name)
                    vector = self.vector(self.pictures[key][origin], origin)
                    assert score == pytest.approx(float(query[0] @ vector), abs=1e-5)
                mixed = upgrade and upgrade["state"] in transitions.MIXED
                if not (mixed and name == upgrade["new_model"]):
                    assert {origin for _, origin, _ in found} <= {base}

    def answers(self, gallery, model, query):
        try:
            (hits,) = gallery.search(query, model=model, k=50)
        except Refused:
            return "refused"
        return [(hit.item.key, hit.model, hit.score) for hit in hits]

    def vector(self, seed, model):
        path = str(self.root / "drawn.png")
        write_image(path, seed)
        return PRODUCTS[model](read(path).at(8)[np.newaxis])[0]


def live(root, seed, steps):
    life, done, seen = Life(root, seed), [], set()
    try:
        for _ in range(steps):
            done.append(life.step())
            seen.add((life.gallery.status()["upgrade"] or {"state": None})["state"])
            life.check()
    except BaseException:
        print(f"seed {seed}: {' '.join(done)}")
        raise
    finally:
        life.gallery.close()
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_a_random_life(tmp_path, seed):
    live(tmp_path, seed, 40)


@pytest.mark.slow
def test_many_random_lives_see_every_state(tmp_path):
    seen = set()
    for seed in range(4, 24):
        os.mkdir(tmp_path / str(seed))
        seen |= live(tmp_path / str(seed), seed, 60)
    assert seen == {None, *transitions.STATES} - {"registered"}
