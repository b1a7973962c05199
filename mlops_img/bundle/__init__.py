"""A bundle: programs and manifest; needs neither data nor training."""
