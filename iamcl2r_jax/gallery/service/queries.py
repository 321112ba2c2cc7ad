"""Answers batches of queries: routes each to a model, embeds them together and searches."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from iamcl2r_jax.gallery import Gallery, Hit, Item, Model, Refused, images, state
from iamcl2r_jax.gallery.embedder import Embedder, Embedders
from iamcl2r_jax.gallery.images import ImageError, Picture
from iamcl2r_jax.gallery.service.answers import Unavailable
from iamcl2r_jax.system.errors import InputError


@dataclasses.dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
      request: id of the request, by which a canary is chosen.
      k: how many hits.
      picture: the image to search for; None to search for `item`.
      item: a stored item to search for; None where `picture` is given.
    """

    request: str
    k: int
    picture: Picture | None = None
    item: Item | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The answer to a query: the name of the model that embedded it, and the hits, best first."""

    model: str
    hits: list[Hit]


class Searcher:
    """Answers batches of queries on one gallery."""

    def __init__(self, gallery: Gallery, embedders: Embedders):
        self._gallery, self._embedders = gallery, embedders

    def answer(self, queries: Sequence[Query]) -> list[Found | Exception]:
        """Answers each query, by its hits or by the error that is its own."""
        answers: list[Found | Exception | None] = [None] * len(queries)
        groups: dict[int, tuple[Model, list[int]]] = {}
        for position, query in enumerate(queries):
            model = self._gallery.route(query.request)
            groups.setdefault(model.id, (model, []))[1].append(position)
        for model, positions in groups.values():
            some = [queries[position] for position in positions]
            for position, found in zip(positions, self._group(model, some), strict=True):
                answers[position] = found
        return answers

    def _group(self, model: Model, queries: Sequence[Query]) -> list[Found | Exception]:
        """Queries of one model; one that fails does not take the others with it."""
        try:
            return self._found(model, queries)
        except (InputError, Refused) as error:
            if len(queries) > 1:
                return [found for query in queries for found in self._group(model, [query])]
            if isinstance(error, InputError):
                return [error]
        # The upgrade that the model is of may have been retired since it was chosen.
        model = self._gallery.route(queries[0].request)
        try:
            return self._found(model, queries)
        except (InputError, Refused) as error:
            return [error]

    def _found(self, model: Model, queries: Sequence[Query]) -> list[Found]:
        vectors = self._vectors(model, queries)
        hits = self._gallery.search(vectors, model=model.name, k=max(q.k for q in queries))
        return [
            Found(model.name, some[: query.k]) for query, some in zip(queries, hits, strict=True)
        ]

    def _vectors(self, model: Model, queries: Sequence[Query]) -> np.ndarray:
        """The queries as vectors of a model, float32 [N, D]; stored items have theirs already."""
        vectors = np.empty((len(queries), model.info.width), np.float32)
        size, pictures = model.info.image["size"], {}
        for position, query in enumerate(queries):
            if query.item is None:
                pictures[position] = query.picture.at(size)
            elif (stored := self._stored(model, query.item)) is not None:
                vectors[position] = stored
            else:
                pictures[position] = self._image(query.item).at(size)
        if pictures:
            features = loaded(self._embedders, model)(np.stack(list(pictures.values())))
            vectors[list(pictures)] = features
        return vectors

    def _stored(self, model: Model, item: Item) -> np.ndarray | None:
        """The vector of an item by that model, if the gallery has it."""
        with self._gallery.database.reading() as connection:
            view = state.read_view(connection)
            for generation, owner in view.generations.items():
                if owner == model.id:
                    width = model.info.width
                    _, found = state.read_vectors(connection, generation, [item.id], width)
                    if len(found):
                        return found[0]
        return None

    def _image(self, item: Item) -> Picture:
        path = self._gallery.image_path(item)
        if path is None:
            raise ImageError(
                f"item {item.key} was added without an image, and the model that answers has no "
                "vector of it; search by an image"
            )
        return images.read(path)


def loaded(embedders: Embedders, model: Model) -> Embedder:
    """The embedder of a model; `Unavailable` if it cannot be loaded, which no request can help."""
    try:
        return embedders[model]
    except (InputError, Refused) as error:
        raise Unavailable(f"model {model.name} cannot be loaded: {error}") from error


def warm(embedders: Embedders, model: Model, batch: int) -> None:
    """Loads a model and compiles it for all batches up to a size, before queries need it."""
    embedder, size = loaded(embedders, model), model.info.image["size"]
    noise = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    count = 1
    while count < batch:
        embedder(noise[:count])
        count *= 2
    embedder(noise)
