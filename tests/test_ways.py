"""Judging an upgrade from features: maps, what they are fitted on, advice, and large galleries."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from iamcl2r_jax import retrieval
from iamcl2r_jax.evaluation import advice, feature_files, from_features, maps, searched, ways
from iamcl2r_jax.evaluation.feature_tables import make_table
from iamcl2r_jax.evaluation.searched import Gallery
from iamcl2r_jax.evaluation.ways import Models, Upgrade, Way
from iamcl2r_jax.programs import evaluate_verbs
from iamcl2r_jax.system.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
D, CLASSES = 6, 4
METRICS = ["identification", "recall_at_1", "mean_average_precision"]


def rotation(seed=5, width=D):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0][:, :width]


def images(count, seed):
    """Latent features of classes around their means, ids, labels and split: half are queries."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    latent = np.eye(CLASSES, D)[labels] + 0.15 * rng.normal(size=(count, D))
    split = np.where(np.arange(count) // CLASSES % 2, "query", "gallery")
    return latent, [f"{seed}-{n}" for n in range(count)], labels, split


def table(name, count=240, seed=0, noise=0.0, turn=None, order=None):
    """By a model that sees the images with some noise of its own, and turns them."""
    latent, ids, labels, split = images(count, seed)
    seen = latent + noise * np.random.default_rng(9).normal(size=latent.shape)
    features = (seen if turn is None else seen @ turn).astype(np.float32)
    rows = np.arange(count) if order is None else order
    return make_table(
        name, features[rows], np.array(ids)[rows], labels[rows], np.asarray(split)[rows]
    )


@pytest.fixture
def old():
    return table("old", noise=0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_figures_are_those_of_the_metrics_whatever_the_order_of_the_rows(old, metric):
    order = np.random.default_rng(1).permutation(len(old))
    new = table("new", turn=rotation(), order=order)
    found = from_features.compare([old, new], metric=metric)
    latent, _, labels, split = images(len(old), 0)
    queries, stored = split == "query", split == "gallery"

    def value(query, gallery):
        return retrieval.METRICS[metric].values(
            gallery[stored], labels[stored], query[queries], labels[queries]
        )

    of_old = old.read(np.arange(len(old)))
    of_new = (latent @ rotation()).astype(np.float32)
    expected = [[value(of_old, of_old), None], [value(of_new, of_old), value(of_new, of_new)]]
    assert found["matrix"][0] == [pytest.approx(expected[0][0].mean(), abs=1e-6), None]
    np.testing.assert_allclose(found["matrix"][1], [v.mean() for v in expected[1]], atol=1e-6)
    as_is, embedded = found["upgrades"][0]["ways"]
    gain = expected[1][0].mean() - expected[0][0].mean()
    assert (as_is["kind"], embedded["kind"]) == (ways.AS_IS, ways.RE_EMBED)
    assert as_is["gain"] == pytest.approx(gain, abs=1e-6)
    assert as_is["gain_interval"][0] < gain < as_is["gain_interval"][1]
    assert embedded["reindexing_gain"] == 0
    assert gain < 0
    assert found["compatible"] is False
    assert found["gallery"] == {"rows": 120, "classes": CLASSES}
    assert found["pairs"] == 0


def test_a_map_makes_a_turned_model_compatible_in_both_directions(old):
    new = table("new", turn=rotation())
    found = from_features.compare([old, new], ["procrustes", "slerp_both"], metric="recall_at_1")
    (upgrade,) = found["upgrades"]
    by_way = {(way["map"], way["direction"]): way for way in upgrade["ways"]}
    assert [(way["map"] or way["kind"], way["direction"]) for way in upgrade["ways"]] == [
        ("as is", None),
        ("procrustes", "queries"),
        ("procrustes", "gallery"),
        ("slerp_both", "queries"),
        ("re-embed", None),
    ]
    for direction in ("queries", "gallery"):
        way = by_way["procrustes", direction]
        assert way["compatible"]
        assert way["gain_interval"][0] > 0
        assert way["pairs"] == 60
        assert way["map_bytes"] == 4 * D * D
    assert by_way["procrustes", "gallery"]["gallery_bytes"] == 60 * D * 4
    assert by_way["procrustes", "queries"]["gallery_bytes"] == 0
    assert upgrade["advice"]["verdict"] == "map"
    assert found["compatible"]
    assert (found["pairs"], found["gallery"]["rows"]) == (60, 60)


def test_maps_join_models_of_different_widths(old):
    new = table("new", turn=rotation(width=D - 1))
    with pytest.raises(InputError, match=r"^new: features of width 5, but 6 in old; widths may"):
        from_features.compare([old, new])
    found = from_features.compare([old, new], ["rotation", "ridge"])
    (upgrade,) = found["upgrades"]
    assert [way["map"] or way["kind"] for way in upgrade["ways"]] == ["ridge", "ridge", "re-embed"]
    assert found["matrix"][1][0] is None
    assert "ac" not in found


def test_pairs_are_never_evaluated(old, monkeypatch):
    new = table("new", turn=rotation())
    fits, searches = [], []
    fit, blocks = maps.fit, Gallery.blocks
    monkeypatch.setattr(
        maps, "fit", lambda name, x, y, **k: fits.append((x, y)) or fit(name, x, y, **k)
    )
    monkeypatch.setattr(Gallery, "blocks", lambda self: searches.append(self) or blocks(self))
    monkeypatch.setattr(ways, "NUM_PAIRS", (10, 40))
    models = Models([old, new], "recall_at_1", holds_out=True)
    upgrade = models.upgrade(0, 1, ["procrustes"])
    assert [way.pairs for way in upgrade.ways[1:-1]] == [10, 10, 40, 40]
    used = {tuple(row) for x, y in fits for row in (*x, *y)}
    seen = [g.table.read(g.rows) for g in searches] + [t.read(t.rows("query")) for t in (old, new)]
    assert not used & {tuple(row) for part in seen for row in part}
    np.testing.assert_array_equal(fits[0][0], fits[2][0][:10])  # fewer pairs are the first of more
    # Rows are the same image: the new model's are the old one's latent features turned.
    latent = images(len(old), 0)[0]
    for x, y in fits[:1]:
        rows = [np.flatnonzero((np.float32(latent @ rotation()) == row).all(1))[0] for row in x]
        np.testing.assert_array_equal(old.read(np.array(rows)), y)


def test_pairs_of_their_own_leave_the_gallery_whole(old):
    new, turn = table("new", turn=rotation()), rotation()
    pairs = [table("p-old", seed=1, noise=0.5), table("p-new", seed=1, turn=turn)]
    narrow = table("narrow", turn=rotation(width=3))
    found = from_features.compare([old, new], ["procrustes"], pairs)
    assert (found["pairs"], found["gallery"]["rows"]) == (240, 120)
    assert {way["pairs"] for way in found["upgrades"][0]["ways"]} == {None, 100, 240}
    with pytest.raises(InputError, match=r"^pairs: 240 ids are also in old, .*not be fitted on wh"):
        from_features.compare([old, new], ["procrustes"], [old, new])
    with pytest.raises(InputError, match=r"^pairs: nothing to fit on them; name maps too, or all"):
        from_features.compare([old, new], [], pairs)
    with pytest.raises(InputError, match=r"^p-new: features of width 6, but 3 in narrow"):
        from_features.compare([old, narrow], ["ridge"], pairs)


def test_three_models_have_three_upgrades(old):
    found = from_features.compare([old, table("b"), table("c", turn=rotation())])
    assert [(u["old"], u["new"]) for u in found["upgrades"]] == [(0, 1), (0, 2), (1, 2)]
    assert found["ac"] == pytest.approx(1 / 3)
    verdicts = [u["advice"]["verdict"] for u in found["upgrades"]]
    assert verdicts == ["deploy", "re-embed", "train"]
    assert not found["compatible"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda t: t.is_query, r"^old: 0 rows of the gallery and 120 queries; there must be two"),
        (lambda t: ~t.is_query, r"^old: 120 rows of the gallery and 0 queries"),
        (lambda t: t.is_query == (t.labels > 1), r"^old: no query has a label that is in the gal"),
    ],
)
def test_tables_with_nothing_to_search_are_one_line(old, keep, message):
    rows = np.flatnonzero(keep(old))
    split = np.where(old.is_query, "query", "gallery")[rows]
    some = make_table("old", old.read(rows), old.ids[rows], old.labels[rows], split)
    with pytest.raises(InputError, match=message):
        from_features.compare([some, some])


def test_counts_of_pairs():
    assert ways.counts(60) == [60]
    assert ways.counts(2500) == [100, 1000, 2500]
    assert ways.counts(10**6) == [100, 1000, 10000]


def test_order_by_hash_is_of_the_ids_alone():
    ids = np.array([f"id {n}" for n in range(50)])
    shuffled = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(
        ids[ways.hash_order(ids)], ids[shuffled][ways.hash_order(ids[shuffled])]
    )
    assert (ways.hash_order(ids) != np.arange(50)).any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("carried", [False, True])
def test_a_gallery_larger_than_memory_gives_the_same_values(old, metric, carried, monkeypatch):
    """Blocks and chunks that end anywhere, padding, a class without an entry, and ties."""
    _, _, labels, split = images(len(old), 0)
    features = np.round(old.read(np.arange(len(old))), 1)  # many ties
    labels = labels + 5 * (np.arange(len(old)) % 60 == 4)  # some queries' class is not there
    stored = make_table("t", features, np.arange(len(old)), labels, split)
    carry = (lambda x: x @ np.float32(rotation(3)[:, :4])) if carried else None
    rows, queries = stored.rows("gallery"), stored.rows("query")
    query = features[queries] if carry is None else carry(features[queries])
    gallery = features[rows] if carry is None else carry(features[rows])
    expected = retrieval.METRICS[metric].values(gallery, labels[rows], query, labels[queries])
    monkeypatch.setattr(searched, "WHOLE", 0)
    monkeypatch.setattr(searched, "ROWS_AT_ONCE", 50)
    monkeypatch.setattr(searched, "_SCORES_AT_ONCE", 50 * 7)
    found = Gallery(stored, rows, carry, query.shape[1]).values(metric, query, labels[queries])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < expected.mean() < 1


def upgrade(before, as_is, mapped, after, count=400):
    """With accuracies that are exact over the queries, hits spread evenly."""

    def hits(accuracy):
        return (np.arange(count) * accuracy % 1 + accuracy >= 1).astype(float)

    options = []
    if as_is is not None:
        options.append(Way(ways.AS_IS, hits(as_is)))
    for n, accuracy in enumerate(mapped):
        for pairs in (10, 100):
            options.append(Way(ways.MAP, hits(accuracy), "ridge", maps.QUERIES, pairs * (n + 1)))
    return Upgrade(0, 1, hits(before), [*options, Way(ways.RE_EMBED, hits(after))])


def ask(*accuracies, count=400):
    ids = np.arange(count)
    return advice.advise(upgrade(*accuracies, count=count), ids, ["OLD", "NEW"])


def test_advice():
    found = ask(0.5, 0.75, [], 0.75)
    assert (found["verdict"], found["settled"], found["compatible"]) == ("deploy", True, True)
    assert found["queries"] == 400
    assert found["text"][0].startswith("Deploy as is: +25.0 points [+")
    assert "not above zero for sure" in found["text"][-1]

    found = ask(0.5, 0.25, [0.75], 1.0)
    assert (found["verdict"], found["map"], found["direction"]) == ("map", "ridge", "queries")
    assert found["queries"] == 200
    assert found["compatible"]
    assert found["text"][-1].startswith("Re-embedding the gallery would add +")

    found = ask(0.5, None, [0.25], 0.75)
    assert (found["verdict"], found["start"]) == ("re-embed", "NEW")
    assert not found["compatible"]
    assert "train a compatible model from NEW" in found["text"][-1]

    found = ask(0.75, 0.25, [0.5], 0.5)
    assert (found["verdict"], found["start"], found["compatible"]) == ("train", "OLD", False)

    # A tie is not compatible, and a model is no better than itself.
    found = ask(0.5, 0.5, [], 0.5)
    assert (found["verdict"], found["start"]) == ("train", "NEW")


def test_advice_says_when_the_queries_do_not_settle_it():
    found = ask(0.5, 0.55, [], 0.6, count=40)
    assert (found["verdict"], found["settled"], found["compatible"]) == ("deploy", False, True)
    assert any("do not settle" in sentence for sentence in found["text"])


def test_a_map_is_judged_by_queries_that_did_not_choose_it():
    """Of many maps that are right by chance, the best looks good to the half that chose it."""
    rng = np.random.default_rng(0)
    count, ids = 60, np.arange(60)
    options = [
        Way(ways.MAP, rng.integers(0, 2, count).astype(float), "ridge", maps.QUERIES, 9)
        for _ in range(200)
    ]
    before = np.full(count, 0.5)
    chosen = Upgrade(0, 1, before, [*options, Way(ways.RE_EMBED, before)])
    found = advice.advise(chosen, ids, ["OLD", "NEW"])
    best = max(way.values.mean() for way in options)
    assert best > 0.65
    assert not (found["verdict"] == "map" and found["settled"])


@pytest.fixture
def place(tmp_path):
    """OLD and NEW as files, in two formats; NEW is turned and in another order."""
    order = np.random.default_rng(2).permutation(240)
    for name, suffix, options in (
        ("old", "npz", {"noise": 0.5}),
        ("new", "parquet", {"turn": rotation(), "order": order}),
    ):
        made = table(name, **options)
        split = np.where(made.is_query, "query", "gallery")
        features = made.read(np.arange(len(made)))
        path = str(tmp_path / f"{name}.{suffix}")
        feature_files.write_table(path, features, made.ids, made.labels, split)
    return tmp_path


def test_what_is_printed_saved_and_the_status(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    features = ["old.npz", "new.parquet"]
    assert evaluate_verbs.features(features) == 3
    saved = json.loads((place / "evaluation.json").read_text())
    assert not saved["compatible"]
    printed = capsys.readouterr().out
    assert "Re-embed the gallery: +" in printed
    assert "| as is" in printed
    for arguments, message in (
        ((features, ["pca"]), r"^maps=pca: unknown map; choose all or some of procrustes"),
        ((["old.npz"],), r"^features=old.npz: name two or more, oldest first"),
        ((["old.npz", "no.npz"],), r"^no.npz: no such file"),
        ((features, ["ridge"], ["old.npz"]), r"^pairs=old.npz: name as many files as features="),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_verbs.features(*arguments, output="other.json")
    assert not (place / "other.json").exists()


def test_program(place):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "launch" / "evaluate.py", *arguments],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )

    files = "--features=old.npz,new.parquet"
    ended = run(files, "--maps=procrustes,ridge", "--metric=recall_at_1", "--output=out/e.json")
    assert ended.returncode == 0, ended.stderr
    saved = json.loads((place / "out" / "e.json").read_text())
    assert saved["metric"] == "recall_at_1"
    assert saved["upgrades"][0]["advice"]["verdict"] == "map"
    assert saved["upgrades"][0]["advice"]["text"][0] in ended.stdout
    ended = run(files, "--workdir=run")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: give one of --workdir=DIR, a run, --models=OLD,NEW")
