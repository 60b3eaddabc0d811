"""Photos as batches: data sets, decoding, stores, loaders."""
