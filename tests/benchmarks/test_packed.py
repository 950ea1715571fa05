"""The forms of the comparison of packed sequences agree, at a small size."""

import pytest
import torch

from benchmarks import packed
from benchmarks.case import Setting
from tests.helpers import TOLERANCE, assert_close


@pytest.mark.parametrize("name", packed.NAMES)
def test_forms_agree(name):
    cases = {
        case.form: case for case in packed.length_cases(Setting(), name, sequences=3, longest=5)
    }
    assert cases.keys() == packed.FORMS.keys()
    assert [form for form, case in cases.items() if case.anchor] == [packed.ANCHOR]
    work = {form: case.make() for form, case in cases.items()}
    for each in work.values():
        assert_close(
            name, each.forward(), work[packed.ANCHOR].forward(), TOLERANCE[torch.float32][0]
        )
    work["packed"].total()  # raises for a weight that is not used
