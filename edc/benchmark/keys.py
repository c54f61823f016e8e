"""The names of a bench's rows."""

__all__ = ["row_key"]


def row_key(label: str, backend: str, artifact: str | None) -> str:
    """Returns `kd on torch`; a row of another artifact than the benched one has that in front: `v1: kd on torch`.

    Different rows have different keys, because a label has no colon and a backend's name has no space.
    """
    key = f"{label} on {backend}"
    return f"{artifact}: {key}" if artifact else key
