import random
import unittest

import tally

needs_library = unittest.skipUnless(tally.LIBRARY.exists(), "libtally.so is not built")


class TallyTest(unittest.TestCase):
    def test_empty(self):
        self.assertEqual(tally.tally(b""), (0, 0, 0))

    def test_words_and_lines(self):
        self.assertEqual(tally.tally(b"two words\nand three more\n"), (2, 5, 25))

    def test_bytes_beyond_ascii(self):
        self.assertEqual(tally.tally("gr\u00fcn \u2713".encode()), (0, 2, 9))

    @needs_library
    def test_c_agrees_with_python(self):
        numbers = random.Random(7)
        for length in range(500):
            text = bytes(numbers.choice(b"ab \n\t\r\x0b\x0c\xc3") for _ in range(length))
            self.assertEqual(tally.tally_in_c(text), tally.tally_in_python(text))


if __name__ == "__main__":
    unittest.main()
