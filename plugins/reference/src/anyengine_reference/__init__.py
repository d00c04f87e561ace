"""The reference engine of anyengine."""
