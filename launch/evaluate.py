"""Evaluates models again, or decides whether a new one may replace an old one.

python launch/evaluate.py --workdir=DIR [--gallery=folder:DIR]
python launch/evaluate.py --models=OLD,NEW --gallery=folder:DIR
python launch/evaluate.py --features=OLD.npz,NEW.npz --maps=all

Exit status with --models and --features: 0 if every upgrade is compatible, 3 if not; 2 for bad
input. With --maps an upgrade is, too, whose best map is.
"""

from iamcl2r_jax.programs import evaluate

if __name__ == "__main__":
    evaluate.main()
