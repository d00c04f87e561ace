"""What can be wrong with a checkpoint. The plugin maps these to the SDK's error tree.

ValueError
├── UnsupportedModel   the checkpoint is sound, but asks for mathematics that is not here
└── BadCheckpoint      the folder or a file in it is damaged, incomplete or not a checkpoint
"""

__all__ = ["BadCheckpoint", "UnsupportedModel"]


class UnsupportedModel(ValueError):
    """The checkpoint asks for something that this engine does not compute; the message names it and what is
    supported.
    """


class BadCheckpoint(ValueError):
    """The checkpoint cannot be read; the message names the file, and the tensor or field where there is one."""
