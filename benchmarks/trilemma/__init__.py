"""The trade of sample quality, diversity and speed between families of generative models, on MNIST."""
