"""Theorem 1, measured: what an update does to the expected distances of the trained classes.

Model φ_t is compatible with an earlier φ_k when, d being the cosine distance,
  (a) d(φ_t(x_i), φ_k(x_j)) <= d(φ_k(x_i), φ_k(x_j)) for images of the same class,
  (b) d(φ_t(x_i), φ_k(x_j)) >= d(φ_k(x_i), φ_k(x_j)) for images of different classes.
Theorem 1 says that features learned with a fixed d-Simplex classifier satisfy both in expectation.
If the features z of class c form a cap, symmetric about the classifier's vector w_c, of
concentration κ_c = E[cos(z, w_c)], the expected distance of classes c and e is
1 - κ_{t,c} κ_{k,e} <w_c, w_e>, so that for vectors of a simplex both hold for class c exactly when
κ_{t,c} >= κ_{k,c}: when the update has concentrated the class.

Features and vectors are normalised inside; a zero feature has distance 1 to everything. Labels are
int [N] in 0 … C-1, two or more images of each class. What is measured is computed in float64, the
resamples of it in float32.

References: Shen et al., CVPR 2020 (the definition); Biondi et al., CVPR 2024 (the theorem).
"""

import dataclasses

import chex
import numpy as np

_DRAWN_AT_ONCE = 100  # resamples whose class means are in memory together


@dataclasses.dataclass(frozen=True)
class Inequality:
    """One of the two inequalities for each of some classes or pairs of classes.

    Attributes:
      sign: 1 if distances should not fall, as those of other classes; -1 if they should not grow.
      before: expected distance of old features to old ones, [...].
      after: expected distance of new features to old ones, [...].
      interval: ends of the bootstrap interval of `margin`, [..., 2].
      caps_before: what `before` would be if the features formed symmetric caps, [...].
      caps_after: what `after` would be, [...].
    """

    sign: int
    before: np.ndarray
    after: np.ndarray
    interval: np.ndarray
    caps_before: np.ndarray
    caps_after: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """By how much the inequality holds; negative where it is violated, [...]."""
        return self.sign * (self.after - self.before)

    @property
    def caps_margin(self) -> np.ndarray:
        """`margin` if the features formed symmetric caps, [...]."""
        return self.sign * (self.caps_after - self.caps_before)


@dataclasses.dataclass(frozen=True)
class Check:
    """Theorem 1 for an old and a new model.

    Attributes:
      kappa_old: concentration of each class by the old model, [C].
      kappa_new: the same by the new one, [C].
      same: inequality (a) of each class, [C].
      other: inequality (b) of each class against all others, [C]: queries of the class, pairs of
        images weighted equally.
      pairs: inequality (b) of each query class against each other gallery class, [C (C-1)].
      mean_same: inequality (a) on average over the classes, [].
      mean_other: inequality (b) on average over the classes, [].
    """

    kappa_old: np.ndarray
    kappa_new: np.ndarray
    same: Inequality
    other: Inequality
    pairs: Inequality
    mean_same: Inequality
    mean_other: Inequality


def check(
    new: np.ndarray,
    old: np.ndarray,
    labels: np.ndarray,
    new_vectors: np.ndarray,
    old_vectors: np.ndarray,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Check:
    """Measures both inequalities on the same images by both models.

    Percentile bootstrap: images are drawn with replacement within their class, each with both its
    features, and pairs of an image with itself are left out of every resample as of the measure.
    With 95 %, one in twenty margins that are truly zero is called positive or negative.

    Args:
      new, old: features of the same images by both models, [N, D].
      labels: classes of the images.
      new_vectors, old_vectors: classifier vector of each class, [C, D]; the same if it is fixed.
      resamples: how many.
      confidence: share of the resamples within an interval.
      seed: of the draws.

    Raises:
      ValueError: if there are fewer than two classes, or two images of a class.
    """
    chex.assert_rank([new, old, labels, new_vectors, old_vectors], [2, 2, 1, 2, 2])
    chex.assert_equal_shape([new, old])
    chex.assert_equal_shape([new_vectors, old_vectors])
    if len(new_vectors) < 2:
        raise ValueError("labels: two or more classes are needed, as one has no other")
    sizes = np.bincount(labels, minlength=len(new_vectors))
    kappa_new = concentration(new, labels, new_vectors)
    kappa_old = concentration(old, labels, old_vectors)
    measured = np.stack(
        [expected_distances(old, old, labels), expected_distances(new, old, labels)]
    )
    caps = np.stack(
        [
            cap_distances(kappa_old, kappa_old, old_vectors, old_vectors),
            cap_distances(kappa_new, kappa_old, new_vectors, old_vectors),
        ]
    )
    counts = draw_counts(labels, resamples, np.random.default_rng(seed))
    parts = np.array_split(counts, -(-resamples // _DRAWN_AT_ONCE))
    drawn = np.stack(  # [2, R, C, C]
        [
            np.concatenate([expected_distances(query, old, labels, part) for part in parts])
            for query in (old, new)
        ]
    )

    def mean_of_known(distances):
        """Over the classes that have a pair."""
        known = np.ma.masked_invalid(same_class(distances))
        return np.ma.filled(known.mean(axis=-1), np.nan)

    def inequality(sign, select):
        before, after = select(measured)
        drawn_before, drawn_after = select(drawn)
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        # A resample that holds one image of a class alone has no pair of it, and says nothing.
        interval = np.nanquantile(sign * (drawn_after - drawn_before), ends, axis=0)
        return Inequality(sign, before, after, np.moveaxis(interval, 0, -1), *select(caps))

    return Check(
        kappa_old=kappa_old,
        kappa_new=kappa_new,
        same=inequality(-1, same_class),
        other=inequality(1, lambda d: other_classes(d, sizes)),
        pairs=inequality(1, lambda d: d[..., ~np.eye(len(sizes), dtype=bool)]),
        mean_same=inequality(-1, mean_of_known),
        mean_other=inequality(1, lambda d: other_classes(d, sizes).mean(axis=-1)),
    )


def concentration(features: np.ndarray, labels: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """κ_c = E[cos(z, w_c)] over the images of each class, float64 [C].

    Args:
      features, labels: of the images, [N, D] and [N].
      vectors: classifier vector of each class, [C, D].
    """
    chex.assert_rank([features, labels, vectors], [2, 1, 2])
    cosines = np.sum(_unit(features) * _unit(vectors)[labels], axis=-1)
    sizes = np.bincount(labels, minlength=len(vectors))
    return np.bincount(labels, cosines, minlength=len(vectors)) / sizes


def shared_direction(vectors: np.ndarray) -> np.ndarray:
    """The unit vector s along Σ_c w_c: what moves away from every vertex that no class owns, [D].

    Vertices sum to zero, so that lowering the logits of all unused ones is moving along s. Features
    of symmetric caps have E[cos(z, s)] = κ <w_c, s>, about κ/√C; more than that is shared by the
    classes, and turns when classes are added. `vectors` are of the classes in use, [C, D].
    """
    return _unit(_unit(vectors).sum(axis=0))


def expected_distances(
    query: np.ndarray, gallery: np.ndarray, labels: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray:
    """Mean cosine distance over pairs of different images, for each pair of classes.

    With unit features q_i and g_j, n_i how often image i counts, S_c = Σ_{i in c} n_i q_i and
    T_e = Σ_{j in e} n_j g_j, the mean over i in c, j in e is 1 - <S_c, T_e> / (Σ_{i in c} n_i ·
    Σ_{j in e} n_j), from which the pairs i = j are taken out where c = e. No pair is ever formed.

    Args:
      query, gallery: features of all images by one model, and by the same or another, [N, D].
      labels: of the images.
      counts: how often each image counts in each of R resamples, [R, N]; None for once.

    Returns:
      float64 [C, C]; or [R, C, C] with `counts`, in float32 if that is their type. Rows are the
      classes of the queries. NaN where there is no pair.

    Raises:
      ValueError: if a class has fewer than two images.
    """
    chex.assert_rank([query, gallery, labels], [2, 2, 1])
    chex.assert_equal_shape([query, gallery])
    if counts is None:
        once = np.ones((1, len(labels)))
        return expected_distances(query, gallery, labels, once)[0]
    chex.assert_shape(counts, (None, len(labels)))
    members = _members(labels)
    dtype = np.result_type(counts, np.float32)
    query, gallery = _unit(query).astype(dtype), _unit(gallery).astype(dtype)
    ones = np.ones(len(labels), dtype)
    own = np.sum(query * gallery, axis=-1)  # cosine of an image with itself

    def sums(values, weights):
        return np.stack([weights[:, of] @ values[of] for of in members], axis=1)

    cosines = sums(query, counts) @ sums(gallery, counts).swapaxes(1, 2)
    totals = sums(ones, counts)
    pairs = totals[:, :, np.newaxis] * totals[:, np.newaxis, :]
    diagonal = np.arange(len(members))
    cosines[:, diagonal, diagonal] -= sums(own, counts**2)
    pairs[:, diagonal, diagonal] -= sums(ones, counts**2)
    return 1 - np.divide(cosines, pairs, out=np.full_like(cosines, np.nan), where=pairs > 0)


def cap_distances(
    query_kappa: np.ndarray,
    gallery_kappa: np.ndarray,
    query_vectors: np.ndarray,
    gallery_vectors: np.ndarray,
) -> np.ndarray:
    """Expected distances 1 - κ_c κ'_e <w_c, w'_e>, float64 [C, C], if classes were symmetric caps.

    Args:
      query_kappa, gallery_kappa: concentration of each class by both models, [C].
      query_vectors, gallery_vectors: classifier vectors of both, [C, D].
    """
    chex.assert_rank([query_kappa, gallery_kappa, query_vectors, gallery_vectors], [1, 1, 2, 2])
    return 1 - np.outer(query_kappa, gallery_kappa) * (
        _unit(query_vectors) @ _unit(gallery_vectors).T
    )


def draw_counts(labels: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each image is drawn when its class is drawn again, as large as it was: [R, N]."""
    counts = np.empty((resamples, len(labels)), np.float32)
    for of in _members(labels):
        counts[:, of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), size=resamples)
    return counts


def same_class(distances: np.ndarray) -> np.ndarray:
    """Of [..., C, C], those of a class to itself: [..., C]."""
    return np.diagonal(distances, axis1=-2, axis2=-1)


def other_classes(distances: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of [..., C, C], the mean over all other classes of `sizes` images: [..., C]."""
    weights = np.where(np.eye(len(sizes), dtype=bool), 0.0, sizes[np.newaxis, :])
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("...ce,ce->...c", np.nan_to_num(distances), weights)


def shares(inequality: Inequality) -> dict[str, float]:
    """Shares of the classes, or pairs of classes, in which an inequality stands.

    Returns:
      `holds`: its margin is not negative; `holds_beyond`: the whole interval is above zero;
      `violated_beyond`: the whole interval is below zero; `caps_hold`: it would hold for caps.
    """
    low, high = np.moveaxis(inequality.interval, -1, 0)
    return {
        "holds": float(np.mean(inequality.margin >= 0)),
        "holds_beyond": float(np.mean(low > 0)),
        "violated_beyond": float(np.mean(high < 0)),
        "caps_hold": float(np.mean(inequality.caps_margin >= 0)),
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """Positions of each class's images."""
    members = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    if small := [c for c, of in enumerate(members) if len(of) < 2]:
        raise ValueError(f"labels: class {small[0]} needs two or more images to have a pair")
    return members
