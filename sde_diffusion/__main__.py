"""`python -m sde_diffusion`, the same as `sdediff`."""

from sde_diffusion.cli import app

if __name__ == "__main__":
    app(prog_name="sdediff")
