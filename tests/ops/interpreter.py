"""Where tests of Triton kernels run: on the GPU, or on CPU tensors through Triton's interpreter.

Importing this skips the whole test file if Triton is missing. `tests/conftest.py` switches the
interpreter on, because Triton decides when it is first imported, and Lightning imports it.
"""

import pytest
import torch

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
