"""CITATION.cff cites the paper, and the version that is installed."""

import pathlib
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[1]


def test_citation_names_the_paper_and_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # CFF requires these
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["title"].startswith("Stationary Representations")
    assert [author["family-names"] for author in paper["authors"]] == [
        "Biondi",
        "Pernici",
        "Ricci",
        "Del Bimbo",
    ]
    assert paper["url"].endswith("2405.02581")
