"""Quantization and bundles: from a training run to what a buoy loads."""
