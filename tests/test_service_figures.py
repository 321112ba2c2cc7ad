"""Retrieval figures over HTTP equal those of launch/evaluate.py, to the last digit."""

import os

import numpy as np
import pytest
import service_world
import small_runs
from starlette.testclient import TestClient

from iamcl2r_jax.evaluation import gate
from iamcl2r_jax.gallery import Gallery, backfill, indexing
from iamcl2r_jax.gallery.embedder import Embedders, describe


@pytest.fixture
def models(tmp_path, monkeypatch):
    small_runs.register(monkeypatch)
    small_runs.write_images(tmp_path / "images")
    c = small_runs.small_config(tmp_path / "images")
    places = [tmp_path / "0", tmp_path / "1"]
    return [
        small_runs.save_external(place, c, 5, seed=seed, backbone="wide")
        for seed, place in enumerate(places)
    ]


def rankings(client, folder, k):
    """(label, labels of all hits) of each query, in the order of the data set."""
    for name in sorted(os.listdir(folder)):
        for file in sorted((folder / name).iterdir()):
            answer = client.post(
                "/v1/search", files={"image": file.read_bytes()}, data={"k": str(k)}
            )
            assert answer.status_code == 200, answer.text
            yield name, [hit["label"] for hit in answer.json()["hits"]]


def figures(client, folder, k):
    recalls, precisions = [], []
    for label, found in rankings(client, folder, k):
        assert len(found) == k
        recalls.append(found[0] == label)
        places = 1 + np.flatnonzero(np.array(found) == label)
        precision = np.arange(1, len(places) + 1) / places
        precisions.append(np.mean(precision[::-1]))  # summed from the farthest, as evaluated
    return {"recall_at_1": np.mean(recalls), "mean_average_precision": np.mean(precisions)}


def test_figures_equal_those_of_the_evaluation(models, tmp_path):
    images = tmp_path / "images" / "open"
    splits = [gate.Split(f"folder:{images}", split) for split in ("train", "test")]
    expected = {
        metric: gate.compare(models, *splits, metric=metric)["matrix"]
        for metric in ("recall_at_1", "mean_average_precision")
    }
    embedders = Embedders()
    with Gallery.create(str(tmp_path / "gallery"), describe(models[0]), name="old") as made:
        added = indexing.add_files(made, embedders, indexing.sources(str(images / "train")))
        count = len(added.items)
        with TestClient(service_world.service(made, embedders)) as client:
            old = figures(client, images / "test", count)
            made.register(describe(models[1]), "new")
            made.record_gate("new", compatible=False, details={}, accept=True)
            made.canary(1)
            made.promote()
            new = figures(client, images / "test", count)
            backfill.run(made, embedders)
            renewed = figures(client, images / "test", count)
    for metric, matrix in expected.items():
        assert 0 < matrix[1][0] < 1
        assert [old[metric], new[metric], renewed[metric]] == [
            matrix[0][0],
            matrix[1][0],
            matrix[1][1],
        ]
