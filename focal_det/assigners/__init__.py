"""Assignment of anchors to objects, as functions on tensors: torch alone."""
