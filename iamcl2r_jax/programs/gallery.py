"""A gallery that is indexed once and searched by every later compatible model.

Exit status 0: done; 1: failed; 2: bad input; 3: refused, the gallery's state or a gate forbids it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from iamcl2r_jax.programs import start

# Everything else is imported by the verb that needs it: --help takes no time.

_VERBS: dict[str, tuple[str, str]] = {
    "init": (
        "makes an empty gallery that is served by a model",
        "Makes DIR with an empty database. Refuses where there is a gallery already.",
    ),
    "add": (
        "embeds the images of a folder and adds them",
        "Adds every image below FOLDER; its relative path is its key, the directory it lies in its "
        "label. A known key is replaced. Images stay where they are; their paths and vectors are "
        "stored, in transactions of a batch each. Unreadable images are listed and passed over, "
        "with exit status 1 at the end.",
    ),
    "remove": (
        "removes items by key",
        "Removes items with their vectors in every generation, for good. Image files stay. If one "
        "key is unknown, nothing is removed.",
    ),
    "search": (
        "finds the items nearest to images",
        "Embeds images by the serving model and prints the nearest items. Changes nothing.",
    ),
    "status": (
        "shows models, vectors and the upgrade in progress",
        "Prints what is stored, which model serves, and how far an upgrade is. Changes nothing.",
    ),
    "gate": (
        "decides whether a new model may search the stored vectors",
        "Compares the new model with the stored one on labelled images, predicts what a backfill "
        "does to the search on the way and what it takes, and stores the verdict. The first gate "
        "of a model begins its upgrade. Stored vectors are not touched. Exit status 3 if the model "
        "is not compatible and --accept-incompatible is not given.",
    ),
    "canary": (
        "gives the new model a share of the queries",
        "The share is chosen by a hash of each request's id. From here until retire, new items are "
        "embedded by both models. No stored vector changes.",
    ),
    "promote": (
        "lets the new model answer every query",
        "The new model searches the stored vectors as they are. None changes.",
    ),
    "backfill": (
        "embeds all items by the new model, while queries run",
        "Adds the new model's vector of every item; the old vectors stay until retire. It may be "
        "killed at any time and goes on where it was. Unreadable images are listed, stay served by "
        "the old vectors, and are tried again by the next call; they end it with exit status 1.",
    ),
    "pause": (
        "stops the canary or the backfill where it is",
        "A paused canary gets no query, a paused backfill embeds nothing; --resume lets it go on. "
        "No vector changes.",
    ),
    "rollback": (
        "lets the old model answer every query again",
        "Takes effect at once, from any state before retired. No vector is removed or embedded.",
    ),
    "retire": (
        "ends an upgrade and removes the vectors that serve no longer",
        "For good: after a complete backfill it removes the old model's vectors, after a rollback "
        "or a promotion without backfill the new model's. Refuses if an item would be lost.",
    ),
    "verify": (
        "checks the gallery for damage",
        "Compares every row with its checksum and every vector with what it must be. Changes "
        "nothing. Exit status 1 if anything is wrong.",
    ),
    "backup": (
        "copies the gallery while it is in use",
        "Copies the database as of one moment to TARGET, which then is a gallery. Images that lie "
        "inside DIR are copied, others stay where they are.",
    ),
    "refill": (
        "gives a server that has lost vectors all of them again",
        "Empties the gallery's collections on its Milvus server and fills them from the database, "
        "which does not change. Searches find less until it ends. A search engine in memory needs "
        "no refill: it is filled whenever a process opens the gallery.",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    options = start.parse(_parser(), arguments)
    from iamcl2r_jax.programs import exits, gallery_verbs

    verb = getattr(gallery_verbs, options.verb)
    return exits.status_of(lambda: verb(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gallery", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    options: dict[str, argparse.ArgumentParser] = {}
    for verb, (short, long) in _VERBS.items():
        options[verb] = verbs.add_parser(verb, help=short, description=long, allow_abbrev=False)
        options[verb].add_argument(
            "directory", metavar="DIR", type=start.path, help="of the gallery"
        )
    _images(options)
    _upgrades(options)
    _upkeep(options)
    return parser


def _images(options: dict[str, argparse.ArgumentParser]) -> None:
    init, add, search = options["init"], options["add"], options["search"]
    init.add_argument("--model", required=True, type=start.path, help="directory of a checkpoint")
    init.add_argument("--name", help="of the model; by default the beginning of its digest")
    init.add_argument("--engine", default="memory", help="what searches (default: %(default)s)")
    init.add_argument(
        "--index",
        default="Flat",
        help="Flat for exact search, or a string of FAISS's index_factory (default: %(default)s)",
    )
    add.add_argument("folder", metavar="FOLDER", type=start.path, help="of images, at any depth")
    add.add_argument("--batch", type=int, default=256, help="images in a transaction")
    options["remove"].add_argument("keys", metavar="KEY", nargs="+", help="of an item")
    search.add_argument(
        "images", metavar="IMAGE", nargs="+", type=start.path, help="file to search for"
    )
    search.add_argument("--model", help="name; by default the one that serves")
    search.add_argument("-k", type=int, default=10, help="hits (default: %(default)s)")
    _json(search)


def _upgrades(options: dict[str, argparse.ArgumentParser]) -> None:
    gate, backfill = options["gate"], options["backfill"]
    gate.add_argument(
        "--model", required=True, type=start.path, help="checkpoint, or name of a registered model"
    )
    gate.add_argument("--name", help="of the model, if it is registered now")
    gate.add_argument(
        "--gallery", required=True, help="labelled images searched in: folder:DIR or TFDS name"
    )
    gate.add_argument("--query", help="labelled images searched for (default: as --gallery)")
    gate.add_argument("--gallery-split", default="gallery", help="(default: %(default)s)")
    gate.add_argument("--query-split", default="query", help="(default: %(default)s)")
    gate.add_argument("--metric", default="recall_at_1", help="decides (default: %(default)s)")
    gate.add_argument("--data-dir", type=start.path, help="where TFDS keeps data sets")
    gate.add_argument("--seed", type=int, default=0, help="of the intervals and of the order")
    gate.add_argument("--cost-per-hour", type=float, help="of the machine that embeds")
    gate.add_argument(
        "--accept-incompatible",
        action="store_true",
        help="allow the model even if it fails; recorded in the event log",
    )
    _json(gate)
    options["canary"].add_argument("--share", type=float, required=True, help="in [0, 1]")
    options["promote"].add_argument(
        "--merge", choices=("raw", "zscore"), help="of scores, by default what the gate found best"
    )
    backfill.add_argument("--rate", type=float, help="most items a second")
    backfill.add_argument("--batch", type=int, default=64, help="items in a transaction")
    options["pause"].add_argument("--resume", action="store_true", help="let it go on")


def _upkeep(options: dict[str, argparse.ArgumentParser]) -> None:
    options["status"].add_argument("--events", type=int, default=5, help="lines of the log to show")
    _json(options["status"])
    options["verify"].add_argument("--files", action="store_true", help="read every image, too")
    options["verify"].add_argument(
        "--engine", action="store_true", help="compare what the engine holds, too"
    )
    options["backup"].add_argument(
        "target", metavar="TARGET", type=start.path, help="directory to make"
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(value: Any) -> None:
    """Prints a value for other programs."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
