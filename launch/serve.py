"""Serves a gallery over HTTP.

python launch/serve.py DIR   (--help lists the options)
"""

import sys

from iamcl2r_jax.programs import serve

if __name__ == "__main__":
    sys.exit(serve.main())
