"""What can go wrong because of an input, a setting or a machine.

Each message names the place, what was found, what was expected and the way out. The command line
prints it on one line and exits with code 1; a traceback means a mistake of our own.
"""


class ProteinLMError(Exception):
    """Anything that a user can cause and a user can mend."""


class FastaError(ProteinLMError):
    """A sequence file that cannot be read with certainty."""


class ManifestError(ProteinLMError):
    """A corpus manifest that does not say what it must, or files that are not what it says."""


class ShardError(ProteinLMError):
    """A corpus folder or one of its shards that is missing, damaged or of another alphabet."""


class ConfigError(ProteinLMError):
    """A recipe or a setting that does not exist or does not make sense."""


class ShapeError(ProteinLMError):
    """Tensors whose sizes do not fit together."""


class PrecisionError(ProteinLMError):
    """Values that have grown beyond what a setting or a dtype holds."""


class CheckpointError(ProteinLMError):
    """A checkpoint or a training state that is missing, damaged or of another model."""


class OutputError(ProteinLMError):
    """A result that cannot be written where it was asked for."""


class InUseError(OutputError):
    """A result that another process is writing."""


class UnavailableError(ProteinLMError):
    """A library, device or implementation that this machine does not have."""


class DownloadError(ProteinLMError):
    """A file that its publisher's server does not give, or that is not what the publisher says."""
