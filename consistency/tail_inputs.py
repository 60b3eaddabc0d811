"""The features that a tail can be tuned on, by name; `consistency.frozen_feature` makes them."""

RAW = {"raw_A": "A", "raw_B": "B"}  # --input: the net whose feature it is
NOISE = "noise_added"
INPUTS = ("components", *RAW, "residual_added", NOISE)
