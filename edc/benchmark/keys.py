"""The names of a bench's rows."""

__all__ = ["row_key"]


def row_key(label: str, backend: str, artifact: str | None) -> str:
    """Returns `kd on torch`, with its artifact in front if that is not the one that is benched: `v1: kd on torch`.

    Rows that differ have keys that differ: a label holds no colon, and a backend's name no space.
    """
    key = f"{label} on {backend}"
    return f"{artifact}: {key}" if artifact else key
