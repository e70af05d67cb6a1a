"""The cipher behind noise that hides something, against the one of another library."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedmedian.chacha import ChaCha20


def test_the_bit_generator_draws_the_key_stream_of_the_cipher():
    words = [2**63 + 1, 2**40 + 2, 3, 2**64 - 1]
    key = np.array(words, "<u8").tobytes()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(8000))
    drawn = np.array(ChaCha20(words).random_raw(1000), "<u8")
    assert drawn.tobytes() == stream


def test_every_bit_of_the_seed_is_one_of_the_keys():
    zeros = [0, 0, 0, 0]
    drawn = {ChaCha20(zeros).random_raw()}
    for bit in range(256):
        words = zeros.copy()
        words[bit // 64] = 1 << bit % 64
        drawn.add(ChaCha20(words).random_raw())
    assert len(drawn) == 257


def test_without_a_seed_the_key_is_the_operating_systems_entropy(monkeypatch):
    monkeypatch.setattr("secrets.token_bytes", lambda size: bytes(range(size)))
    words = np.frombuffer(bytes(range(32)), "<u8").tolist()
    assert ChaCha20().random_raw() == ChaCha20(words).random_raw()


def test_a_seed_whose_words_are_too_long_is_refused():
    with pytest.raises(OverflowError):
        ChaCha20([2**64, 0, 0, 0])
