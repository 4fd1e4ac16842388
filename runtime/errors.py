"""Every error a caller can meet, by the thing that is wrong.

Contract  A message has four parts: which thing, what was seen, what was needed,
          what to do. Our own mistakes are `assert`s, never these.
"""


class RexThinkerError(Exception):
    """Base of all errors raised for something the caller can mend."""


class ImageError(RexThinkerError):
    """A picture cannot be used: missing, not an image, damaged, too large or too thin."""


class BoxError(RexThinkerError):
    """Candidate boxes cannot be used: not finite, swapped, outside, empty or too many."""


class TextError(RexThinkerError):
    """A category or an expression cannot be used: empty, too long or with control characters."""


class BundleError(RexThinkerError):
    """A bundle is incomplete, altered, of another format version, or unsafe."""


class DeviceError(RexThinkerError):
    """The device asked for cannot run this bundle here."""


class ConfigError(RexThinkerError):
    """A checkpoint's configuration asks for something this exporter does not honour."""


class CheckpointError(RexThinkerError):
    """A checkpoint's files are missing, damaged or of an unsafe format."""


class DataError(RexThinkerError):
    """A dataset's files are missing or do not mean what their format says."""


class OptionError(RexThinkerError):
    """An option is unknown or outside its range."""


class MissingExtraError(RexThinkerError):
    """A command needs packages that the base install leaves out."""


class SceneError(RexThinkerError):
    """A saved scene cannot be used: damaged, made by another bundle, or no saved scene at all."""


class SceneBusyError(RexThinkerError):
    """A scene is asked while it is still answering: it holds one KV cache."""
