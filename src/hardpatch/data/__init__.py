"""Images in, uint8 batches out: sources, decoding, augmentation, loaders and the embedded demo set."""
