"""The room attention."""
