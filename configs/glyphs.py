"""The embedded default: the paper's protocol in miniature, on characters of typefaces.

    python launch/main.py --config=configs/glyphs.py                     # 7 tasks
    python launch/main.py --config=configs/glyphs.py:tasks=31            # 31 tasks
    python launch/main.py --config=configs/glyphs.py:tasks=31,replacements=no
    python launch/main.py --config=configs/glyphs.py:backbone=senet18    # also of external models
    python launch/figures.py --figure=accuracy --workdir=runs/glyphs31,runs/glyphs31-not-replaced

CIFAR100R/10 with other images, a narrow network and short schedules: 100 classes of 300 images, of
which 52 are Latin letters, 10 in the first task; external models on 100, 300 and 600 classes. Those
of seed 0 with the simplex come with the package; others are trained by the recipe, once, and so are
these with --config.replacements.checkpoints="()".

Without replacement, the run of 31 tasks starts from the first external model too and keeps what
becomes of it: up to task 10 it is the run with replacement, so that what differs afterwards is due
to replacing (the paper's Fig. 4).
"""

from iamcl2r_jax import config
from iamcl2r_jax.config import args, recipes


def get_config(arg=None):
    choices = {
        "tasks": recipes.TASKS,
        "replacements": {"yes": True, "no": False},
        "backbone": args.Free("NAME", default=config.default().model.backbone),
    }
    chosen = args.parse(arg, choices)
    c = recipes.glyphs(*chosen["tasks"])
    if not chosen["replacements"]:
        c.name += "-not-replaced"
        c.replacements.tasks = c.replacements.tasks[:1]
        c.replacements.classes = c.replacements.classes[:1]
    if chosen["backbone"] != c.model.backbone:
        c.name += f"-{chosen['backbone']}"
    for part in (c, c.replacements.recipe):
        config.choose_backbone(part.model, chosen["backbone"])
    return c
