"""Measures of the compatibility matrix, against the published one and hand-worked cases."""

import json

import numpy as np
import pytest

from iamcl2r_jax import compatibility

NAN = float("nan")

# The matrix that the paper's authors print for d-Simplex-HOC, CIFAR100R/10, 7 tasks.
PUBLISHED = [
    [0.58892],
    [0.597, 0.6156],
    [0.6305, 0.65276, 0.69314],
    [0.63336, 0.65298, 0.70626, 0.72374],
    [0.65006, 0.67872, 0.70754, 0.72114, 0.73828],
    [0.6408, 0.67188, 0.71166, 0.72712, 0.74704, 0.76194],
    [0.6314, 0.6635, 0.72096, 0.73496, 0.75232, 0.76652, 0.77164],
]


def full(rows, filler=NAN):
    return [row + [filler] * (len(rows) - len(row)) for row in rows]


# Each case: rows of the lower triangle, then
# AC, AA, ACA, BC, FC worked by hand.
CASES = {
    "one model": ([[0.3]], 1, 30, NAN, NAN, NAN),
    "one model, true zero": ([[0.0]], 1, 0, NAN, NAN, NAN),
    "compatible": ([[0.5], [0.6, 0.7]], 1, 60, 0.6, 0.1, -0.1),
    "incompatible": ([[0.5], [0.4, 0.9]], 0, 60, 0, -0.1, -0.5),
    "tie": ([[0.5], [0.5, 0.5]], 0, 50, 0, 0, 0),
    "true zeros": ([[0.0], [0.0, 0.0], [0.6, 0.0, 0.6]], 1 / 3, 20, 0.2, 0.3, -0.3),
    "all zero": ([[0.0], [0.0, 0.0]], 0, 0, 0, 0, 0),
    "all one": ([[1.0], [1.0, 1.0]], 0, 100, 0, 0, 0),
    # (1,0) yes, (2,0) no, (2,1) yes; BC = ((.1 - .2) + (.8 - .4)) / 2; FC = ((.3 - .4) + .3) / 2.
    "mixed": ([[0.2], [0.3, 0.4], [0.1, 0.8, 0.5]], 2 / 3, 230 / 6, 1.1 / 3, 0.15, 0.1),
}
MEASURES = [
    compatibility.average_compatibility,
    compatibility.average_accuracy,
    compatibility.average_compatibility_accuracy,
    compatibility.backward_compatibility,
    compatibility.forward_compatibility,
]


@pytest.mark.parametrize("measure", range(len(MEASURES)), ids=lambda i: MEASURES[i].__name__)
@pytest.mark.parametrize("case", CASES)
def test_by_hand(case, measure):
    rows, *expected = CASES[case]
    result = MEASURES[measure](full(rows))
    assert isinstance(result, float)
    assert result == pytest.approx(expected[measure], abs=1e-12, nan_ok=True)


def test_published_matrix():
    assert compatibility.average_compatibility(full(PUBLISHED)) == pytest.approx(20 / 21)
    assert compatibility.average_accuracy(full(PUBLISHED)) == pytest.approx(68.899, abs=1e-3)


def test_is_compatible():
    expected = np.tri(7, k=-1, dtype=bool)
    expected[4, 3] = False  # .72114 < .72374
    result = compatibility.is_compatible(full(PUBLISHED))
    assert result.dtype == bool
    np.testing.assert_array_equal(result, expected)


def test_per_task_is_the_measure_of_leading_blocks():
    matrix = np.array(full(PUBLISHED))
    accuracy = compatibility.average_accuracy_per_task(matrix)
    compatible = compatibility.average_compatibility_per_task(matrix)
    assert accuracy.shape == compatible.shape == (7,)
    np.testing.assert_allclose(accuracy[:2], [58.892, 100 * (0.58892 + 0.597 + 0.6156) / 3])
    np.testing.assert_allclose(compatible, [1, 1, 1, 1, 9 / 10, 14 / 15, 20 / 21])
    assert accuracy[-1] == compatibility.average_accuracy(matrix)


@pytest.mark.parametrize("filler", [7.0, -1.0, float("inf"), None])
def test_nothing_above_the_diagonal_matters(filler):
    clean, garbage = full(PUBLISHED), full(PUBLISHED, filler)
    for measure in MEASURES:
        assert measure(garbage) == measure(clean)
    np.testing.assert_array_equal(
        compatibility.is_compatible(garbage), compatibility.is_compatible(clean)
    )
    np.testing.assert_array_equal(
        compatibility.average_accuracy_per_task(garbage),
        compatibility.average_accuracy_per_task(clean),
    )


def test_reads_what_json_holds():
    text = json.dumps(full(PUBLISHED, None))
    assert compatibility.average_compatibility(json.loads(text)) == pytest.approx(20 / 21)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, NAN]], r"expected shape \[T, T\] with T >= 1, got \[1, 2\]"),
        ([0.5], r"got \[1\]"),
        (np.zeros((0, 0)), r"got \[0, 0\]"),
        ([[0.5, NAN], [NAN, 0.5]], r"matrix\[1, 0\]: expected an accuracy in \[0, 1\], got nan"),
        ([[0.5, NAN], [0.4, 58.9]], r"matrix\[1, 1\]: .* got 58.9"),
        ([[-0.1]], r"matrix\[0, 0\]: .* got -0.1"),
        ([[float("inf")]], r"matrix\[0, 0\]: .* got inf"),
    ],
)
def test_refuses_in_one_line(matrix, message):
    everything = [
        *MEASURES,
        compatibility.is_compatible,
        compatibility.average_accuracy_per_task,
        compatibility.average_compatibility_per_task,
    ]
    for measure in everything:
        with pytest.raises(ValueError, match=message) as error:
            measure(matrix)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("replacements", "expected"),
    [
        ([0], NAN),  # one external model for all
        ([2], 45),  # (2, 0) and (2, 1)
        ([0, 1], 20),  # (1, 0) and (2, 0)
        ((0, 1, 2), 40),
        ([], NAN),
    ],
)
def test_accuracy_across_replacements_by_hand(replacements, expected):
    rows, *_ = CASES["mixed"]
    result = compatibility.accuracy_across_replacements(full(rows), replacements)
    assert isinstance(result, float)
    assert result == pytest.approx(expected, nan_ok=True)
    filled = compatibility.accuracy_across_replacements(full(rows, 7.0), replacements)
    assert filled == pytest.approx(expected, nan_ok=True)


def test_accuracy_across_replacements_is_the_mean_of_pairs_that_share_no_training():
    replacements = [0, 2, 4]
    pairs = [
        PUBLISHED[t][k]
        for t in range(7)
        for k in range(t)
        if any(k < task <= t for task in replacements)
    ]
    result = compatibility.accuracy_across_replacements(full(PUBLISHED), replacements)
    assert result == pytest.approx(100 * np.mean(pairs))
