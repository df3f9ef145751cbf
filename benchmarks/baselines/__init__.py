"""The other families of generative models, each in its plainest form, trained by the trainer of the toolkit.

Every model is an ``nn.Module`` with ``sample(n)``, which draws with torch's global generator, and where they exist
``nats(x)``, the log-density (a lower bound for models with latents), and ``reconstruct(x)``. Images have values
from -1 to 1; densities are of their dequantised values.
"""
