"""What is measured on features: moments, regressions, similarities."""
