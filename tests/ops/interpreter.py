"""Where tests of Triton kernels run: on the GPU, or on CPU tensors through Triton's interpreter.

Importing this skips the whole test file if Triton is missing. `tests/conftest.py` switches the
interpreter on, because Triton decides when it is first imported, and Lightning imports it.
"""

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():  # the interpreter of older ones fails with NumPy 2.4
    pytest.importorskip("triton", minversion="3.7")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
