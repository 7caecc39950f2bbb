"""Search for a kernel's schedule: its space, strategies, measurement, records that runs share."""
