"""Pictures of detections."""
