"""A backward pass in bounded memory. Torch only: what the host knows comes in a `reverse.Network`."""
