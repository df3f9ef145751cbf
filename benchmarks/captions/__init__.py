"""Networks that read captions, on pairs of digits that training never has."""
