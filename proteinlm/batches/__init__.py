"""Batches: proteins packed into windows, masked, and dealt to processes."""
