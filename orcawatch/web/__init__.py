"""The review page: detections in the browser."""
