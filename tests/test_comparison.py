"""Comparisons: what is run, what the tables say, and that finished cells are left alone."""

import pathlib

import pytest
import smallest_run
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from iamcl2r_jax import config, methods
from iamcl2r_jax.comparisons import cells, comparison, comparison_report, tables
from iamcl2r_jax.reports.tables import comma_separated, markdown
from iamcl2r_jax.system import files, runtime
from iamcl2r_jax.system.errors import DamagedError, DivergenceError, InputError
from iamcl2r_jax.training import inputs, lifelong, reevaluation

# ml_collections loads config files by a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
WITH_OLD_MODEL = sum(methods.get(name).uses_old_model for name in methods.METHODS)


def load_config(name):
    """The config that a program of launch/ gets for --config=configs/NAME."""
    return ConfigFileFlagParser("config").parse(str(CONFIGS / name))


def recorded(ac, aa, *, external="external/a", untrained=20.0, final=0.5):
    """What a run of two tasks leaves, as far as a comparison looks at it."""
    summary = {
        "matrix": [[0.5, None], [0.6, 0.7]],
        "ac": ac,
        "aa": aa,
        "aca": ac / 2,
        "bc": 0.1,
        "fc": -0.1,
        "ac_per_task": [1.0, ac],
        "aa_per_task": [50.0, aa],
    }
    return {
        "replacements": [0, 1],
        "retrained": [],
        "external_models": {"0": external},
        "task_accuracy": [0.9, final],
        "evaluations": {
            "digits": {
                "metric": "identification",
                **summary,
                "metrics": {"recall_at_1": summary | {"aa": aa + 1}},
            }
        },
        "references": {"digits": {"untrained": untrained, "first_external": 40.0}},
    }


def two_methods(**changes):
    """A comparison of two methods with seeds 0 and 1, evaluated on digits."""
    base = config.default()
    base.evaluations = {"digits": config.evaluation("glyphs/tiny_digits")}
    base.metrics = ("identification", "recall_at_1")
    c = cells.comparison("two", base, {"hoc": {}, "er": {"method": "er"}})
    c.seeds = (0, 1)
    c.update(changes)
    c.lock()
    return c


def leave(workdir, cell, results):
    """Writes what the finished run of a cell leaves."""
    path = workdir / "cells" / cell.name
    files.write_json(str(path / "config.json"), cell.config.to_dict())
    files.write_json(str(path / "numerics.json"), runtime.numerics())
    files.write_json(str(path / "results.json"), results)


def test_a_row_is_mean_and_sample_std_over_the_seeds_that_are_there():
    runs = [recorded(0.0, 60.0, final=0.1), None, recorded(1.0, 64.0, final=0.2)]
    row = tables.make_row("digits", runs)
    assert (row["n"], row["failed"]) == (2, 0)
    assert row["figures"]["ac"] == {
        "values": [0.0, None, 1.0],
        "mean": 0.5,
        "std": pytest.approx(0.5**0.5),  # ((1/2)² + (1/2)²) / (2 - 1)
    }
    assert row["figures"]["aa"]["mean"] == 62.0
    assert row["figures"]["aa"]["std"] == pytest.approx(8**0.5)
    assert row["figures"]["across"]["mean"] == pytest.approx(60.0)  # the matrix's only pair
    assert row["figures"]["recall_at_1"]["mean"] == 63.0
    assert row["figures"]["final_accuracy"]["mean"] == pytest.approx(0.15)
    assert row["aa_per_task"] == [50.0, 62.0]
    assert row["ac_per_task"] == [1.0, 0.5]


def test_one_seed_has_no_std_and_none_has_nothing():
    one = tables.make_row("digits", [recorded(1.0, 60.0)])["figures"]["aa"]
    assert one == {"values": [60.0], "mean": 60.0, "std": None}
    assert tables.make_row("digits", [None, None]) == {"n": 0, "failed": 0, "figures": {}}


def test_a_figure_that_is_not_defined_is_left_out_of_the_mean():
    alone = recorded(1.0, 60.0)  # of a single task, say: there is no pair to average over
    alone["evaluations"]["digits"]["bc"] = None
    assert tables.make_row("digits", [alone])["figures"]["bc"]["mean"] is None
    both = tables.make_row("digits", [alone, recorded(1.0, 60.0)])["figures"]["bc"]
    assert both == {"values": [None, 0.1], "mean": 0.1, "std": None}


ROWS = {
    "hoc": tables.make_row("digits", [recorded(0.8, 77.0), recorded(0.6, 78.0)]),
    "er": tables.make_row("digits", [recorded(0.1, 45.375), None], failed=1),
    "cvs": tables.make_row("digits", [None, None], failed=2),
    "a|b": tables.make_row("digits", [None, None]),
    "untrained": tables.reference_row([{"aa": 18.0}, {"aa": 20.0}]),
}


def test_markdown():
    line = "| {:9} | {:>11} | {:>13} | {:>12} | {:>12} | {:>15} | {:>13} |"
    line += " {:>13} | {:>14} | {:>14} | {:>12} | {:>12} |\n"
    titles = ("method", "n", "AC", "AA %", "across %", "old galleries %", "own gallery %", "ACA")
    titles += ("BC", "FC", "Recall@1 %", "final task %")
    hoc = (
        "0.700 ± 0.141",
        "77.50 ± 0.71",
        "60.00 ± 0.00",
        "60.00 ± 0.00",
        "70.00 ± 0.00",
        "0.350 ± 0.071",
        "+0.100 ± 0.000",
        "-0.100 ± 0.000",
    )
    er = ("0.100", "45.38", "60.00", "60.00", "70.00", "0.050", "+0.100", "-0.100", "46.38", "50.0")
    untrained = ("-", "19.00 ± 1.41", *8 * ["-"])
    widths = (11, 13, 12, 12, 15, 13, 13, 14, 14, 12, 12)
    assert markdown(tables.text_cells("method", ROWS)) == "".join(
        [
            line.format(*titles),
            f"| :-------- | {' | '.join('-' * (width - 1) + ':' for width in widths)} |\n",
            line.format("hoc", "2", *hoc, "78.50 ± 0.71", "50.0 ± 0.0"),
            line.format("er", "1, 1 failed", *er),
            line.format("cvs", "0, 2 failed", *10 * ["failed"]),
            line.format("a\\|b", "0", *10 * ["-"]),
            line.format("untrained", "2", *untrained),
        ]
    )


def test_differences_are_taken_seed_by_seed():
    hoc, er = (
        tables.make_row("digits", [recorded(ac, 60.0) if ac is not None else None for ac in acs])
        for acs in ((0.8, 0.2, 0.5), (0.9, None, 0.4))
    )
    row = tables.difference_row(er, hoc)
    assert row["n"] == 2
    ac = row["figures"]["ac"]
    assert ac["values"] == [pytest.approx(0.1), None, pytest.approx(-0.1)]
    assert ac["mean"] == pytest.approx(0.0)
    assert ac["std"] == pytest.approx(0.02**0.5)  # (0.1² + 0.1²) / (2 - 1)
    signed = tables.text_cells("less hoc", {"er": row}, signed=True)[1]
    assert signed[:4] == ["er", "2", "+0.000 ± 0.141", "+0.00 ± 0.00"]
    nothing = tables.make_row("digits", [None, None, None])
    assert tables.difference_row(nothing, hoc) == {"n": 0, "failed": 0, "figures": {}}


def test_csv_is_unrounded():
    rows = {name: ROWS[name] for name in ("er", "cvs")}
    assert comma_separated(tables.csv_cells("method", rows)) == (
        "method,n,failed,ac_mean,ac_std,aa_mean,aa_std,"
        "across_mean,across_std,old_galleries_mean,old_galleries_std,own_mean,own_std,"
        "aca_mean,aca_std,"
        "bc_mean,bc_std,fc_mean,fc_std,recall_at_1_mean,recall_at_1_std,"
        "final_accuracy_mean,final_accuracy_std\n"
        "er,1,1,0.1,,45.375,,60.0,,60.0,,70.0,,0.05,,0.1,,-0.1,,46.375,,0.5,\n"
        "cvs,0,2,,,,,,,,,,,,,,,,,,,,\n"
    )


def test_a_table_of_nothing_has_its_columns():
    rows = {"hoc": tables.make_row("digits", [None])}
    assert tables.text_cells("method", rows)[1] == ["hoc", "0"] + 11 * ["-"]


def test_external_models_vary_with_the_seed_if_asked_to(tmp_path):
    c = two_methods()
    for varied, seeds in ((False, [0, 0]), (True, [0, 1])):
        c.vary_external_models = varied
        made = cells.expand(c, str(tmp_path))
        recipes = [cell.config.replacements.recipe for cell in made if cell.variant == "hoc"]
        assert [recipe.seed for recipe in recipes] == seeds

    # Then the first external model is one for each seed and head.
    for cell, accuracy in zip(made, (58.0, 70.0, 76.0, 72.0), strict=True):
        results = recorded(0.5, 70.0)
        results["references"]["digits"]["first_external"] = accuracy
        leave(tmp_path, cell, results)
    assert comparison.main(c, str(tmp_path), [], "typed") == comparison.DONE
    rows = files.read_json(str(tmp_path / "comparison.json"))["evaluations"]["digits"]["references"]
    assert {name: row["figures"]["aa"]["values"] for name, row in rows.items()} == {
        "untrained": [20.0, 20.0],
        "first external (hoc)": [58.0, 76.0],
        "first external (er)": [70.0, 72.0],
    }


def test_a_variant_cannot_set_what_varies_with_the_seed(tmp_path):
    variants = {"hoc": {}, "other": {"replacements.recipe.seed": 3}}
    c = cells.comparison("ours", config.default(), variants)
    c.vary_external_models = True
    with pytest.raises(InputError, match=r"'other': .*seed: vary_external_models sets it"):
        cells.expand(c, str(tmp_path))


def test_models_that_arrived_are_told_by_where_they_came_from(tmp_path):
    c = two_methods()
    c.seeds, c.base.replacements.tasks, c.base.replacements.classes = (0,), (), ()
    c.base.replacements.watch = str(tmp_path)
    for cell, name in zip(cells.expand(c, str(tmp_path)), ("a", "b"), strict=True):
        leave(tmp_path, cell, recorded(0.5, 70.0) | {"external_models": {"1": f"arrived/{name}"}})
    assert comparison.main(c, str(tmp_path), [], "typed") == comparison.DONE
    rows = files.read_json(str(tmp_path / "comparison.json"))["evaluations"]["digits"]["references"]
    assert list(rows) == ["untrained", "first external (hoc)", "first external (er)"]


def test_what_is_there_is_tabulated_and_nothing_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lifelong, "run", None)
    c = two_methods()
    hoc0, er0, hoc1, er1 = cells.expand(c, str(tmp_path))
    leave(tmp_path, hoc0, recorded(0.8, 77.0))
    leave(tmp_path, hoc1, recorded(0.6, 78.0, untrained=22.0))
    leave(tmp_path, er0, recorded(0.1, 45.0, external="external/b"))
    files.write_json(f"{er1.workdir}/failure.json", {"error": "loss is nan"})

    typed = "python launch/compare.py '--config=my config.py' --only="
    assert comparison.main(c, str(tmp_path), [], typed) == comparison.FAILED
    found = files.read_json(str(tmp_path / "comparison.json"))
    assert found["cells"] == {
        "hoc-seed0": {"state": "finished"},
        "er-seed0": {"state": "finished"},
        "hoc-seed1": {"state": "finished"},
        "er-seed1": {"state": "failed", "error": "loss is nan"},
    }
    assert found["variants"] == {"hoc": {}, "er": {"method": "er"}}
    digits = found["evaluations"]["digits"]
    assert {name: row["n"] for name, row in digits["rows"].items()} == {"hoc": 2, "er": 1}
    # One untrained network for each seed, an external model for each head.
    assert {name: row["figures"]["aa"]["values"] for name, row in digits["references"].items()} == {
        "untrained": [20.0, 22.0],
        "first external (hoc)": [40.0],
        "first external (er)": [40.0],
    }

    table = (tmp_path / "digits" / "table.md").read_text()
    assert markdown(tables.text_cells("variant", digits["rows"] | digits["references"])) in table
    assert "er-seed1 failed: loss is nan" in table
    assert found["command"] == typed
    assert table.endswith(f"\nTabulated by `{typed}`.\n")
    assert "+0.100 ± 0.000" in capsys.readouterr().out
    assert "| er" in (tmp_path / "digits" / "differences.md").read_text()
    pictures = ("matrix-hoc", "matrix-er", "ac", "aa", "ac_per_task", "aa_per_task", "trade_off")
    for name in pictures:
        assert (tmp_path / "digits" / f"{name}.png").exists()
        assert (tmp_path / "digits" / f"{name}.svg").exists()

    # A finished run outweighs an earlier failure.
    leave(tmp_path, er1, recorded(0.1, 45.0, external="external/b"))
    assert comparison.main(c, str(tmp_path), [], typed) == comparison.DONE
    assert "er-seed1" not in (tmp_path / "digits" / "table.md").read_text()


def test_cells_that_are_not_there_are_named(tmp_path):
    c = two_methods()
    found = comparison.run(c, str(tmp_path), only=[])
    assert set(map(str, (cell["state"] for cell in found["cells"].values()))) == {"missing"}
    table = (tmp_path / "digits" / "table.md").read_text()
    assert "4 of 4 cells not run: hoc-seed0, er-seed0, hoc-seed1, er-seed1" in table


@pytest.fixture
def recorder(monkeypatch):
    """Stands in for the runs: leaves a recorded result, or diverges with method er."""
    ran = []

    def run(cell_config, workdir, reporter, preemption, *, command):
        ran.append((cell_config.method, cell_config.seed))
        if cell_config.method == "er" and cell_config.seed == 0:
            raise DivergenceError(2, 0, "task 2")
        files.write_json(f"{workdir}/config.json", cell_config.to_dict())
        files.write_json(f"{workdir}/numerics.json", runtime.numerics())
        files.write_json(f"{workdir}/results.json", recorded(0.5, 50.0) | {"command": command})

    monkeypatch.setattr(lifelong, "run", run)
    monkeypatch.setattr(inputs, "stream_size", lambda _: (52, 5))
    return ran


@pytest.fixture
def unpictured(monkeypatch):
    """Tables and pictures are looked at elsewhere."""
    monkeypatch.setattr(comparison_report, "write", lambda *_: None)


def test_a_cell_that_diverges_is_noted_and_the_others_go_on(recorder, unpictured, tmp_path):
    c = two_methods()
    found = comparison.run(c, str(tmp_path))
    assert recorder == [("hoc", 0), ("er", 0), ("hoc", 1), ("er", 1)]
    assert found["cells"]["er-seed0"] == {
        "state": "failed",
        "error": "task 2, epoch 3, step 1: loss or gradient is not finite; try a lower "
        "train.learning_rate",
    }
    assert [row["n"] for row in found["evaluations"]["digits"]["rows"].values()] == [2, 1]
    recorder.clear()
    comparison.run(c, str(tmp_path))
    assert recorder == [("er", 0)]


@pytest.mark.parametrize(
    ("only", "ran"),
    [
        (["er-seed1"], [("er", 1)]),
        (["hoc"], [("hoc", 0), ("hoc", 1)]),
        (["hoc-seed1", "hoc"], [("hoc", 0), ("hoc", 1)]),
    ],
)
def test_a_part_can_be_run(only, ran, recorder, unpictured, tmp_path):
    comparison.run(two_methods(), str(tmp_path), only=only)
    assert recorder == ran


def test_cells_and_tables_say_how_they_were_made(recorder, unpictured, tmp_path):
    c = two_methods()
    all_cells = cells.expand(c, str(tmp_path))
    typed = "python launch/compare.py --config=c.py --only=hoc"
    found = comparison.run(c, str(tmp_path), only=["hoc"], command=typed)
    assert found["command"] == typed
    assert all_cells[0].results()["command"] == f"{typed} --only=hoc-seed0"
    found = comparison.run(c, str(tmp_path))
    assert found["command"] == f"comparison.run(config, {str(tmp_path)!r}, None)"
    assert all_cells[3].results()["command"] is None  # the run then says what called it


def test_what_another_process_runs_is_passed_over(monkeypatch, recorder, unpictured, tmp_path):
    record = lifelong.run

    def locked(cell_config, workdir, *others, **options):
        with files.one_writer(workdir):
            record(cell_config, workdir, *others, **options)

    monkeypatch.setattr(lifelong, "run", locked)
    c = two_methods()
    with files.one_writer(str(tmp_path / "cells" / "hoc-seed0")):
        found = comparison.run(c, str(tmp_path), only=["hoc"])
    assert found["cells"]["hoc-seed0"] == {"state": "missing"}
    assert found["cells"]["hoc-seed1"] == {"state": "finished"}
    assert recorder == [("hoc", 1)]


def test_damaged_results_are_made_again_but_never_tabulated(recorder, unpictured, tmp_path):
    c = two_methods()
    comparison.run(c, str(tmp_path), only=["hoc"])
    results = tmp_path / "cells" / "hoc-seed1" / "results.json"
    results.write_text(results.read_text().replace("0.5", "0.9"))
    with pytest.raises(DamagedError, match=r"hoc-seed1.results\.json is damaged"):
        comparison.run(c, str(tmp_path), only=[])
    recorder.clear()
    comparison.run(c, str(tmp_path), only=["hoc"])
    assert recorder == [("hoc", 1)]


def test_an_unknown_part_is_refused(recorder, tmp_path):
    with pytest.raises(InputError, match=r"only=cvs: must be a variant, .*; variants are hoc, er"):
        comparison.run(two_methods(), str(tmp_path), only=["hoc", "cvs"])
    assert not recorder


def test_a_cell_of_another_configuration_is_refused_before_the_first_runs(recorder, tmp_path):
    c = two_methods()
    *_, last = cells.expand(c, str(tmp_path))
    leave(tmp_path, last, recorded(0.5, 50.0))
    c.base.train.epochs = 15
    with pytest.raises(InputError, match=r"er-seed1 holds .* \(train.epochs: 8 there, 15 here"):
        comparison.run(c, str(tmp_path))
    assert not recorder


def test_a_new_method_leaves_finished_cells_of_others_alone(recorder, unpictured, tmp_path):
    c = two_methods(seeds=(0,))
    hoc = cells.expand(c, str(tmp_path))[0]
    leave(tmp_path, hoc, recorded(0.5, 50.0))
    before = hoc.config.to_dict()
    del before["method_options"]["cvs"]
    files.write_json(f"{hoc.workdir}/config.json", before)
    comparison.run(c, str(tmp_path), only=["hoc"])
    assert not recorder

    before["method_options"]["hoc"]["mu"] = 5.0
    files.write_json(f"{hoc.workdir}/config.json", before)
    with pytest.raises(InputError, match=r"method_options.hoc.mu: 5.0 there, 10.0 here"):
        comparison.run(c, str(tmp_path), only=["hoc"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name: 'a/b' must be a plain file name"),
        ({"seeds": ()}, "seeds=(): must be a tuple of different seeds"),
        ({"seeds": (0, 0)}, "seeds=(0, 0): must be a tuple of different seeds"),
        ({"seeds": (0, -1)}, "variant 'hoc': seed=-1: must be an integer in"),
        ({"seeds": (0, "a")}, "variant 'hoc': seed='a': must be of type int"),
    ],
)
def test_a_comparison_that_cannot_work_is_refused(changes, message, recorder, tmp_path):
    with pytest.raises(InputError) as error:
        comparison.run(two_methods(**changes), str(tmp_path))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not recorder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"metod": "er"}, "variant 'x': base has no field 'metod'"),
        ({"train.epoch": 1}, "variant 'x': base has no field 'train.epoch'"),
        ({"trian.epochs": 1}, "variant 'x': base has no field 'trian.epochs'"),
        ({"seed.of": 1}, "variant 'x': seed.of must be the same for all variants"),
        ({"method.of": 1}, "variant 'x': base has no field 'method.of'"),
        ({"train.epochs": 1.5}, "variant 'x': train.epochs=1.5: must be of type int"),
        ({"train.epochs": 0}, "variant 'x': train.epochs=0: must be an integer in"),
        ({"method": "hok"}, "variant 'x': method='hok': must be one of"),
        ({"seed": 1}, "variant 'x': seed must be the same for all variants"),
        ({"metrics": ("recall_at_1",)}, "variant 'x': metrics must be the same"),
        ({"num_slots": 640}, "variant 'x': num_slots=640: too few simplex slots"),
    ],
)
def test_a_variant_that_cannot_work_is_refused_before_the_first_runs(
    overrides, message, recorder, tmp_path
):
    c = cells.comparison("x", config.default(), {"hoc": {}, "x": overrides})
    c.lock()
    with pytest.raises(InputError) as error:
        comparison.run(c, str(tmp_path))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not recorder


def ablation():
    c = two_methods(seeds=(0,))
    with c.unlocked():
        del c.variants["er"], c.variants["hoc"]
        cells.ablate(c, "mu", "method_options.hoc.mu", (1, 10, 100))
        cells.ablate(c, "K", "num_slots", (1024, 2048))
    return c


def test_groups_share_the_base(recorder, tmp_path):
    c = ablation()
    found = comparison.run(c, str(tmp_path))
    assert list(found["variants"]) == ["mu-1.0", "base", "mu-100.0", "K-2048"]
    assert len(recorder) == 4
    assert found["groups"] == {
        "mu": {
            "field": "method_options.hoc.mu",
            "variants": {"1.0": "mu-1.0", "10.0": "base", "100.0": "mu-100.0"},
        },
        "K": {"field": "num_slots", "variants": {"1024": "base", "2048": "K-2048"}},
    }
    configs = {cell.variant: cell.config for cell in cells.expand(c, "")}
    assert configs["mu-1.0"].method_options.hoc.mu == 1.0
    assert configs["K-2048"].replacements.recipe.num_slots == 2048
    assert configs["base"].to_dict() == c.base.to_dict()

    written = (tmp_path / "digits" / "mu.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in written[:5]] == [
        "method_options.hoc.mu",
        ":--------------------",
        "1.0",
        "10.0 (base)",
        "100.0",
    ]
    for group in ("mu", "K"):
        for name in (f"{group}.csv", f"{group}-ac.png", f"{group}-aa.png"):
            assert (tmp_path / "digits" / name).exists()


@pytest.mark.parametrize(
    ("field", "settings", "message"),
    [
        ("num_clases", (1,), "groups.g: base has no field 'num_clases'"),
        ("num_slots", (), "groups.g.settings=(): must be a tuple of values"),
        ("num_slots", (320, 1.5), "groups.g: num_slots=1.5: must be of type int"),
        ("train.learning_rate", (0, 0.0), "groups.g.settings=(0, 0.0): 0.0 is there twice"),
    ],
)
def test_a_group_that_cannot_work_is_refused(field, settings, message):
    c = ablation()
    with c.unlocked():
        cells.ablate(c, "g", field, settings)
    with pytest.raises(InputError) as error:
        cells.expand(c, "")
    assert str(error.value).startswith(message)


def test_a_variant_has_one_meaning():
    c = ablation()
    with c.unlocked():
        c.variants = {"base": {"method": "er"}}
    with pytest.raises(InputError, match=r"variants\.base: groups.mu makes one of that name"):
        cells.expand(c, "")


@pytest.mark.parametrize(
    ("name", "num_cells"),
    [
        ("compare_glyphs.py", 3 * (len(methods.METHODS) + WITH_OLD_MODEL)),
        ("compare_cifar100r.py", 3 * len(methods.METHODS)),
        ("compare_cifar100r.py:tasks=31", 3 * len(methods.METHODS)),
        ("ablation_glyphs.py", 3 * 14),
    ],
)
def test_committed_configs_are_valid(name, num_cells):
    c = load_config(name)
    assert c.seeds == (0, 1, 2)
    made = cells.expand(c, "runs")
    assert len({cell.workdir for cell in made}) == num_cells
    if not c.groups:
        assert {cell.config.method for cell in made} == methods.METHODS.keys()
    stream = (100, 31) if "31" in name else (52, 5)
    for cell in made:
        config.check_stream(cell.config, *stream)
    if name.startswith("compare_cifar100r"):
        protocol = load_config(name.removeprefix("compare_"))
        assert config.differences(made[0].config.to_dict(), protocol.to_dict()) == []


def test_a_cell_is_an_ordinary_run(tmp_path, monkeypatch):
    base = load_config("tiny.py")
    base.num_slots = 64
    base.evaluations = {"digits": config.evaluation("glyphs/tiny_digits")}
    base.metrics = ("identification",)
    base.stream.initial_classes = base.stream.increment = 26
    base.stream.limit_per_class = 4
    base.replacements.tasks = base.replacements.classes = ()
    smallest_run.register(monkeypatch)
    base.model.backbone = "smallest"
    base.train.epochs = 1
    c = cells.comparison("whole", base, {name: {"method": name} for name in ("simplex", "er")})
    c.seeds = (0,)
    c.lock()
    workdir = tmp_path / "run"
    comparison.run(c, str(workdir), only=["simplex"])
    results = files.read_json(str(workdir / "cells" / "simplex-seed0" / "results.json"))
    leave(workdir, cells.expand(c, str(workdir))[1], results)

    monkeypatch.setattr(lifelong, "run", None)  # both are finished
    found = comparison.run(c, str(workdir))
    assert results["method"] == "simplex"
    for row in found["evaluations"]["digits"]["rows"].values():
        assert row["figures"]["aa"]["mean"] == results["evaluations"]["digits"]["aa"]
    again = reevaluation.reevaluate(str(workdir / "cells" / "simplex-seed0"))
    assert again["evaluations"] == results["evaluations"]


def test_curves_of_a_comparison_are_marked_where_all_its_runs_agree():
    assert comparison._in_all([[0, 4, 2], [2, 0]]) == [0, 2]
    assert comparison._in_all([[0], []]) == []
    assert comparison._in_all([]) == []
