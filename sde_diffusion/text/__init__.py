"""Captions: words and their numbers, the text encoder of a network, and pretrained text encoders."""

from sde_diffusion.text.encoder import TextEncoder
from sde_diffusion.text.pretrained import pretrained_tokens
from sde_diffusion.text.vocabulary import split_words, to_caption, to_numbers, words_of

__all__ = ["TextEncoder", "pretrained_tokens", "split_words", "to_caption", "to_numbers", "words_of"]
