"""Any exception becomes one sentence of the right class."""

import errno

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rskd.config import SegmentOptions
from rskd.engine.failures import explain
from rskd.errors import DataError, EngineError, FileError, ParameterError, ResourceError, RskdError


def invalid(**fields):
    with pytest.raises(ValidationError) as caught:
        SegmentOptions(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "expected", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "distill", ResourceError,
         "GPU ran out of memory while distilling: use a smaller batch size or smaller patches, or choose the device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "segment", ResourceError,
         "GPU ran out of memory while segmenting: use smaller tiles or a smaller batch size, or choose the device"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "", ResourceError, "GPU ran out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
         "segment", ResourceError, "computer ran out of memory while segmenting: close other images or use smaller"),
        (MemoryError(), "contourlet", ResourceError, "The computer ran out of memory while computing the contourlet"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "", ResourceError, "The computer ran out of memory"),
        (OSError(errno.ENOSPC, "No space left", "/data/x.npy"), "", ResourceError, "disk is full at /data/x.npy"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x.tif"), "", FileError, "x.tif: permission denied"),
        (invalid(overlap=2), "", ParameterError, "overlap=2: input should be less than or equal to 0.9."),
        (invalid(overlap=2, tile=3), "", ParameterError, "(and 1 more)"),
        (ImportError("libcudnn.so.9: cannot open shared object file"), "train", EngineError, "libcudnn.so.9"),
        (ValueError(), "rank", EngineError, "ValueError while ranking the tokens: no reason was given."),
        (RuntimeError("size mismatch.\nat line 3"), "", EngineError, "RuntimeError while working: size mismatch."),
    ],
)  # fmt: skip
def test_sentences(error, kind, expected, words):
    told = explain(error, kind=kind)
    assert type(told) is expected
    assert words in str(told)


def test_what_is_a_sentence_already_stays():
    error = DataError("No masks.")
    assert explain(error, kind="train") is error


@given(st.text(), st.sampled_from([ValueError, RuntimeError, OSError, KeyError, ImportError, MemoryError]))
def test_always_one_line_and_never_a_runtime_error(text, kind):
    told = explain(kind(text))
    assert isinstance(told, RskdError)
    assert not isinstance(told, RuntimeError)
    assert "\n" not in str(told)
    assert str(told).strip()
