"""The errors that a user sees; they stand with the lowest package, which raises them too."""

from lvlm_profiles.errors import LvlmError, UsageError

__all__ = ["LvlmError", "UsageError"]
