"""The demonstration, whole, with two models of a narrow network."""

import pytest
from quick import initial_variables

from iamcl2r_jax import config, methods
from iamcl2r_jax.models import stored
from iamcl2r_jax.programs import demo


def save(path, seed):
    c = config.default()
    metadata = stored.Metadata(
        kind=stored.EXTERNAL,
        architecture=stored.Architecture.of("resnet18", c.num_slots - 1, {"width": 4}),
        head=methods.get(c.method).external_head,
        num_slots=c.num_slots,
        slots=(0, 100),
        image=stored.ImageInput.of(c.image),
        about={"accuracy": None},
    )
    variables = initial_variables(stored.expected_variables(metadata), seed)
    stored.save_model(str(path), stored.Model(metadata, variables))
    return str(path)


@pytest.mark.slow
def test_the_demonstration_goes_through(tmp_path, capfd):
    models = ",".join(save(tmp_path / str(seed), seed) for seed in (0, 1))
    status = demo.main([f"--models={models}", f"--workdir={tmp_path / 'demo'}"])
    said = capfd.readouterr().out
    assert status == 0
    for text in ("300 items", "canary", "promote", "backfill: 300 of 300", "rollback", "done in"):
        assert text in said
    queries = [line for line in said.splitlines() if "queries (" in line]
    assert len(queries) == 3
    assert all(", 0 failed" in line for line in queries)


def test_bad_input_is_one_line(tmp_path, capsys):
    assert demo.main(["--models=one", f"--workdir={tmp_path}"]) == 2
    (tmp_path / "thesis.tex").write_text("mine")
    assert demo.main(["--models=one,two", f"--workdir={tmp_path}"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"
