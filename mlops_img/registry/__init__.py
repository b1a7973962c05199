"""Where bundles are kept: folders, buckets, BentoML's model store."""
