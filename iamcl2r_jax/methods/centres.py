"""Where the classes of finished tasks lie in feature space, for methods that keep to it."""

import dataclasses

import chex
import numpy as np

from iamcl2r_jax import losses


@dataclasses.dataclass(frozen=True)
class ClassCentres:
    """Centres of classes, by row of the classifier; zero for classes not yet seen.

    Attributes:
      centres: mean unit feature of a class's training images, float32 [K, D].
      boundaries: smallest cosine of such a feature with the centre, float32 [K].
    """

    centres: np.ndarray
    boundaries: np.ndarray

    @classmethod
    def none(cls, num_slots: int, num_features: int) -> "ClassCentres":
        """Before the first task."""
        return cls(np.zeros((num_slots, num_features), np.float32), np.zeros(num_slots, np.float32))

    def with_classes(self, features: np.ndarray, rows: np.ndarray) -> "ClassCentres":
        """Adds the classes of some images.

        Args:
          features: by the model that has just learned these classes, [N, D].
          rows: row of the classifier of each image's class, integer [N].
        """
        chex.assert_rank([features, rows], [2, 1])
        chex.assert_equal_shape_prefix([features, rows], 1)
        centres, boundaries = self.centres.copy(), self.boundaries.copy()
        features = np.asarray(losses.normalize(features))
        for row in np.unique(rows):
            own = features[rows == row]
            centres[row] = own.mean(axis=0)
            boundaries[row] = (own @ np.asarray(losses.normalize(centres[row]))).min()
        return ClassCentres(centres, boundaries)
