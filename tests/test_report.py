"""What is printed where nobody looks at a terminal: in logs, narrow, in odd encodings."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from iamcl2r_jax.evaluation import pairs
from iamcl2r_jax.reports import report
from iamcl2r_jax.system.progress import Reporter, plain_console
from iamcl2r_jax.training.schedule import Schedule

ODD = ("runs/[lr=0.1]", "a[/b]", "folder:bird:", "[red]x", "https://example.org/1")


def evaluation(num_models, queries_in_gallery=0):
    """What results.json holds of models that get better, and are compatible but with the third."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.4, 0.5, (num_models,) * 2) + 0.01 * np.arange(num_models)[:, np.newaxis]
    values[2:3, 2:3] = 0.99
    values[np.triu_indices(num_models, 1)] = np.nan
    gains = values - np.diag(values)
    gains[np.triu_indices(num_models)] = np.nan
    intervals = np.stack([gains - 0.02, gains + 0.02], axis=-1)
    figures = pairs.summarize(pairs.PairValues(values, intervals, intervals))
    more = {"metric": "identification", "metrics": {}, "queries_in_gallery": queries_in_gallery}
    return figures | more


def printed(write, *, encoding="utf-8", width=80):
    """What a log file of 80 columns gets."""
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")
    write(plain_console(file=file, width=width))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_every_entry_of_a_matrix_is_printed_whole():
    found, schedule = evaluation(12), Schedule((0, 5), (7,))
    text = printed(lambda console: report.print_evaluations({"open": found}, schedule, console))
    header, rule, *lines = rows(text)
    assert header == ["task", "1*", "2", "3", "4", "5", "6*", "7", "8+", "9", "10", "11", "12"]
    assert set("".join(rule)) == {":", "-"}
    for t, (label, *cells) in enumerate(lines):
        assert label == header[t + 1]
        for k, cell in enumerate(cells):
            own, value = found["matrix"][k][k], found["matrix"][t][k]
            mark = "✗ " if k < t and value <= own else ""
            assert cell == ("" if k > t else f"{mark}{100 * value:.1f}")
    assert "* model replaced at this task   + retrained at this task   ✗ not above" in text
    assert "\x1b" not in text


def test_31_models_are_printed_gallery_by_gallery_in_80_columns():
    found = evaluation(31)
    text = printed(
        lambda console: report.print_evaluations({"open": found}, Schedule((0, 10, 20)), console)
    )
    header, _, *lines = rows(text)
    assert header == ["task", "itself", "newest", "difference [95 %]", "compatible models"]
    assert len(lines) == 31
    for k, (label, itself, newest, difference, compatible) in enumerate(lines):
        own, last = found["matrix"][k][k], found["matrix"][30][k]
        assert label == f"{k + 1}{'*' if k in (0, 10, 20) else ''}"
        assert (itself, newest) == (f"{100 * own:.1f}", f"{100 * last:.1f}")
        if k < 30:
            low, high = (100 * end for end in found["gain_intervals"][30][k])
            assert difference == f"{100 * (last - own):+.1f} [{low:+.1f}, {high:+.1f}]"
            better = sum(found["matrix"][t][k] > own for t in range(k + 1, 31))
            assert compatible == f"{better} of {30 - k}"
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("|"))


def test_what_a_matrix_means_is_said_in_words():
    found = evaluation(3, queries_in_gallery=1234)
    text = printed(lambda console: report.print_evaluations({"x": found}, Schedule(), console))
    (own, *_), _, (new, *_) = found["matrix"]
    low, high = (100 * end for end in found["gain_intervals"][2][0])
    assert (
        f"Queries of model 3 find {100 * new:.1f} % in the gallery of model 1, which itself found "
        f"{100 * own:.1f} %: {100 * (new - own):+.1f} [{low:+.1f}, {high:+.1f}] points\n" in text
    )
    compatible = round(3 * found["ac"])
    assert f"{compatible} of 3 pairs of models are compatible; {3 - compatible} missed it" in text
    assert "1,234 queries are images of the gallery too" in text
    one = printed(
        lambda console: report.print_evaluations({"x": evaluation(1)}, Schedule(), console)
    )
    assert "One model alone: there is no pair to compare" in one


def test_an_encoding_without_the_signs_gets_others():
    found = evaluation(3)
    write = lambda console: report.print_evaluations({"x": found}, Schedule(), console)  # noqa: E731
    text = printed(write, encoding="ascii")
    expected = printed(write).replace("✗", "x")
    assert text == expected
    assert "| x " in text


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", ODD)
def test_a_users_text_is_neither_markup_nor_emoji(name, terminal, capsys, monkeypatch):
    """Of messages, of the titles of stages and of results, by whatever console."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)
    reporter = Reporter(console)
    reporter.message(f"workdir {name} is here")
    with reporter.stage(f"task of {name}", 2) as stage:
        stage.advance()
    report.print_evaluations({name: evaluation(2)}, Schedule(), console)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert f"workdir {name} is here\n" in shown
    assert f"{name}: AC " in shown
    assert (f"task of {name}" in shown) == terminal
    Reporter().message(name)
    assert capsys.readouterr().out == f"{name}\n"
