"""What stands behind the simulated interface."""
