"""Networks for 32×32 images, each described by its stages, and the heads that attach to these."""
