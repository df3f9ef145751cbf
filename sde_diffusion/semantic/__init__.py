r"""Diffusion autoencoders: an image as a code of what it shows and a code of the rest (Preechakul et al. 2022).

A network with ``code`` (``networks.semantic``) is trained on images with themselves as conditions. Then

    z   = E(x)                       what is drawn: short, and linear enough for a linear classifier
    x_1 = the end of the probability flow from x given z: everything else

and the flow given z takes x_1 back to x. With new noise instead of x_1 it draws variations of x; along a straight line
between two z, and the great circle between two x_1, it goes from one image to the other; and a step of z along the
weights of a linear classifier changes an attribute and keeps x_1.
"""

from sde_diffusion.semantic.attributes import Attributes, fit_attributes
from sde_diffusion.semantic.codes import change, codes_of, interpolated, reconstruct, variations

__all__ = ["Attributes", "change", "codes_of", "fit_attributes", "interpolated", "reconstruct", "variations"]
