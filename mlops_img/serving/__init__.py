"""The HTTP service: image uploads in, calibrated predictions out."""
