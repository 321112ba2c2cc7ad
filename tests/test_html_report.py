"""The report of a small run whose figures are made up, read as text and opened in a browser."""

import base64
import dataclasses
import html.parser
import importlib
import io
import json
import os
import pathlib
import shutil

import browser
import numpy as np
import pytest
import smallest_run
from PIL import Image
from rich.console import Console

from iamcl2r_jax import config, simplex
from iamcl2r_jax.evaluation import pairs, searches
from iamcl2r_jax.models import stored
from iamcl2r_jax.reports import page as page_module
from iamcl2r_jax.reports import report, report_pictures, words
from iamcl2r_jax.system import files, progress, runtime
from iamcl2r_jax.training import inputs, runs, task
from iamcl2r_jax.training.schedule import Schedule

# A folder's name may hold what HTML and TeX read, and be in another encoding than UTF-8.
CLASSES = ("a", "b<i>&amp;", "$c_d$", os.fsdecode(b"caf\xe9"))
REPLACEMENTS, RETRAINED = (0, 2), (1,)


@pytest.fixture(scope="module", autouse=True)
def smallest_network():
    with pytest.MonkeyPatch.context() as patch:
        smallest_run.register(patch)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of four classes, two of each in both splits."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            directory = root / split / name
            directory.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(directory / f"{number}.png")
    return root


def small_config(folder, method="hoc"):
    c = config.default()
    c.name = "small"
    c.method = method
    c.num_slots = 16
    c.image.size = 8
    c.image.augmentation_options.crop_flip.padding = 1
    c.model.backbone, c.model.options.width = "smallest", 4
    c.stream.dataset = f"folder:{folder}"
    c.stream.initial_classes = 3
    c.stream.increment = 1
    c.replacements.tasks, c.replacements.retrain = REPLACEMENTS, RETRAINED
    c.replacements.classes, c.replacements.checkpoints = (2, 4), ()
    c.replacements.recipe.image = c.image
    c.evaluations = {name: config.evaluation(f"folder:{folder}") for name in ("near", "far/off")}
    return c


def matrix(seed, size):
    """A lower triangle with ties, losses and wins below the diagonal."""
    values = np.round(np.random.default_rng(seed).uniform(0.2, 0.9, (size, size)), 2)
    if size > 1:
        values[1, 0] = values[0, 0]
    return np.where(np.tri(size, dtype=bool), values, np.nan)


def made_up_pairs(seed, size):
    """That matrix, with an interval of a point around each gain."""
    values = matrix(seed, size)
    gains = values - np.diag(values)
    gains[np.triu_indices(size)] = np.nan
    intervals = np.stack([gains - 0.01, gains + 0.01], axis=-1)
    return pairs.PairValues(values, intervals, intervals)


def made_up_results(c, num_tasks, num_classes=4):
    figures = {}
    for number, name in enumerate(c.evaluations):
        main, *others = c.metrics
        figures[name] = {"metric": main, **pairs.summarize(made_up_pairs(number, num_tasks))}
        figures[name]["queries_in_gallery"] = 3
        shown = searches.draw(0, 8, 2 * num_classes).tolist()
        nearest = [shown[turn:] + shown[:turn] for turn in range(len(shown))]
        figures[name]["searches"] = {"queries": shown, "nearest": nearest}
        figures[name]["metrics"] = {
            other: pairs.summarize(made_up_pairs(10 + number, num_tasks)) for other in others
        }
    return {
        "name": c.name,
        "method": c.method,
        "seed": c.seed,
        "num_tasks": num_tasks,
        "classes_per_task": [3] + [1] * (num_tasks - 1),
        "replacements": [t for t in REPLACEMENTS if t < num_tasks],
        "retrained": [t for t in RETRAINED if t < num_tasks],
        "task_accuracy": [0.5 / (t + 1) for t in range(num_tasks)],
        "evaluations": figures,
        "references": {name: {"untrained": 12.345, "first_external": 45.6} for name in figures},
        "feature_passes": 2 * num_tasks,
        "train_traces": 1,
        "seconds": {"data": 1.23, "train": 45.67, "compile": 8.9, "total": 46.9},
        "command": "python launch/main.py --config=configs/small.py '--config.name=a b'",
        "environment": runtime.environment(),
    }


def record(c, number, results):
    terms = {"ce": 1.0 / (number + 1), "hoc": -2.0} if c.method == "hoc" else {"ce": 2.5}
    history = [
        {"loss": 2.5 - epoch, "accuracy": epoch / 2, "learning_rate": 0.1, "grad_norm": 1.0} | terms
        for epoch in range(2)
    ]
    return {
        "task": number,
        "replaced_by": "external/nowhere" if number in results["replacements"] else None,
        "external": {"classes": 4, "accuracy": None} if number in results["replacements"] else None,
        "retrained": number in results["retrained"],
        "memory": [],
        "task_accuracy": 0.5,
        "history": history,
        "seconds": 1.5,
    }


def make_run(c, workdir, num_tasks, num_classes=4):
    """What a run leaves behind: results, and its tasks' records with untrained models."""
    results = made_up_results(c, num_tasks, num_classes)
    files.write_json(str(workdir / "config.json"), c.to_dict())
    files.write_json(str(workdir / "results.json"), results)
    for number in range(num_tasks):
        c.seed = number
        model = task.first_model(c)
        path = runs.task_path(str(workdir), number)
        metadata = dataclasses.replace(
            model.metadata, kind=stored.TASK, slots=(12, 16), about=record(c, number, results)
        )
        stored.save_model(path, dataclasses.replace(model, metadata=metadata))
    c.seed = results["seed"]
    return results


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    """Config, workdir, results and the report of a run of two tasks."""
    c, workdir = small_config(folder), tmp_path_factory.mktemp("runs") / "small"
    results = make_run(c, workdir, 2)
    return c, workdir, results, pathlib.Path(page_module.write(c, str(workdir), results))


@pytest.fixture(scope="module")
def long(small, tmp_path_factory):
    """The report of 31 tasks, whose models are those of the small run."""
    c, small_workdir, *_ = small
    model = runs.load_task(c, str(small_workdir), 0)
    c = c.copy_and_resolve_references()
    del c.evaluations["far/off"]
    results = made_up_results(c, 31)
    with pytest.MonkeyPatch.context() as patch:
        records = [record(c, number, results) for number in range(31)]
        patch.setattr(runs, "task_records", lambda workdir: records)
        patch.setattr(runs, "load_task", lambda *_: model)
        return pathlib.Path(page_module.write(c, str(tmp_path_factory.mktemp("long")), results))


class Page(html.parser.HTMLParser):
    """The page as lists of what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.images, self.references, self.tables = [], [], [], []
        self.captions, self.charts, self._open = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.references += [attrs[key] for key in ("src", "href", "srcset", "data") if key in attrs]
        if tag == "section":
            self.sections.append(attrs["id"])
        elif tag == "img":
            self.images.append(attrs)
        elif tag == "svg" and attrs.get("role") == "img":
            self.charts.append((attrs["aria-label"], []))
        elif tag in ("polyline", "circle") and self.charts:
            self.charts[-1][1].append(tag)
        elif tag == "table":
            self.tables.append((attrs, []))
        elif tag == "tr":
            self.tables[-1][1].append((attrs, []))
        elif tag in ("td", "th"):
            self.tables[-1][1][-1][1].append((attrs, []))
            self._open = tag
        elif tag == "figcaption":
            self.captions.append("")
            self._open = tag

    def handle_endtag(self, tag):
        if tag == self._open:
            self._open = None

    def handle_data(self, data):
        if self._open in ("td", "th"):
            self.tables[-1][1][-1][1][-1][1].append(data)
        elif self._open == "figcaption":
            self.captions[-1] += data

    def table(self, cls, **wanted):
        """Rows of (attributes, [(attributes, text) of each cell]) of one table."""
        (rows,) = (
            rows
            for attrs, rows in self.tables
            if attrs["class"] == cls
            and all(attrs[f"data-{key}"] == value for key, value in wanted.items())
        )
        return [(a, [(cell, " ".join("".join(t).split())) for cell, t in r]) for a, r in rows]


@pytest.fixture(scope="module")
def page(small):
    return Page(small[3].read_text(encoding="utf-8"))


def test_all_sections_are_there(page):
    wanted = "result run matrices tasks retrieval features training time again"
    assert page.sections == wanted.split()


@pytest.mark.parametrize("which", ["small", "long"])
def test_page_refers_to_nothing_outside_itself(which, request):
    fixture = request.getfixturevalue(which)
    text = (fixture if which == "long" else fixture[3]).read_text(encoding="utf-8")
    assert all(r.startswith(("data:", "#")) for r in Page(text).references)
    for outside in ("http:", "https:", "//www", "@import", "url(", "<script"):
        assert outside not in text


def test_charts_are_described_and_have_every_value(small, page):
    descriptions = [description for description, _ in page.charts]
    assert [description.split(" ")[0] for description in descriptions] == [
        *("Average", "Average", "Features", "Loss", "Training")
    ]
    assert all(len(description) > 40 for description in descriptions)
    assert "at the end loss 1.500, ce 0.500, hoc -2.000." in descriptions[3]
    drawn = [(marks.count("polyline"), marks.count("circle")) for _, marks in page.charts]
    # The legend repeats each line: two evaluations of two tasks; three losses of two epochs a task.
    assert drawn[:2] == [(4, 4)] * 2
    assert drawn[3:] == [(6, 12), (1, 4)]


def test_searches_are_those_of_the_results(small, page):
    """Each image, its class and its mark, in order; labels of both sets are in the same order."""
    c, _, results, _ = small
    sources = iter([image["src"] for image in page.images])
    strips = [rows for attrs, rows in page.tables if attrs["class"] == "strip"]
    captions = [caption for caption in page.captions if "nearest images" in caption]
    loaded = inputs.load_evaluations(c)
    for (name, of), (_, *rows), caption in zip(loaded.items(), strips, captions, strict=True):
        found = results["evaluations"][name]["searches"]
        right = 0
        for query, nearest, (_, cells) in zip(*found.values(), rows, strict=True):
            for images, position, (attrs, text) in zip(
                [of.query] + [of.gallery] * 8, [query, *nearest], cells, strict=True
            ):
                encoded = next(sources).removeprefix("data:image/png;base64,")
                shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
                assert (shown == images.images[position]).all()
                same = images.labels[position] == of.query.labels[query]
                mark = None if images is of.query else "right" if same else "wrong"
                assert attrs.get("class") == mark
                word = words.printable(images.class_names[images.labels[position]])
                assert " ".join(text).split()[-1] == word
                right += mark == "right"
        assert caption.startswith(f"{name}: queries embedded by model 2")
        assert f"{right} of 64 are right" in caption
    assert next(sources, None) is None


@pytest.mark.parametrize("metric", ["identification", "recall_at_1", "mean_average_precision"])
@pytest.mark.parametrize("name", ["near", "far/off"])
def test_matrix_has_the_values_of_the_results(small, page, name, metric):
    figures = small[2]["evaluations"][name]
    figures = figures if metric == "identification" else figures["metrics"][metric]
    values = figures["matrix"]
    head, *rows = page.table("matrix", evaluation=name, metric=metric)
    marked = [(cell.get("class"), text) for cell, text in head[1][1:]]
    assert marked == [("replaced", "1*"), ("retrained", "2+")]
    assert [cells[0][1] for _, cells in rows] == ["1*", "2+"]
    incompatible = 0
    for t, (_, cells) in enumerate(rows):
        shown = [(cell.get("class"), text) for cell, text in cells[1 : t + 2]]
        for k, (cls, text) in enumerate(shown):
            lost = k < t and not values[t][k] > values[k][k]
            incompatible += lost
            assert cls == ("incompatible" if lost else None)
            assert text == ("✗ " if lost else "") + f"{100 * values[t][k]:.1f}"
        assert all(not text for _, text in cells[t + 2 :])
    assert incompatible == 1  # the tie


def test_headline_has_the_figures_of_the_results(small, page):
    rows = page.table("figures")[1:]
    assert len(rows) == 6
    for attrs, cells in rows:
        figures = small[2]["evaluations"][attrs["data-evaluation"]]
        references = ["12.35", "45.60"]  # 12.345 is above, as a binary number
        if attrs["data-metric"] != "identification":
            figures, references = figures["metrics"][attrs["data-metric"]], ["", ""]
        shown = [text for _, text in cells[1:]]
        assert shown == [f"{figures['ac']:.3f}", f"{figures['aa']:.2f}", *references]


@pytest.mark.parametrize("replacements", [[0], [0, 1]])
def test_accuracy_across_replacements_is_told_where_there_is_such_a_pair(
    small, tmp_path, replacements
):
    c, workdir, results, _ = small
    results = results | {"replacements": replacements, "retrained": []}
    place = tmp_path / "run"
    shutil.copytree(workdir, place)
    written = pathlib.Path(page_module.write(c, str(place), results))
    console = Console(record=True, file=io.StringIO(), width=200)
    report.print_evaluations(results["evaluations"], Schedule(replacements), console)
    printed = console.export_text()
    for attrs, cells in Page(written.read_text("utf-8")).table("figures")[1:]:
        figures = results["evaluations"][attrs["data-evaluation"]]
        is_main = attrs["data-metric"] == figures["metric"]
        figures = figures if is_main else figures["metrics"][attrs["data-metric"]]
        value = f"{100 * figures['matrix'][1][0]:.2f}"  # the only pair of two models
        shown = [text for _, text in cells[1:]]
        assert len(shown) == (4 if replacements == [0] else 5)
        assert (shown[2] == value) == (replacements == [0, 1])
        if is_main:
            assert (f"across replacements {value} %" in printed) == (replacements == [0, 1])


def test_page_tells_how_it_came_about(small, page):
    c, _, results, path = small
    text = path.read_text(encoding="utf-8")
    rows = {cells[0][1]: cells[1][1] for _, cells in page.table("versions")}
    for package, version in results["environment"]["versions"].items():
        assert rows[package] == version
    seconds = {cells[0][1]: cells[1][1] for _, cells in page.table("seconds")[1:]}
    assert seconds == {"data": "1.2", "train": "45.7", "compile": "8.9", "total": "46.9"}
    tasks = [[text for _, text in cells] for _, cells in page.table("tasks")[1:]]
    assert tasks == [
        ["1", "3", "50.0", "1.500", "1.5", "external/nowhere"],
        ["2", "1", "25.0", "1.500", "1.5", "retrained from scratch"],
    ]
    assert "and trained from scratch on the images of all tasks so far at task 2." in text
    told = [caption for caption in page.captions if "Dotted: the model was replaced" in caption]
    assert len(told) == 2
    assert all("dashed: it was retrained from scratch" in caption for caption in told)
    assert "&#39;--config.name=a</span> <span>b&#39;" in text  # the command, as a shell takes it
    _, _, configuration = text.partition("Whole configuration")
    configuration = html.unescape(configuration.partition("<code>")[2].partition("</code>")[0])
    assert json.loads(configuration) == files.as_json(c.to_dict())


def test_names_of_classes_are_text(small, page):
    text = small[3].read_text(encoding="utf-8")
    assert "<i>" not in text
    assert "b&lt;i&gt;&amp;amp;" in text
    (caption,) = (c for c in page.captions if "held-out" in c)
    assert "three classes ($c_d$, a, b<i>&amp;; drawn" in caption  # in the folder's order
    assert "caf\\udce9</span>" in text


def test_matrix_says_in_words_what_it_means(small, page):
    text = html.unescape(small[3].read_text(encoding="utf-8"))
    figures = small[2]["evaluations"]["near"]
    (old, _), (new, _) = figures["matrix"]
    assert (
        f"Queries of model 2 find {100 * new:.1f} % in the gallery of model 1, which itself found "
        f"{100 * old:.1f} %: +0.0 [-1.0, +1.0] points." in text
    )
    assert "0 of 1 pairs of models are compatible; 1 missed it, 1 of them by less" in text
    assert "3 queries are images of the gallery too" in text
    (_, cells) = page.table("matrix", evaluation="near", metric="identification")[2]
    assert [cell.get("title") for cell, _ in cells] == [None, "+0.0 [-1.0, +1.0] points", None]


def test_features_of_a_learnable_classifier(small):
    """The vectors are the newest model's own, since the models do not share them."""
    c = small[0]
    rows = np.random.default_rng(0).normal(size=(c.num_slots, 5))
    stream = inputs.load_stream(c)
    shown = simplex.downstream_slot(np.asarray([0, 1, 2]), c.num_slots)

    def embed(images):  # six images of three classes, two of each
        return 7 * rows[shown].repeat(2, axis=0)

    picture = report_pictures.features(
        stream, {"model 1": embed, "model 4": embed}, rows, fixed=False, seed=0
    )
    assert "the classifier rows of model 4" in picture.caption
    assert "κ: model 1 1.00, model 4 1.00" in picture.caption


def test_one_task_of_two_classes(folder, tmp_path):
    """AC of one model, one model only, and no three classes for a plane."""
    few = tmp_path / "few"
    for split in ("train", "test"):
        for name in CLASSES[:2]:
            shutil.copytree(folder / split / name, few / split / name)
    c = small_config(few)
    c.stream.initial_classes = 2
    results = make_run(c, tmp_path / "run", 1, num_classes=2)
    text = pathlib.Path(page_module.write(c, str(tmp_path / "run"), results)).read_text("utf-8")
    page = Page(text)
    assert page.table("figures")[1][1][1][1] == "1.000"
    assert len(page.table("tasks")) == 2
    assert not any(description.startswith("Features") for description, _ in page.charts)
    assert "Not shown: it takes three classes" in text


def test_the_benchmark_measures_a_page(small, tmp_path, monkeypatch, capsys):
    benchmarks = pathlib.Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    written = tmp_path / "report.json"
    arguments = [f"--workdir={small[1]}", f"--json={written}", "--repeats=2"]
    importlib.import_module("report").main(arguments)
    figures = json.loads(written.read_text())
    assert figures["ratio"] == figures["imports"] + np.median(figures["seconds"])
    assert f"ratio: {figures['ratio']:.4g}" in capsys.readouterr().out


def test_failure_is_told_and_nothing_else(small, tmp_path, capsys):
    c, workdir, results, _ = small
    shutil.copy(workdir / "results.json", tmp_path)  # but no task's model
    runs.write_report(c, str(tmp_path), results, progress.Reporter())
    said = capsys.readouterr().out
    assert f"{tmp_path}/report.html was not written (InputError: " in said
    assert "results.json is complete" in said
    assert files.read_json(str(tmp_path / "results.json")) == results


# In a browser.


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with browser.started(tmp_path_factory.mktemp("browser")) as chrome:
        yield chrome


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["small", "long"])
def test_opens_without_errors_requests_or_overflow(chrome, request, which, width, scheme):
    fixture = request.getfixturevalue(which)
    path = fixture if which == "long" else fixture[3]
    browser.open_page(chrome, path.as_uri(), width, scheme)
    assert chrome.get_log("browser") == []
    assert browser.requested(chrome) == [path.as_uri()]

    chrome.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    images = chrome.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight,"
        " i.getBoundingClientRect().width])"
    )
    assert len(images) == (2 if which == "small" else 1) * 8 * 9
    assert all(complete and min(sizes) > 0 for complete, *sizes in images)
    assert browser.overflow(chrome) <= 0
    background, ink = browser.colours(chrome)
    assert (background < 60 and ink > 200) if scheme == "dark" else (background > 200 and ink < 60)


def test_a_wide_matrix_scrolls_within_itself(chrome, long):
    browser.open_page(chrome, long.as_uri(), 390, "light")
    inner, outer = chrome.execute_script(
        "const m = document.querySelector('table.matrix').parentElement;"
        "return [m.scrollWidth, m.clientWidth]"
    )
    assert inner > 2 * outer
