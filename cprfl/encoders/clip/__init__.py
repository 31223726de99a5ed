"""open_clip's models: the library, the embedded one that is trained here, and the image towers as encoders."""

from cprfl.encoders.clip.factory import OpenClipEncoder, create_clip

__all__ = ["OpenClipEncoder", "create_clip"]
