"""The smallest whole run: pre-training, replacement, evaluation. Its figures mean nothing.

    python launch/main.py --config=configs/tiny.py

Used by the tests and by anyone who wants to see the machinery turn; under a minute on two cores
once compiled. It is too short to learn a single letter: accuracy 0.0 % is what to expect.
"""

from iamcl2r_jax import config


def get_config():
    c = config.default()
    c.name = "tiny"
    c.num_slots = 128
    c.model.options.width = 8
    c.train.epochs = 4
    c.train.batch_size = 64
    c.train.learning_rate = 0.1
    c.stream.dataset = "glyphs/tiny_stream"
    c.stream.initial_classes = 20
    c.stream.increment = 16
    c.memory_per_class = 5
    c.evaluations.digits.dataset = "glyphs/tiny_digits"
    del c.evaluations.unseen
    c.replacements.tasks = (0, 1)
    c.replacements.classes = (20, 40)
    c.replacements.checkpoints = ()
    c.replacements.recipe.name = "tiny"
    c.replacements.recipe.dataset = "glyphs/tiny_external"
    c.replacements.recipe.model.options.width = 8
    c.replacements.recipe.train.epochs = 8
    c.replacements.recipe.train.batch_size = 64
    c.replacements.recipe.train.learning_rate = 0.1
    return c
