"""Every method under the protocol of the embedded default, with three seeds.

    python launch/compare.py --config=configs/compare_glyphs.py

About two minutes a cell on two CPU cores, and once the external models: three with the simplex,
three with a learnable head. A part, for instance on another machine, and then the table of all:

    python launch/compare.py --config=configs/compare_glyphs.py --only=er,bct_er-seed0
    python launch/compare.py --config=configs/compare_glyphs.py --only=
"""

from iamcl2r_jax import cells, config, methods


def get_config():
    variants = {name: {"method": name} for name in methods.METHODS}
    return cells.comparison("compare_glyphs", config.default(), variants)
