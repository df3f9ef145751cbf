"""What people see of a training run: its cost beforehand, samples and held-out loss on the way, one page of both."""
