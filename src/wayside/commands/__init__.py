"""The commands of ``wayside``, by what they are about. Each module adds its own to the group in :mod:`wayside.cli`."""
