"""What the tests of the label app share."""

import pytest
from bodies_of_label import trained_bundle


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A trained bundle with its data; tests that change it take a copy."""
    return trained_bundle(tmp_path_factory.mktemp("bundles"))
