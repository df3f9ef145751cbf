"""CIFAR-10 in one command: train, sample with every solver, measure, against diffusers on the same network."""
