"""The names that ``import assay`` offers: all there, all documented, none heavy before it is used."""

from __future__ import annotations

import pytest

import assay


@pytest.mark.parametrize("name", assay.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(assay, name).__doc__


def test_all_lists_what_the_table_offers() -> None:
    assert sorted(assay.__all__) == sorted(assay._MODULE_OF)
    assert sorted(dir(assay)) == sorted(assay.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'jugde'"):
        _ = assay.jugde
