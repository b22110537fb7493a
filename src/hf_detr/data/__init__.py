"""Detection data: readers of every usual format, one schema, checks, augmentation, batches, generated scenes."""
