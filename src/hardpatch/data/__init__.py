"""Image data: sources, decoding, augmentation, loaders and the embedded demo set."""
