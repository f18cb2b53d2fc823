"""Pictures in, detections and drawings out: what every detector shares, whatever computes its network."""
