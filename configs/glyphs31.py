"""The paper's 31 tasks on the embedded letters: 22 of them, then one with each of 30 tasks.

    python launch/main.py --config=configs/glyphs31.py
    python launch/main.py --config=configs/glyphs31.py:replacements=no
    python launch/figures.py --figure=accuracy --workdir=runs/glyphs31,runs/glyphs31-not-replaced

Mirrors CIFAR100R/10 with 31 tasks (there 10 classes, then 3 with each task) and the paper's Fig. 4,
AA after each task with and without replacement. The model is replaced at the same tasks, 0, 10 and
20. Without replacement, the run starts from the first external model too and keeps what becomes of
it: up to task 10 both runs are the same run, so that what differs afterwards is due to replacing.

Fewer epochs than in configs/glyphs.py, as there are six times as many tasks; the schedule has not
been searched. Identification only, as in the paper: there are 496 pairs of models to compare.
"""

from iamcl2r_jax import config
from iamcl2r_jax.config import args

# Tasks that start from an external model, and the classes that it was pre-trained on.
_REPLACEMENTS = {"yes": ((0, 10, 20), (60, 120, 240)), "no": ((0,), (60,))}


def get_config(arg=None):
    tasks, classes = args.parse(arg, {"replacements": _REPLACEMENTS})["replacements"]
    c = config.default()
    c.name = "glyphs31" if len(tasks) > 1 else "glyphs31-not-replaced"
    c.stream.initial_classes = 22
    c.stream.increment = 1
    c.replacements.tasks = tasks
    c.replacements.classes = classes
    c.train.epochs = 8
    c.metrics = ("identification",)
    return c
