"""The room sequence."""
