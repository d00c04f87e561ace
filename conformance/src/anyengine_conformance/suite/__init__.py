"""The suite under pytest: ``pytest --pyargs anyengine_conformance.suite --engine NAME``.

In a plugin's own tests, two lines do the same::

    from anyengine_conformance.suite import test_check

    @pytest.fixture(scope="session")
    def conformance_settings(): return Settings(engine="mine")
"""

from anyengine_conformance.suite.test_conformance import test_check

__all__ = ["test_check"]
