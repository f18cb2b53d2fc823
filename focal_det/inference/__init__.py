"""From images to detections and drawings, for any detector: inputs, outputs, and models exported to a file."""
