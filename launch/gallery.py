"""A gallery that is indexed once and searched by every later compatible model.

python launch/gallery.py VERB DIR ...   (--help lists the verbs, VERB --help says what one does)
"""

import sys

from iamcl2r_jax.programs import gallery

if __name__ == "__main__":
    sys.exit(gallery.main())
