"""The HTTP service: uploads in, calibrated predictions out."""
