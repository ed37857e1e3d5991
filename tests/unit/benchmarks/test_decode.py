import numpy as np

from jobs.benchmarks.decode import decode_pair, measure_decoding


def test_both_files_are_decoded(pairs):
    image, mask = decode_pair(pairs[1])
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((61, 83, 3), np.uint8, (61, 83), np.uint8)
    assert measure_decoding(pairs)() > 0
