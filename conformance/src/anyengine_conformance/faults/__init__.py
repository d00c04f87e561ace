"""Broken engines, one module a family: each is caught by the check that is there for it."""
