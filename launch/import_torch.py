"""Makes an external model of a PyTorch checkpoint.

python launch/import_torch.py --checkpoint=F.pt --backbone=resnet18 --output=DIR
"""

from iamcl2r_jax.programs import import_torch

if __name__ == "__main__":
    import_torch.main()
