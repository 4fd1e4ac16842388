"""What a lowering needs of the graph it writes into.

Contract  A value is named by a string. Kernels know this protocol and never ONNX itself, because a device
          that imports a definition has no onnx package.
Elsewhere the one that writes ONNX: export/graph.py.
"""

from typing import Any, Protocol

from numpy.typing import NDArray

CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators

Attribute = int | float | str | list[int] | list[float]


class Builder(Protocol):
    """Nodes and small constants; weights come in as value names."""

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Attribute) -> str:
        """Add a node with one output (the first, if it has more) and return its name."""
        ...

    def nodes(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Attribute
    ) -> list[str]:
        """Add a node with several outputs.

        Args:
            outputs: names for them: "" leaves an optional one out, "*" asks for a fresh name.

        Returns:
            The outputs' names, as many as asked.
        """
        ...

    def constant(self, array: NDArray[Any]) -> str:
        """A small constant stored inside the graph."""
        ...
