"""Networks for 32×32 images: each is a list of stages, to which heads attach."""
