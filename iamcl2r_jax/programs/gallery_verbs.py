"""What each verb of the gallery's program does, with the parsed options; returns the status."""

import argparse
import os
import sys
import time
from typing import Any

from iamcl2r_jax.gallery import Gallery, images, upkeep
from iamcl2r_jax.programs import exits, start
from iamcl2r_jax.programs.gallery import print_json
from iamcl2r_jax.system.errors import InputError


def init(options: argparse.Namespace) -> None:
    """See `gallery --help`, as of all functions here."""
    start.prepare_jax()
    from iamcl2r_jax.gallery.embedder import describe

    with Gallery.create(
        options.directory,
        describe(options.model),
        name=options.name,
        engine=options.engine,
        index=options.index,
    ) as gallery:
        print(f"{options.directory}: an empty gallery, served by {gallery.status()['serving']}")


def add(options: argparse.Namespace) -> int:
    from iamcl2r_jax.gallery import indexing

    if options.batch < 1:
        raise InputError(f"batch={options.batch}: must be at least 1")
    files = indexing.sources(options.folder)
    with Gallery(options.directory) as gallery:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            _line(f"{done} of {len(files)} images")

        added = indexing.add_files(
            gallery, _embedders(), files, batch=options.batch, progress=progress
        )
    _line("")
    print(f"added: {len(added.items)}")
    for _, reason in added.unreadable:
        print(f"unreadable: {reason}", file=sys.stderr)
    return exits.FAILED if added.unreadable else exits.DONE


def remove(options: argparse.Namespace) -> None:
    with Gallery(options.directory) as gallery:
        print(f"removed: {gallery.remove(options.keys)}")


def search(options: argparse.Namespace) -> None:
    from iamcl2r_jax.gallery import indexing

    pictures = [images.read(path) for path in options.images]
    with Gallery(options.directory) as gallery:
        name = options.model or gallery.status()["serving"]
        model = gallery.model(name)
        vectors = indexing.embed(_embedders()[model], pictures)
        found = gallery.search(vectors, model=model.name, k=options.k)
    results = [
        {
            "image": path,
            "model": model.name,
            "hits": [
                {
                    "key": hit.item.key,
                    "label": hit.item.label,
                    "score": hit.score,
                    "stored_by": hit.model,
                }
                for hit in hits
            ],
        }
        for path, hits in zip(options.images, found, strict=True)
    ]
    if options.json:
        print_json(results)
        return
    for result in results:
        print(f"{result['image']}, by {result['model']}")
        for hit in result["hits"]:
            label = "" if hit["label"] is None else f"  [{hit['label']}]"
            print(f"  {hit['score']:7.4f}  {hit['key']}{label}  stored by {hit['stored_by']}")


def status(options: argparse.Namespace) -> None:
    with Gallery(options.directory) as gallery:
        found, events = gallery.status(), gallery.events(options.events)
    if options.json:
        print_json(found | {"events": events})
        return
    print(f"{found['directory']}: {found['items']} items, served by {found['serving']}")
    for generation in found["generations"]:
        base = " (holds every item)" if generation["base"] else ""
        print(f"  vectors of {generation['model']}: {generation['vectors']}{base}")
    if (upgrade := found["upgrade"]) is not None:
        print(f"  {_described(upgrade)}")
    for image in found["unreadable"]:
        print(f"  unreadable: {image['key']}: {image['reason']}")
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        print(f"  {when}  {event['action']}")


def _described(upgrade: dict[str, Any]) -> str:
    paused = ", paused" if upgrade["paused"] else ""
    text = f"upgrade {upgrade['old_model']} -> {upgrade['new_model']}: {upgrade['state']}{paused}"
    if upgrade["state"] == "canary":
        text += f", {upgrade['share']:.1%} of the queries"
    if (backfill := upgrade["backfill"]) is not None:
        text += f", {backfill['done']} of {backfill['total']} items embedded"
    return text


def gate(options: argparse.Namespace) -> int:
    embedders = _embedders()
    from iamcl2r_jax.evaluation.gate import Split
    from iamcl2r_jax.gallery import gate as gates
    from iamcl2r_jax.gallery.embedder import describe

    with Gallery(options.directory) as gallery:
        if os.path.isdir(options.model):
            name = gallery.register(describe(options.model), options.name).name
        else:
            name = gallery.model(options.model).name
        found = gates.run(
            gallery,
            embedders,
            name,
            Split(options.gallery, options.gallery_split),
            Split(options.query or options.gallery, options.query_split),
            metric=options.metric,
            data_dir=options.data_dir,
            seed=options.seed,
            accept=options.accept_incompatible,
            cost_per_hour=options.cost_per_hour,
        )
    if options.json:
        print_json({"model": name} | found)
    else:
        _print_gate(name, found)
    return exits.DONE if found["compatible"] or found["accepted"] else exits.REFUSED


def _print_gate(name: str, found: dict[str, Any]) -> None:
    verdict = "compatible" if found["compatible"] else "not compatible"
    print(f"{name}: {verdict}{', accepted all the same' if found['accepted'] else ''}")
    for pair, value in found["values"].items():
        print(f"  {found['metric']}, queries/gallery {pair}: {value:.4f}")
    for title, gain, interval in (
        ("new queries on old vectors", "gain", "gain_interval"),
        ("a full backfill besides", "reindexing_gain", "reindexing_interval"),
    ):
        low, high = found[interval]
        print(f"  gained by {title}: {found[gain]:+.4f} [{low:+.4f}, {high:+.4f}]")
    curve = found["curve"]
    print(f"  backfill, {curve['metric']} at 0 %, 10 %, ... 100 % re-embedded:")
    for merge in ("raw", "zscore"):
        values = " ".join(f"{value:.3f}" for value in curve[merge])
        best = "  <- recommended" if merge == curve["recommended"] else ""
        print(f"    {merge:6}  {values}  dips by {curve['dip'][merge]:.3f}{best}")
    backfill = found["backfill"]
    if backfill["rate"]:
        cost = "" if backfill["cost"] is None else f", costs {backfill['cost']:.2f}"
        print(
            f"  a full backfill: {backfill['items']} items at {backfill['rate']:.0f} a second take "
            f"{_duration(backfill['seconds'])} and {backfill['bytes'] / 2**20:.0f} MiB{cost}"
        )


def canary(options: argparse.Namespace) -> None:
    _act(options, lambda gallery: gallery.canary(options.share))


def promote(options: argparse.Namespace) -> None:
    _act(options, lambda gallery: gallery.promote(options.merge))


def pause(options: argparse.Namespace) -> None:
    _act(options, lambda gallery: gallery.resume() if options.resume else gallery.pause())


def rollback(options: argparse.Namespace) -> None:
    _act(options, lambda gallery: gallery.rollback())


def retire(options: argparse.Namespace) -> None:
    _act(options, lambda gallery: print(f"removed: {gallery.retire()} vectors"))


def _act(options: argparse.Namespace, action) -> None:
    with Gallery(options.directory) as gallery:
        action(gallery)
        print(_described(gallery.status()["upgrade"]))


def backfill(options: argparse.Namespace) -> int:
    from iamcl2r_jax.gallery import backfill as backfills

    def report(progress) -> None:
        _line(
            f"{progress.done} of {progress.total} items, {progress.rate:.0f} a second, "
            f"{_duration(progress.seconds_left)} left"
        )

    with Gallery(options.directory) as gallery:
        progress = backfills.run(
            gallery, _embedders(), batch=options.batch, rate=options.rate, report=report
        )
        _line("")
        found = gallery.status()
    print(_described(found["upgrade"]))
    for image in found["unreadable"]:
        print(f"unreadable: {image['key']}: {image['reason']}", file=sys.stderr)
    return exits.FAILED if progress.unreadable else exits.DONE


def verify(options: argparse.Namespace) -> int:
    with Gallery(options.directory) as gallery:
        findings = upkeep.verify(gallery, files=options.files)
        if options.engine:
            findings += upkeep.verify_store(gallery)
    for finding in findings:
        print(f"damaged: {finding}")
    if not findings:
        print("all is as it was written")
    return exits.FAILED if findings else exits.DONE


def backup(options: argparse.Namespace) -> None:
    with Gallery(options.directory) as gallery:
        upkeep.backup(gallery, options.target)
    print(f"copied to {options.target}")


def refill(options: argparse.Namespace) -> None:
    with Gallery(options.directory) as gallery:
        upkeep.refill(gallery)
        generations = gallery.status()["generations"]
    print(f"refilled: {sum(generation['vectors'] for generation in generations)} vectors")


def _embedders():
    start.prepare_jax()
    from iamcl2r_jax.gallery.embedder import Embedders

    return Embedders()


def _line(text: str) -> None:
    """Shows progress where somebody watches; an empty text ends it."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
