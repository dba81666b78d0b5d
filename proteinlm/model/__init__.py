"""The room model."""
