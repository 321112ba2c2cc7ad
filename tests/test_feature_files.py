"""Tables of features: what is written is read, in every format, and what cannot be is one line."""

import dataclasses

import numpy as np
import pytest

from iamcl2r_jax.evaluation import feature_files
from iamcl2r_jax.evaluation.feature_tables import make_table, match
from iamcl2r_jax.system.errors import InputError

N, D = 11, 3
SUFFIXES = [".npz", ".npy", ".safetensors", ".parquet"]


def columns(**changed):
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(N, D)).astype(np.float32),
        "ids": np.array([f"bild-{n:02} ä" for n in rng.permutation(N)]),
        "labels": rng.integers(0, 3, N),
        "split": np.where(np.arange(N) % 3 == 0, "query", "gallery"),
    } | changed


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return str(tmp_path / f"table{request.param}")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("ids", ["text", "integers"])
def test_what_is_written_is_read(path, dtype, ids):
    written = columns()
    written["features"] = written["features"].astype(dtype)
    if ids == "integers":
        written["ids"] = np.arange(N) * 10**12
        written["labels"] = np.array(["a", "ü", ""])[written["labels"]]
    feature_files.write_table(path, **written)
    table = feature_files.open_table(path)
    assert (len(table), table.width, table.name) == (N, D, path)
    np.testing.assert_array_equal(table.ids, written["ids"])
    np.testing.assert_array_equal(table.labels, written["labels"])
    np.testing.assert_array_equal(table.is_query, written["split"] == "query")
    rows = np.array([7, 0, 10, 3, 3])
    np.testing.assert_array_equal(table.read(rows), np.float32(written["features"])[rows])


@pytest.mark.parametrize("size", [1, 4, 100])
def test_blocks_are_the_rows_asked_for_in_order(path, size):
    written = columns()
    feature_files.write_table(path, **written)
    table = feature_files.open_table(path)
    rows = table.rows("gallery")
    blocks = list(table.blocks(rows, size))
    assert max(map(len, blocks)) <= size
    np.testing.assert_array_equal(np.concatenate(blocks), written["features"][rows])


def test_parquet_of_many_row_groups_and_plain_lists(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = columns()
    path = str(tmp_path / "lists.parquet")
    table = pa.table({k: v.tolist() for k, v in written.items()})
    pq.write_table(table, path, row_group_size=4)
    rows = np.array([1, 5, 9])
    found = feature_files.open_table(path).read(rows)
    np.testing.assert_array_equal(found, written["features"][rows])
    ragged = table.set_column(0, "features", [[[1.0] * (1 + n % 2) for n in range(N)]])
    pq.write_table(ragged, path)
    with pytest.raises(InputError, match=r"lists.parquet: cannot be read .* one length"):
        feature_files.open_table(path).read(rows)


def test_compressed_and_column_major_arrays_are_read(tmp_path):
    written = columns()
    compressed, columnar = str(tmp_path / "c.npz"), str(tmp_path / "f.npz")
    np.savez_compressed(compressed, **written)
    np.savez(columnar, **written | {"features": np.asfortranarray(written["features"])})
    for path in (compressed, columnar):
        found = feature_files.open_table(path).read(np.arange(N))
        np.testing.assert_array_equal(found, written["features"])


def test_rows_match_by_id():
    old, order = columns(), np.random.default_rng(1).permutation(N)
    new = {name: values[order] for name, values in old.items()}
    in_old, in_new = match(make_table("old", **old), make_table("new", **new))
    np.testing.assert_array_equal(in_old, np.arange(N))
    np.testing.assert_array_equal(old["ids"], new["ids"][in_new])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": [f"bild-{n:02} ä" for n in range(1, N + 1)]}, r"^new: 1 ids of old are missing"),
        ({"ids": np.arange(N)}, r"^ids: text in old but integers in new"),
        ({"labels": np.full(N, 9)}, r"^labels: id bild-\d\d ä has another one in new than in old"),
        ({"split": ["gallery"] * N}, r"^split: id bild-\d\d ä has another one in new than in old"),
    ],
)
def test_tables_that_do_not_match_are_one_line(changed, message):
    with pytest.raises(InputError, match=message):
        match(make_table("old", **columns()), make_table("new", **columns(**changed)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": np.zeros(N)}, r"^t: features must be \[N, D\] and not empty, got \[11\]"),
        ({"features": np.zeros((0, D))}, r"^t: features must be \[N, D\] and not empty"),
        ({"features": np.zeros((N, D), int)}, r"^t: features must be floating-point numbers"),
        ({"ids": np.arange(N - 1)}, r"^t: ids must be \[11\], one for each row .*, got \[10\]"),
        ({"ids": np.arange(N) // 2}, r"^t: 5 ids are doubled, the first is 0"),
        ({"ids": np.linspace(0, 1, N)}, r"^t: ids must be integers or text, got float64"),
        ({"labels": [None] * N}, r"^t: labels must be integers or text, got object"),
        ({"split": ["gallery"] * 10 + ["test"]}, r"^t: split of id .* is test; it must be gallery"),
        ({"split": np.zeros(N, int)}, r"^t: split of id .* is 0; it must be gallery or query"),
    ],
)
def test_columns_that_cannot_be_are_one_line(changed, message):
    with pytest.raises(InputError, match=message):
        make_table("t", **columns(**changed))


def test_features_that_are_not_finite_are_named_by_their_id():
    written = columns()
    written["features"][4, 1] = np.inf
    table = make_table("t", **written)
    assert np.isfinite(table.read(np.array([0, 1, 2, 3, 5]))).all()
    with pytest.raises(InputError, match=f"^t: the features of id {written['ids'][4]} are not fin"):
        table.read(np.arange(N))


def test_files_that_cannot_be_read_are_one_line(path, tmp_path):
    with pytest.raises(InputError, match=r"table\.\w+: no such file"):
        feature_files.open_table(path)
    feature_files.write_table(path, **columns())
    content = (tmp_path / path).read_bytes()
    for broken in (b"", b"no table at all", content[: len(content) // 2]):
        (tmp_path / path).write_bytes(broken)
        with pytest.raises(InputError) as raised:
            feature_files.open_table(path).read(np.arange(N))
        assert "\n" not in str(raised.value)
        assert path in str(raised.value)
    with pytest.raises(InputError, match=r"table.csv: must be a file of features, \.npz, "):
        feature_files.open_table(str(tmp_path / "table.csv"))


def test_missing_columns_are_named(tmp_path):
    np.savez(tmp_path / "t.npz", features=np.zeros((N, D)), ids=np.arange(N))
    with pytest.raises(InputError, match=r"t\.npz: labels, split missing; a table holds features"):
        feature_files.open_table(str(tmp_path / "t.npz"))


def test_a_failed_write_leaves_what_was_there(path, tmp_path, monkeypatch):
    feature_files.write_table(path, **columns())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files.files, "sync", full)
    with pytest.raises(feature_files.files.WriteError, match=r"cannot be written"):
        feature_files.write_table(path, **columns(labels=np.zeros(N, int)))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_no_more_than_a_block_of_a_file_is_read_at_once(path):
    feature_files.write_table(path, **columns())
    table, asked = feature_files.open_table(path), []

    def reader(low, high):
        asked.append(high - low)
        return table.reader(low, high)

    blocks = dataclasses.replace(table, reader=reader).blocks(np.arange(N), 4)
    assert sum(map(len, blocks)) == N
    assert asked == [4, 4, 3]
