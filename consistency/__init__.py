"""The science: what two nets share, how B uses it, and what a number is worth."""
