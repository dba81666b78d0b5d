"""A trained model on somebody's sequences: embeddings and evaluation."""
