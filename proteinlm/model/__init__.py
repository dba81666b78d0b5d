"""The model: embedding, trunk of blocks, masked-language-model head, and its checkpoints."""

from proteinlm.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.model.observer import Observer
from proteinlm.model.settings import ModelConfig

__all__ = ["Checkpoint", "MaskedLM", "ModelConfig", "Observer", "load_checkpoint", "save_checkpoint"]
