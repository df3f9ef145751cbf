"""Latent diffusion, a cascade and SR3 on MNIST, against a model of pixels at equal training and sampling time.

    python -m benchmarks.latent.training autoencoder     # also latent, pixel, cascade, superres
    python -m benchmarks.latent                          # measures them and writes benchmarks/results/latent.*

A budget is of CPU seconds of one core, so that a machine with other work on it trains as long. The data are
$SDEDIFF_DATA_DIR/mnist.npz.
"""
